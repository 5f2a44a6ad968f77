"""What the memory bank and its noise-contrastive loss add to a step of InstDisc, with a bank as large as ImageNet's."""

from typing import Any

from benchmarks.rows import Measured, Row, overhead
from benchmarks.steps import RESNET18, Bare, Step, batch, build
from benchmarks.timing import in_turn, threads

IMAGES, BATCH, REPEATS, THREADS = 1_280_000, 128, 3, 2
INSTDISC: dict[str, Any] = {
    "softmax": "nce",
    "negatives": 4096,
    "z": "frozen",
    "z_batches": 1,
    "temperature": 0.07,
    "normalize": True,
    "proximal": 0.0,
    "bank_momentum": 0.5,
    "head": "linear",
    "hidden": 128,
    "dim": 128,
}


def measure() -> Measured:
    """Milliseconds of a step; Z is frozen after the first one, which does not count."""
    method = build("instdisc", INSTDISC, IMAGES, RESNET18)
    shown = batch(BATCH, IMAGES, 1)
    with threads(THREADS):
        spent = in_turn({"whole": Step(method, shown), "bare": Bare(method, shown)}, REPEATS)
    share = spent["whole"].wall / spent["bare"].wall - 1
    note = f"{THREADS} threads on both sides; the bank and the loss add {100 * share:.1f} %"
    return Measured(1e3 * spent["whole"].wall, 1e3 * spent["bare"].wall, REPEATS, note)


WHAT = "a step of InstDisc, ResNet-18, 32x32x3, batch 128, N = 1.28 million, d = 128, m = 4,096"
TRIED = (
    "negatives' rows by one `index_select` (700 ms to 270 ms for 128 x 4,096 of 1.28 million); large pages for large "
    "tensors; value and gradient worked out together, block by block, so that rows are gathered once; a compiled loop "
    "that gathers nothing was slower (295 ms against 230 ms)"
)
ROWS = [Row("nce", WHAT, "the same step without bank and NCE", "ms", overhead(1.1), measure, tried=TRIED)]

"""Memory, each of a process of its own: `python -m benchmarks.memory WHAT` prints what it held, in bytes."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.rows import Measured, Row, limit, overhead

MB = 1e6
IMAGENET, IMAGENET_DIM = 1_280_000, 128
SUPPORT, SUPPORT_DIM = 98_304, 256
CELL_ROWS, CELL_STEPS, CELL_REPEATS = 100_000, 6, 3
FEW = 8  # images of a very small cell


def status(field: str) -> int:
    """Bytes, from what the kernel says of this process (man 5 proc)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def begin() -> dict[str, int]:
    """What is resident now, and so far of mapped files; from here on the peak counts."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    return {"growth": status("VmRSS"), "peak": status("VmRSS"), "mapped": status("RssFile")}


def grown(before: dict[str, int], held: int) -> dict[str, int]:
    """Bytes held by design, and by how much the process grew: now, at its peak, and in mapped files."""
    now = {"growth": status("VmRSS"), "peak": status("VmHWM"), "mapped": status("RssFile")}
    return {"held": held} | {name: now[name] - before[name] for name in now}


def bank() -> dict[str, int]:
    """InstDisc's bank for as many images as ImageNet has."""
    from bench.support import MemoryBank

    MemoryBank(2, 2, 0.5, 0)  # what the libraries load on first use is not its own
    before = begin()
    made = MemoryBank(IMAGENET, IMAGENET_DIM, 0.5, 0)
    return grown(before, _bytes(made))


def support() -> dict[str, int]:
    """The largest support set of NNCLR."""
    from bench.support import SupportSet

    SupportSet(2, 2, 0)  # what the libraries load on first use is not its own
    before = begin()
    made = SupportSet(SUPPORT, SUPPORT_DIM, 0)
    return grown(before, _bytes(made))


def instdisc() -> dict[str, int]:
    """A cell with a row of the bank for each of many images."""
    from benchmarks.nce import INSTDISC

    return cell("instdisc", INSTDISC, {"negatives": FEW}, 1)


def nnclr() -> dict[str, int]:
    """A cell with the largest support set."""
    from benchmarks.cells import NNCLR

    return cell("nnclr", NNCLR | {"support_size": SUPPORT, "dim": SUPPORT_DIM}, {"support_size": FEW}, 2)


def cell(method: str, options: dict[str, Any], small: dict[str, Any], views: int) -> dict[str, int]:
    """A few steps, after those of a very small cell: what the libraries load on first use is no cell's."""
    _train(method, options | small, FEW, views, batch=FEW)
    before = begin()
    return grown(before, _train(method, options, CELL_ROWS, views))


def _train(method: str, options: dict[str, Any], rows: int, views: int, **training: Any) -> int:
    """Train on images that come from a file, as any cell's do; gives the bytes of model, optimiser, data and bank."""
    import math
    import tempfile

    import numpy as np

    from bench.checkpoint import Checkpoints, optimizer_tensors
    from bench.data.source import ImageSet
    from bench.errors import StoppedError
    from bench.pretrain import Trainer
    from benchmarks.cells import SGD, config

    chosen = config(method, options, rows, views=views, optimizer=SGD, **training)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (rows + 1, 32, 32, 3))
        stored[:] = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
        del stored
        images, test = np.load(folder / "images.npy", mmap_mode="r"), np.arange(rows + 1) == rows
        images.max()  # all of its pages are resident, as after an epoch
        data = ImageSet(images, np.arange(rows + 1) % 10, test, 10)
        checkpoints = Checkpoints(folder)
        run = Trainer(chosen, data, checkpoints, checkpoint_seconds=math.inf, stop=lambda: run.step >= CELL_STEPS)
        with contextlib.suppress(StoppedError):
            run.run()
        held = _bytes(run.method) + sum(t.nbytes for t in optimizer_tensors(run.optimizer).values())
        return held + len(run.ids) * run.source[0].nbytes


def _bytes(module: object) -> int:
    return sum(t.nbytes for t in module.state_dict().values())  # type: ignore[attr-defined]


def ask(what: str) -> dict[str, int]:
    """What a fresh process says."""
    command = [sys.executable, "-m", "benchmarks.memory", what]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measure_held(what: str) -> Measured:
    """Megabytes by which the process grew, once it is there."""
    told = ask(what)
    own = told["growth"] - told["mapped"]  # pages of libraries that are read for the first time are no set's
    note = f"buffers {told['held'] / MB:.1f} MB; while it is made the process grows by {told['peak'] / MB:.0f} MB"
    return Measured(max(own, told["held"]) / MB, None, 1, note)


def measure_cell(method: str) -> Measured:
    """Megabytes at the peak, over what is resident before the cell is built."""
    told = sorted((ask(method) for _ in range(CELL_REPEATS)), key=lambda each: each["peak"])[CELL_REPEATS // 2]
    note = (
        f"after training it holds {told['growth'] / MB:.0f} MB, {told['mapped'] / MB:.0f} MB of them pages of the file"
    )
    return Measured(told["peak"] / MB, told["held"] / MB, CELL_REPEATS, note)


WHAT = f"peak memory of a cell, conv4, batch 256, {CELL_ROWS:,} images 32x32x3"
ALL = "model, optimiser, data and bank"
TRIED_SET = "large support sets and banks are made unit in place, so that none is in memory twice"
TRIED = (
    "images stay mapped from disk instead of being copied; a checkpoint is written from where its tensors lie; "
    f"{TRIED_SET}; what is left above is a step's own, whatever the size of data and bank: activations, gradients, the "
    "next batch's views, and memory that lies idle between them; views and gradients are let go before the next step's "
    "activations are made, which takes less off than two runs differ by; an allocator that gives memory back at once "
    "takes 25 MB off, with page faults that are a tenth to a third of a step"
)
ROWS = [
    Row("memory-nnclr", f"{WHAT}: NNCLR", ALL, "MB", overhead(1.2), lambda: measure_cell("nnclr"), tried=TRIED),
    Row(
        "memory-instdisc",
        f"{WHAT}: InstDisc, m = 4,096",
        ALL,
        "MB",
        overhead(1.2),
        lambda: measure_cell("instdisc"),
        tried=TRIED,
    ),
    Row(
        "memory-bank",
        f"memory bank of {IMAGENET:,} x {IMAGENET_DIM}",
        "a limit",
        "MB",
        limit(700),
        lambda: measure_held("bank"),
    ),
    Row(
        "memory-support",
        f"support set of {SUPPORT:,} x {SUPPORT_DIM}",
        "a limit",
        "MB",
        limit(101.5),
        lambda: measure_held("support"),
        tried=TRIED_SET,
    ),
]

if __name__ == "__main__":
    from bench.numerics import pin

    pin("native", 1)
    print(json.dumps({each.__name__: each for each in (bank, support, nnclr, instdisc)}[sys.argv[1]]()))

"""Training NNCLR: ours against lightly's documented loop, and against the same steps on views that are ready."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.checkpoint import Checkpoints
from bench.encoders import ENCODERS
from bench.pretrain import Trainer
from benchmarks.cells import CONV4, NNCLR, SGD, WIDE, config, images
from benchmarks.rows import Measured, Row, faster
from benchmarks.timing import Candidate, Clock, Spent, cores, in_turn, least, threads
from benchmarks.views import BATCH, WORKERS, lightly_views, loader

REPEATS = 3
SHARE_STEPS, SHARE_REPEATS = 24, 5
TEMPERATURE = NNCLR["temperature"]


@dataclass(frozen=True, eq=False)
class Setup:
    """An encoder, steps of an epoch of which the middle ones count, and precisions of ours."""

    encoder: dict[str, Any]
    steps: int
    precisions: tuple[str, ...]


NARROW = Setup(CONV4, 16, ("fp32", "bf16"))
HEAVY = Setup(WIDE, 12, ("fp32",))


def train(cell: dict[str, Any], rows: int, *, kind: Callable[..., Trainer] = Trainer, on: int = 1) -> Spent:
    """Train a cell with `on` threads; what a step of it takes."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, threads(on):
        kept = Checkpoints(Path(folder))
        kind(cell, images(rows), kept, checkpoint_seconds=math.inf, report=clock).run()
    return clock.per_step


def ours(precision: str, setup: Setup) -> dict[str, Candidate]:
    """Our trainer with each number of threads."""
    rows = BATCH * setup.steps
    cell = config("nnclr", NNCLR, rows, encoder=setup.encoder, optimizer=SGD, precision=precision)
    return {f"ours, {precision}, {on} threads": partial(train, cell, rows, on=on) for on in (1, 2)}


class Documented(nn.Module):
    """The model of lightly's NNCLR example, behind our encoder in place of its ResNet-18."""

    def __init__(self, encoder: dict[str, Any]) -> None:
        from lightly.models.modules.heads import NNCLRPredictionHead, NNCLRProjectionHead

        super().__init__()
        self.backbone = ENCODERS["conv4"](3, **encoder)
        self.projection_head = NNCLRProjectionHead(self.backbone.dim, NNCLR["hidden"], NNCLR["dim"])
        self.prediction_head = NNCLRPredictionHead(NNCLR["dim"], NNCLR["predictor_hidden"], NNCLR["dim"])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return z.detach(), self.prediction_head(z)


class DocumentedLoop:
    """The loop of lightly's NNCLR example: https://docs.lightly.ai/self-supervised-learning/examples/nnclr.html.

    Args:
        workers: of its loader.
        on: threads of torch.
        setup: the encoder, and how many steps.
    """

    def __init__(self, workers: int, on: int, setup: Setup):
        from lightly.loss import NTXentLoss
        from lightly.models.modules.nn_memory_bank import NNMemoryBankModule

        torch.manual_seed(0)
        self.batches = loader(torch.from_numpy(images(BATCH * setup.steps).images[:-1]), lightly_views(), workers)
        self.model, self.criterion, self.on = Documented(setup.encoder), NTXentLoss(TEMPERATURE), on
        self.bank = NNMemoryBankModule(size=(NNCLR["support_size"], NNCLR["dim"]))
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=SGD["lr"], momentum=SGD["momentum"], weight_decay=SGD["weight_decay"]
        )

    def __call__(self) -> Spent:
        """An epoch; what a step of it takes."""
        clock = Clock()
        with threads(self.on):
            for batch in self.batches:
                self.step(batch)
                clock()
        return clock.per_step

    def step(self, batch: list[Tensor]) -> None:
        """A step of the example."""
        x0, x1 = batch[0], batch[1]
        z0, p0 = self.model(x0)
        z1, p1 = self.model(x1)
        z0 = self.bank(z0, update=False)
        z1 = self.bank(z1, update=True)
        loss = 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def theirs(setup: Setup) -> dict[str, Candidate]:
    """lightly's loop with each number of workers and of threads, but not more than three on two cores."""
    pairs = [(w, on) for w in WORKERS for on in (1, 2) if w + on <= 3]
    return {f"{w} workers, {on} threads": DocumentedLoop(w, on, setup) for w, on in pairs}


@cache
def compared(setup: Setup) -> tuple[dict[str, Spent], dict[tuple[str, str], str]]:
    """What a step takes of each side's best, and which those are: by side and by what they are best in."""
    sides = {precision: ours(precision, setup) for precision in setup.precisions} | {"theirs": theirs(setup)}
    wanted = [(side, by) for side in sides for by in ("wall", "cpu") if (side, by) != ("bf16", "wall")]
    tried = {side: in_turn(candidates, 1, warm=0) for side, candidates in sides.items()}
    picked = {(side, by): least(tried[side], by) for side, by in wanted}
    every = {name: run for candidates in sides.values() for name, run in candidates.items()}
    return in_turn({name: every[name] for name in dict.fromkeys(picked.values())}, REPEATS, warm=0), picked


def measure(by: str, precision: str, setup: Setup = NARROW) -> Measured:
    """Milliseconds of a step, each side with what suits it best, `by` wall or cpu."""
    spent, picked = compared(setup)
    own, peer = picked[precision, by], picked["theirs", by]
    a, b = (getattr(spent[name], by) for name in (own, peer))
    note = f"best of both: {own}; {peer}. Images/s: {BATCH / a:.0f} and {BATCH / b:.0f}"
    return Measured(1e3 * a, 1e3 * b, REPEATS, note)


class Ready(Trainer):
    """A trainer whose views are made beforehand.

    Args:
        views: of earlier epochs with the same order, by rows; what is missing is made and kept.
    """

    def __init__(self, *arguments: Any, views: dict[bytes, list[Tensor]], **named: Any):
        super().__init__(*arguments, **named)
        self.ready = views

    def _views(self, rows: Any, *others: Any) -> list[Tensor]:
        key = rows.tobytes()
        if key not in self.ready:
            self.ready[key] = super()._views(rows, *others)
        return self.ready[key]


def measure_share(on_cores: int) -> Measured:
    """Milliseconds of a step of the whole loop, and of one whose views are ready; one thread computes the step."""
    rows = BATCH * SHARE_STEPS
    cell = config("nnclr", NNCLR, rows, optimizer=SGD)
    ready = partial(Ready, views={})
    with cores(on_cores):
        candidates = {"whole": partial(train, cell, rows), "ready": partial(train, cell, rows, kind=ready)}
        spent = in_turn(candidates, SHARE_REPEATS)
    return Measured(1e3 * spent["whole"].wall, 1e3 * spent["ready"].wall, SHARE_REPEATS)


WHAT = "NNCLR, conv4 (width 12), 32x32x3, batch 256, SimCLR views: a step"
HEAVIER = "NNCLR, conv4 (width 16, stride 1), 32x32x3, batch 256, SimCLR views: a step"
LIGHTLY = "lightly's documented loop, best worker count"
SHARE = "NNCLR, conv4 (width 12), 32x32x3, batch 256: a step of the whole loop"
TRIED = (
    "views are what ours saves, and of a step with this encoder they are the smaller part; images and weights are "
    "`channels_last` already, and heads as 1x1 convolutions were slower (under portable numerics)"
)
TRIED_VIEWS = (
    "views in one compiled pass, image by image in the cache (130 ms to 8 ms for two of 256 images), the next "
    "batch's made by a thread while a step runs, or in turn where a step's threads take every core: such a thread "
    "holds them all up; two processes with a shard of each batch each took twice as long (150 to 163 ms a step)"
)
ROWS = [
    Row(
        "training-wall",
        f"{WHAT}, two cores",
        LIGHTLY,
        "ms",
        faster(3),
        lambda: measure("wall", "fp32"),
        tried=TRIED_VIEWS,
    ),
    Row("training-cpu", f"{WHAT}, CPU time, fp32", LIGHTLY, "ms", faster(2), lambda: measure("cpu", "fp32")),
    Row("training-cpu-bf16", f"{WHAT}, CPU time, ours bf16", LIGHTLY, "ms", faster(3), lambda: measure("cpu", "bf16")),
    Row(
        "wide-wall",
        f"{HEAVIER}, two cores",
        LIGHTLY,
        "ms",
        faster(3),
        lambda: measure("wall", "fp32", HEAVY),
        tried=TRIED,
    ),
    Row(
        "wide-cpu",
        f"{HEAVIER}, CPU time, fp32",
        LIGHTLY,
        "ms",
        faster(2),
        lambda: measure("cpu", "fp32", HEAVY),
        tried=TRIED,
    ),
    Row(
        "loop-two-cores",
        f"{SHARE}, a core free",
        "the same on views made before",
        "ms",
        faster(0.95),
        lambda: measure_share(2),
        tried=TRIED_VIEWS,
    ),
    Row(
        "loop-one-core",
        f"{SHARE}, one core",
        "the same on views made before",
        "ms",
        faster(0.92),
        lambda: measure_share(1),
        tried=TRIED_VIEWS,
    ),
]

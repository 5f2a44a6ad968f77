"""A training step of any method on noise, with as large a bank as is asked for: the trainer's order, not its loop."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.build import build_encoder
from bench.methods import METHODS
from bench.methods.base import Batch, DataInfo, Method, Progress
from benchmarks.cells import CONV4
from benchmarks.views import SIDE

SMALL = {"name": "conv4", "options": CONV4}
RESNET18 = {"name": "resnet18", "options": {"stem": "small", "zero_init_residual": False}}


def build(method: str, options: dict[str, Any], rows: int, encoder: dict[str, Any] = SMALL) -> Method:
    """A method that trains on so many images."""
    f = build_encoder(encoder, 3, 0)
    made = METHODS[method](f, DataInfo(rows, 10, 3, SIDE), seed=0, **options)
    return made.to(memory_format=torch.channels_last).train()


def batch(size: int, rows: int, views: int) -> Batch:
    """Noise in place of views; images are drawn from all `rows`."""
    generator = torch.Generator().manual_seed(0)
    shown = [torch.rand(size, 3, SIDE, SIDE, generator=generator) for _ in range(views)]
    index = torch.randperm(rows, generator=generator)[:size]
    laid_out = [x.contiguous(memory_format=torch.channels_last) for x in shown]
    return Batch(laid_out, index, index % 10, torch.zeros_like(index), 0, 0)


class Step:
    """A step of a method.

    Args:
        method: what is trained.
        shown: the batch; each step has other random numbers.
    """

    def __init__(self, method: Method, shown: Batch):
        self.method, self.batch, self.count = method, shown, 0
        self.optimizer = torch.optim.SGD(method.parameters(), lr=1e-3, momentum=0.9, foreach=False)

    def __call__(self) -> None:
        shown = replace(self.batch, epoch=self.count, step=self.count)
        e = self.method.embed(shown)
        self._move(self.loss(e, shown))
        self.after({name: tensor.detach() for name, tensor in e.items()}, shown)
        self.count += 1

    def _move(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def loss(self, e: dict[str, Tensor], shown: Batch) -> Tensor:
        """The method's own."""
        return self.method.loss(e, shown)[0]

    def after(self, e: dict[str, Tensor], shown: Batch) -> None:
        """What follows the optimiser."""
        self.method.after_step(e, shown, Progress(self.count, self.count + 1, 0))


class Bare(Step):
    """The same step with a loss that costs nothing, and nothing after it."""

    def loss(self, e: dict[str, Tensor], shown: Batch) -> Tensor:
        return torch.stack([tensor.square().mean() for tensor in e.values()]).sum()

    def after(self, e: dict[str, Tensor], shown: Batch) -> None:
        pass

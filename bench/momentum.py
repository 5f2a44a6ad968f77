"""Momentum branches: copies of modules that follow them slowly, and how their momentum rises."""

import copy
import math

import torch
from torch import Tensor, nn

DIGITS = 12  # of a momentum: cos differs in its last bits between C libraries


class Momentum(nn.Module):
    """The exponential moving average of the parameters of modules that are run one after the other.

    It starts as a copy of them. The average covers parameters; batch-norm statistics are the branch's own. No
    gradient reaches it.

    Args:
        online: the modules to follow, in order.
    """

    def __init__(self, *online: nn.Module):
        super().__init__()
        self.average = nn.Sequential(*(copy.deepcopy(module) for module in online)).requires_grad_(False)
        self._online = online  # a tuple: theirs are not parameters of the branch

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.average(x)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Let average = momentum * average + (1 - momentum) * online."""
        theirs = (p for module in self._online for p in module.parameters())
        for average, online in zip(self.average.parameters(), theirs, strict=True):
            average.mul_(momentum).add_(online, alpha=1 - momentum)


def cosine_to_one(base: float, step: int, steps: int) -> float:
    """1 - (1 - base) (cos(pi step / steps) + 1) / 2: base at step 0, 1 at `steps` (BYOL, 2006.07733, sec. 3.3)."""
    return float(f"{1 - (1 - base) * (math.cos(math.pi * step / steps) + 1) / 2:.{DIGITS}g}")

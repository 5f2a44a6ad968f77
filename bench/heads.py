"""Projection and prediction heads."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from bench.options import Head

Last = Literal["linear", "unbiased", "norm", "plain_norm"]


class Projector(nn.Sequential):
    """A projection head: representations h to projections z.

    Args:
        inputs: dimensions of h.
        head: "mlp"; "linear", its last layer alone; or "none": z is h, whatever `dim` says.
        hidden: widths of the mlp's hidden layers.
        dim: of z.
        last: as `mlp` takes it.
        norm: likewise.
    """

    dim: int

    def __init__(self, inputs: int, head: Head, hidden: Sequence[int], dim: int, *, last: Last, norm: bool = True):
        if head == "none":
            super().__init__()
        else:
            super().__init__(*mlp([inputs, *(hidden if head == "mlp" else []), dim], last=last, norm=norm))
        self.dim = inputs if head == "none" else dim


def mlp(widths: Sequence[int], *, last: Last, norm: bool = True) -> nn.Sequential:
    """Linear layers of the given widths; batch normalisation and ReLU after all but the last.

    Args:
        widths: input, hidden and output widths: (d_in, ..., d_out). A bias stands only where no batch
            normalisation follows.
        last: what the last layer is: "linear" (with a bias), "unbiased", or unbiased and followed by batch
            normalisation with ("norm") or without ("plain_norm") a scale and shift of its own.
        norm: batch normalisation after the hidden layers.
    """
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(widths[:-1]):
        layers.append(nn.Linear(d_in, d_out, bias=not norm))
        layers += [nn.BatchNorm1d(d_out)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last == "linear"))
    if last in ("norm", "plain_norm"):
        layers.append(nn.BatchNorm1d(widths[-1], affine=last == "norm"))
    return nn.Sequential(*layers)

"""Projection and prediction heads."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

Last = Literal["linear", "unbiased", "norm", "plain_norm"]


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

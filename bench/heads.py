"""Projection and prediction heads."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(widths: Sequence[int], *, last_norm: bool) -> nn.Sequential:
    """Linear layers of the given widths; batch normalisation and ReLU after all but the last.

    Args:
        widths: input, hidden and output widths: (d_in, ..., d_out). Biases stand only where no batch
            normalisation follows.
        last_norm: batch normalisation, without ReLU, after the last layer too.
    """
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(widths[:-1]):
        layers += [nn.Linear(d_in, d_out, bias=False), nn.BatchNorm1d(d_out), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1]))
    return nn.Sequential(*layers)

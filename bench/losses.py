"""Losses that several methods share: pure functions of computed tensors."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def precise(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The same numbers in at least single precision: half precision loses the loss."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """Rows of unit length, in at least single precision."""
    return F.normalize(precise(x), dim=-1)


def scaled(x: Float[Tensor, "... d"], *, normalize: bool) -> Float[Tensor, "... d"]:
    """Rows of unit length, or else of the length they have; in at least single precision."""
    return unit(x) if normalize else precise(x)


def similarities(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, normalize: bool = True) -> Float[Tensor, "n m"]:
    """Cosines of every row of a with every row of b, or else their products; never in half precision."""
    with torch.autocast(a.device.type, enabled=False):
        return scaled(a, normalize=normalize) @ scaled(b, normalize=normalize).mT  # (n, m)


def info_nce(
    anchors: Float[Tensor, "n d"], candidates: Float[Tensor, "n d"], temperature: float, *, normalize: bool = True
) -> Float[Tensor, ""]:
    """InfoNCE (van den Oord et al., 1807.03748, eq. 4), one direction, mean over rows.

    Row i's positive is candidate i; the other candidates are its negatives. Both are normalised here, unless
    `normalize` is false. At chance, and at collapse, it is ln n.
    """
    logits = similarities(anchors, candidates, normalize=normalize) / temperature  # (n, n)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def spread(z: Float[Tensor, "n d"]) -> float:
    """Standard deviation of the entries of unit rows, mean over entries: about 1 / sqrt(d), and 0 at collapse.

    What SimSiam (Chen and He, 2011.10566, section 4.1) watches for collapse.
    """
    return unit(z).std(0, correction=0).mean().item()

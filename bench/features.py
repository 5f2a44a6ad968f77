"""Representations of clean images: what evaluators see of a trained method."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from bench.augment import to_float
from bench.encoders.base import Encoder
from bench.encoders.layers import pool_to

STATE = "method.safetensors"  # of a finished pretraining cell
BATCH = 256  # fixed: batch-normalised layers in eval mode give the same bits only at one batch size


def extract(module: nn.Module, images: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n d"]:
    """Embed clean images in eval mode and without gradients; the module is left as it was."""
    device = next(module.parameters()).device
    return torch.cat([_embed(module, to_float(chunk.to(device))) for chunk in images.split(BATCH)])


def _embed(module: nn.Module, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """In eval mode and without gradients; every part's mode is put back."""
    modes = {part: part.training for part in module.modules()}
    device = next(module.parameters()).device
    module.eval()
    try:
        with torch.no_grad():
            return module(x.to(device)).float()
    finally:
        for part, training in modes.items():
            part.training = training


class Trained:
    """A pretrained encoder, or raw pixels: images in, features out.

    Args:
        encoder: the encoder, or None for raw pixels.
        device: where features are wanted.
        snapshots: the same encoder after earlier epochs.
        projector: the method's, h to z; None for a method without one.
    """

    def __init__(
        self,
        encoder: Encoder | None,
        device: str = "cpu",
        snapshots: Mapping[int, "Trained"] | None = None,
        projector: nn.Module | None = None,
    ):
        self.encoder, self.device, self.snapshots = encoder, device, dict(snapshots or {})
        self.projector = projector

    @property
    def places(self) -> list[str]:
        """Where features can be taken: h, z where there is a projection, and the encoder's layers."""
        projection = [] if self.projector is None else ["z"]
        return ["h", *projection, *(self.encoder.layers() if self.encoder else [])]

    def features(
        self, x: UInt8[Tensor, "n h w c"], at: str = "h", dimensions: int | None = None
    ) -> Float[Tensor, "n d"]:
        """Features of clean images, in eval mode and without gradients.

        Args:
            x: (n, h, w, c) uint8 images.
            at: one of `places`; raw pixels are h.
            dimensions: a layer's map is average-pooled to about so many: the nearest side of a square of them.

        Raises:
            ValueError: features are not there.
        """
        if at not in self.places:
            raise ValueError(f"features at '{at}' are not there; allowed: {', '.join(self.places)}")
        if self.encoder is None:
            return to_float(x).flatten(1).to(self.device)
        if at == "z":
            assert self.projector is not None
            return extract(nn.Sequential(self.encoder, self.projector), x)
        return extract(self.encoder if at == "h" else _Layer(self.encoder, at, dimensions), x)

    def embed(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Representations h of float images, such as augmented views, in eval mode and without gradients."""
        if self.encoder is None:
            return x.flatten(1).to(self.device)
        return _embed(self.encoder, x)


class _Layer(nn.Module):
    """An encoder up to the map of one of its layers, flattened."""

    def __init__(self, encoder: Encoder, name: str, dimensions: int | None):
        super().__init__()
        self.encoder, self.layer, self.dimensions = encoder, encoder.layers()[name], dimensions

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        maps: list[Tensor] = []
        handle = self.layer.register_forward_hook(lambda module, inputs, output: maps.append(output.clone()))
        try:
            self.encoder(x)
        finally:
            handle.remove()
        found = maps[0]  # (n, c, h, w); a copy: what follows may change it in place
        if self.dimensions is not None:
            side = max(1, round(math.sqrt(self.dimensions / found.shape[1])))
            found = pool_to(found, min(side, *found.shape[2:]))
        return found.flatten(1)

"""Representations of clean images: what evaluators see of a trained method."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from bench.augment import to_float
from bench.encoders import ENCODERS
from bench.encoders.base import Encoder
from bench.random import derive

BATCH = 256  # fixed: batch-normalised layers in eval mode give the same bits only at one batch size


def build_encoder(config: Mapping[str, Any], channels: int, seed: int) -> Encoder:
    """The encoder of a seed, before any training: the same one for every method.

    Args:
        config: `name` and `options` of the encoder.
        channels: channels of the images.
        seed: the cell's seed; torch's generator starts from its address.
    """
    torch.manual_seed(derive(seed, "encoder"))
    return ENCODERS[config["name"]](channels, **config["options"])


def extract(module: nn.Module, images: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n d"]:
    """Embed clean images in eval mode and without gradients; the module's mode is put back."""
    training = module.training
    device = next(module.parameters()).device
    module.eval()
    with torch.no_grad():
        parts = [module(to_float(chunk.to(device))).float() for chunk in images.split(BATCH)]
    module.train(training)
    return torch.cat(parts)


class Trained:
    """A pretrained encoder, or raw pixels: images in, features out.

    Args:
        encoder: the encoder, or None for raw pixels.
    """

    def __init__(self, encoder: Encoder | None):
        self.encoder = encoder

    def features(self, x: UInt8[Tensor, "n h w c"], at: str = "h") -> Float[Tensor, "n d"]:
        """Features of clean images.

        Args:
            x: (n, h, w, c) uint8 images.
            at: "h", the representation; the only one yet.

        Raises:
            ValueError: another `at`.
        """
        if at != "h":
            raise ValueError(f"features at '{at}' are not there; allowed: h")
        if self.encoder is None:
            return to_float(x).flatten(1)
        return extract(self.encoder, x)

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

STATE = "method.safetensors"  # of a finished pretraining cell
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


def trained_encoder(config: Mapping[str, Any], channels: int, state: Mapping[str, Tensor]) -> Encoder:
    """The encoder of a finished cell, from its published state."""
    encoder = build_encoder(config["encoder"], channels, config["seed"])
    encoder.load_state_dict({k.removeprefix("encoder."): t for k, t in state.items() if k.startswith("encoder.")})
    return encoder.to(config["device"], memory_format=torch.channels_last)  # type: ignore[call-overload]


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
        device: where features are wanted.
        snapshots: the same encoder after earlier epochs.
    """

    def __init__(self, encoder: Encoder | None, device: str = "cpu", snapshots: Mapping[int, "Trained"] | None = None):
        self.encoder, self.device, self.snapshots = encoder, device, dict(snapshots or {})

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
            return to_float(x).flatten(1).to(self.device)
        return extract(self.encoder, x)

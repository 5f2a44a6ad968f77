"""Encoders that were trained elsewhere, as evaluations see them: an imported cell, and the images' normalisation."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.build import build_encoder
from bench.checkpoint import load_tensors
from bench.encoders.base import Encoder
from bench.features import Trained
from bench.files import read_json

ENCODER = "encoder.safetensors"  # of an imported cell


class Normalised(Encoder):
    """An encoder that wants images less a mean, over a standard deviation, per channel.

    Args:
        encoder: what sees the normalised images.
        mean: one number per channel of images in [0, 1].
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.encoder, self.dim = encoder, encoder.dim
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.encoder((x - self.mean) / self.std)  # (n, dim)

    def layers(self) -> dict[str, nn.Module]:
        return self.encoder.layers()


def load_imported(source: Path, device: str) -> Trained:
    """The encoder of an imported cell; it has no snapshots and no projection.

    Args:
        source: the cell's folder.
        device: where features are wanted.
    """
    config = read_json(source / "cell.json")["config"]
    encoder = build_encoder(config["encoder"], config["channels"], config["seed"])
    encoder.load_state_dict(load_tensors(source / ENCODER).tensors)
    if config["normalise"] is not None:
        encoder = Normalised(encoder, **config["normalise"])
    encoder = encoder.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Trained(encoder, device)

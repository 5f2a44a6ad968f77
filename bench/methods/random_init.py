"""Random initialisation: the encoder that every method starts from at the same seed, untrained.

The baseline under every table: what a method adds is its distance from this row.
"""

from typing import ClassVar

from torch import Tensor

from bench.encoders.base import Encoder
from bench.methods.base import Batch, DataInfo, Method


class RandomInit(Method):
    """The initial encoder itself."""

    title: ClassVar[str] = "Random init"
    trains: ClassVar[bool] = False

    def __init__(self, encoder: Encoder, data: DataInfo, *, seed: int):
        super().__init__(encoder)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        return {"h": self.encoder(batch.views[0])}  # (n, dim)

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return 0.0 * e["h"].sum(), {}

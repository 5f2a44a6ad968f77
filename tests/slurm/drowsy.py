"""A method whose steps take as long as it is told, and that fails in the ways it is told."""

import time
from typing import ClassVar

from torch import Tensor

from bench.encoders.base import Encoder
from bench.methods.base import Batch, DataInfo, Method
from bench.options import NonNegative, NonNegativeInt

FAULT_STEP = 2


class Drowsy(Method):
    """Pulls representations towards zero, slowly."""

    title: ClassVar[str] = "drowsy"
    views: ClassVar[int] = 2

    def __init__(
        self,
        encoder: Encoder,
        data: DataInfo,
        *,
        seed: int,
        seconds: NonNegative,
        megabytes: NonNegativeInt,
        fault: NonNegativeInt,
    ):
        super().__init__(encoder)
        self.seconds, self.megabytes, self.fault = seconds, megabytes, fault

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        return {f"h{i}": self.encoder(x) for i, x in enumerate(batch.views)}

    def loss(self, e: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        time.sleep(self.seconds)
        if self.megabytes and batch.step == FAULT_STEP:
            kept = b"\1" * (self.megabytes << 20)  # written, so that the memory is really taken
            time.sleep(5)
            del kept
        if self.fault and batch.step == FAULT_STEP:
            raise RuntimeError(f"told to fail with {self.fault}")
        return e["h0"].square().mean() + e["h1"].square().mean(), {}

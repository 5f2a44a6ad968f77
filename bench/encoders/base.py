"""What an encoder is."""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """An encoder f: images to representations h.

    Subclasses take `channels` and keyword-only options without defaults, and set `dim`.
    """

    smallest: ClassVar[int] = 1
    """Smallest side, in pixels, of an image it takes."""
    dim: int

    @abstractmethod
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Images to representations h (n, dim)."""

    @abstractmethod
    def layers(self) -> dict[str, nn.Module]:
        """Modules whose outputs are the maps that papers probe: "layer1" (their conv1) and on, in order."""

"""ResNet-50 (He et al., 1512.03385, table 1): bottleneck blocks.

torchvision puts the stride of a block on its 3x3 convolution, the paper on its first 1x1 convolution.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import resnet50

from bench.encoders.base import Encoder
from bench.encoders.resnet import build_trunk, stages

DIM = 2048  # channels of the last stage


class ResNet50(Encoder):
    """torchvision's ResNet-50 without its classifier; h is the mean of the last map.

    Args:
        channels: channels of the images.
        stem: "imagenet" divides the side of the image by 4 before the first stage, "small" keeps it.
        zero_init_residual: start every block as its shortcut.
    """

    def __init__(self, channels: int, *, stem: Literal["imagenet", "small"], zero_init_residual: bool):
        super().__init__()
        self.trunk = build_trunk(resnet50, channels, stem, zero_init_residual)
        self.dim = DIM

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.trunk(x)  # (n, dim)

    def layers(self) -> dict[str, nn.Module]:
        return stages(self.trunk)

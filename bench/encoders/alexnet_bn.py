"""AlexNet with batch normalisation in place of local response normalisation (Caron et al., 1807.05520, sec. 3.3).

Filters, strides and paddings are those of DeepCluster's released code.
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from bench.encoders.base import Encoder
from bench.encoders.layers import fully_connected, init_weights, numbered, pool_to
from bench.encoders.sobel import Sobel
from bench.options import PositiveInt

WIDTHS = (96, 256, 384, 384, 256)


class AlexNetBN(Encoder):
    """Five convolutions with three max poolings, then two fully connected layers; h is fc7 before its ReLU.

    Args:
        channels: channels of the images.
        sobel: see Sobel filters of the images, not the images.
        pooled: side of the map that the fully connected layers see; 224 pixels give 6 without pooling.
        fc_width: units of fc6 and of fc7, and so dim; 4096 in the paper.
    """

    smallest: ClassVar[int] = 63

    def __init__(self, channels: int, *, sobel: bool, pooled: PositiveInt, fc_width: PositiveInt):
        super().__init__()
        self.sobel = Sobel(channels) if sobel else nn.Identity()
        self.features = _features(Sobel.channels_out if sobel else channels)
        self.fully_connected = fully_connected(WIDTHS[-1] * pooled**2, fc_width, drop_inputs=True)
        self.pooled, self.dim = pooled, fc_width
        init_weights(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        x = self.features(self.sobel(x))  # (n, 256, a, b), (n, 256, 6, 6) at 224 pixels
        return self.fully_connected(pool_to(x, self.pooled).flatten(1))  # (n, dim)

    def layers(self) -> dict[str, nn.Module]:
        return numbered(module for module in self.features if isinstance(module, nn.ReLU))


def _features(channels: int) -> nn.Sequential:
    a, b, c, d, e = WIDTHS
    return nn.Sequential(
        *_convolution(channels, a, 11, stride=4, padding=2),
        nn.MaxPool2d(3, stride=2),
        *_convolution(a, b, 5, padding=2),
        nn.MaxPool2d(3, stride=2),
        *_convolution(b, c, 3, padding=1),
        *_convolution(c, d, 3, padding=1),
        *_convolution(d, e, 3, padding=1),
        nn.MaxPool2d(3, stride=2),
    )


def _convolution(channels: int, width: int, kernel: int, padding: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, width, kernel, stride=stride, padding=padding)
    return convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)

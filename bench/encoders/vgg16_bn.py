"""VGG-16 with batch normalisation (Simonyan and Zisserman, 1409.1556, configuration D; as in Caron et al., 1807.05520).

Fully connected layers and dropout (before fc7 only) are those of DeepCluster's released code.
"""

from itertools import pairwise
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from bench.encoders.base import Encoder
from bench.encoders.layers import fully_connected, init_weights, numbered, pool_to
from bench.encoders.sobel import Sobel
from bench.options import PositiveInt

WIDTHS = [width for width in cfgs["D"] if width != "M"]  # "M" is a max pooling


class VGG16BN(Encoder):
    """torchvision's convolutions, then two fully connected layers; h is fc7 before its ReLU.

    Args:
        channels: channels of the images.
        sobel: see Sobel filters of the images, not the images.
        pooled: side of the map that the fully connected layers see; 224 pixels give 7 without pooling.
        fc_width: units of fc6 and of fc7, and so dim; 4096 in the papers.
    """

    smallest: ClassVar[int] = 32

    def __init__(self, channels: int, *, sobel: bool, pooled: PositiveInt, fc_width: PositiveInt):
        super().__init__()
        self.sobel = Sobel(channels) if sobel else nn.Identity()
        # `vgg16_bn(...).features`, without first filling its 120 million fully connected weights
        self.features = make_layers(cfgs["D"], batch_norm=True)
        self.features[0] = nn.Conv2d(Sobel.channels_out if sobel else channels, WIDTHS[0], 3, padding=1)
        self.fully_connected = fully_connected(WIDTHS[-1] * pooled**2, fc_width, drop_inputs=False)
        self.pooled, self.dim = pooled, fc_width
        init_weights(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        x = self.features(self.sobel(x))  # (n, 512, a, b), (n, 512, 7, 7) at 224 pixels
        return self.fully_connected(pool_to(x, self.pooled).flatten(1))  # (n, dim)

    def layers(self) -> dict[str, nn.Module]:
        """The last ReLU before each of the five poolings."""
        pairs = pairwise(self.features)
        return numbered(module for module, after in pairs if isinstance(after, nn.MaxPool2d))

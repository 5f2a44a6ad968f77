"""What ResNet-18 and ResNet-50 share: torchvision's trunk behind one of two stems (He et al., 1512.03385).

The stem `imagenet` is the paper's (table 1): 7x7 convolution of stride 2, then 3x3 max pooling of stride 2.
`small` is one 3x3 convolution of stride 1 and no max pooling, for images of some 32 pixels (sec. 4.2; on the
ResNets here SimCLR, 2002.05709, appendix B.9).
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import ResNet

from bench.encoders.layers import numbered

STEMS = {"imagenet": (7, 2, 3), "small": (3, 1, 1)}  # kernel, stride, padding


def build_trunk(constructor: Callable[..., ResNet], channels: int, stem: str, zero_init_residual: bool) -> ResNet:
    """A ResNet that maps images (n, channels, h, w) to h (n, dim), with torchvision's parameter names.

    Args:
        constructor: of torchvision's ResNet.
        channels: channels of the images.
        stem: a key of `STEMS`.
        zero_init_residual: start the last batch normalisation of each block with weight 0, so that the
            block is its shortcut (Goyal et al., 1706.02677, sec. 5.1).
    """
    trunk = constructor(weights=None, zero_init_residual=zero_init_residual)
    trunk.conv1 = nn.Conv2d(channels, trunk.conv1.out_channels, *STEMS[stem], bias=False)
    nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
    if stem == "small":
        trunk.maxpool = nn.Identity()
    trunk.avgpool = _Mean()
    trunk.fc = nn.Identity()
    return trunk


def stages(trunk: ResNet) -> dict[str, nn.Module]:
    """The stem up to its ReLU and the four stages: conv1 to conv5 of the paper's table 1."""
    return numbered([trunk.relu, trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4])


class _Mean(nn.Module):
    """Average pooling to 1x1: torch's adaptive one has no deterministic gradient on CUDA."""

    def forward(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d"]:
        return x.mean((2, 3))  # (n, d)

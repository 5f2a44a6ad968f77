"""Four 3x3 convolutions: the small encoder of few-shot learning (Vinyals et al., 1606.04080, sec. 4).

Here the widths double up to 8w (w, 2w, 4w, 8w, 8w), blocks two and three halve the image by stride, and the last map
is averaged to 2x2, so that dim = 32 w with four blocks, at any image size. Two, three or five `blocks` are an ablation
of depth.
"""

from itertools import pairwise
from typing import Annotated

from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor, nn

from bench.encoders.base import Encoder
from bench.encoders.layers import numbered, pool_to
from bench.encoders.sobel import Sobel
from bench.options import PositiveInt

STRIDE = 2
POOLED = 2
GROWTH = (1, 2, 4, 8, 8)  # of the width, by block


class Conv4(Encoder):
    """Blocks of convolution, batch normalisation and ReLU, then adaptive 2x2 average pooling.

    Args:
        channels: channels of the images.
        width: w, the channels of the first block; the others have 2w, 4w, 8w and 8w.
        blocks: how many; four but for ablations.
        stem_stride: stride of the first block.
        sobel: Sobel filters in place of colour.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: PositiveInt,
        blocks: Annotated[int, Interval(ge=2, le=5)],
        stem_stride: PositiveInt,
        sobel: bool,
    ):
        super().__init__()
        self.sobel = Sobel(channels) if sobel else nn.Identity()
        widths = [Sobel.channels_out if sobel else channels, *(width * factor for factor in GROWTH[:blocks])]
        strides = [stem_stride, STRIDE, STRIDE, 1, 1]
        pairs = zip(pairwise(widths), strides[:blocks], strict=True)
        self.blocks = nn.Sequential(*(_block(*pair, stride) for pair, stride in pairs))
        self.dim = widths[-1] * POOLED**2

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return pool_to(self.blocks(self.sobel(x)), POOLED).flatten(1)  # (n, dim)

    def layers(self) -> dict[str, nn.Module]:
        return numbered(self.blocks)


def _block(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )

"""Sobel filters in place of colour: DeepCluster's fixed input transform (Caron et al., 1807.05520, sec. 3.3).

The released code has the weights: gray is the plain mean of the channels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ACROSS = [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]


class Sobel(nn.Module):
    """Images to gray, then to their differences across columns and across rows.

    Its weights are buffers: nothing trains them, and a state holds them.

    Args:
        channels: channels of the images.
    """

    channels_out = 2
    gray: Tensor
    filters: Tensor

    def __init__(self, channels: int):
        super().__init__()
        across = torch.tensor(ACROSS)
        self.register_buffer("gray", torch.full((1, channels, 1, 1), 1 / channels))
        self.register_buffer("filters", torch.stack([across, across.T])[:, None])  # (2, 1, 3, 3)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 2 h w"]:
        x = F.conv2d(x, self.gray)  # (n, 1, h, w)
        return F.conv2d(x, self.filters, padding=1)  # (n, 2, h, w)

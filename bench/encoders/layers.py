"""What encoders share: pooling, and AlexNet's and VGG-16's fully connected layers and first weights.

The latter are those of DeepCluster's released code (Caron et al., 1807.05520, sec. 3.3).
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

DROPOUT = 0.5
LINEAR_STD = 0.01


def pool_to(x: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c s s"]:
    """Adaptive average pooling to side x side; a map of that side is left as it is.

    Equal to torch's own, which has no deterministic gradient on CUDA.
    """
    if x.shape[2:] == (side, side):
        return x
    if not any(length % side for length in x.shape[2:]):
        return F.avg_pool2d(x, [length // side for length in x.shape[2:]])
    rows, columns = (_cells(length, side) for length in x.shape[2:])
    return torch.stack([x[:, :, r, c].mean((2, 3)) for r in rows for c in columns], 2).unflatten(2, (side, side))


def _cells(length: int, side: int) -> list[slice]:
    """The `side` parts of a length; neighbours share what does not divide."""
    return [slice(i * length // side, -(-(i + 1) * length // side)) for i in range(side)]


def numbered(modules: Iterable[nn.Module]) -> dict[str, nn.Module]:
    """Modules as "layer1" and on."""
    return {f"layer{i}": module for i, module in enumerate(modules, 1)}


def fully_connected(inputs: int, width: int, *, drop_inputs: bool) -> nn.Sequential:
    """(n, inputs) to fc7 (n, width) before its ReLU, which is what DeepCluster clusters; dropout before fc7.

    Args:
        inputs: to fc6.
        width: of fc6 and fc7.
        drop_inputs: dropout before fc6 too.
    """
    return nn.Sequential(
        nn.Dropout(DROPOUT if drop_inputs else 0.0),
        nn.Linear(inputs, width),  # fc6
        nn.ReLU(inplace=True),
        nn.Dropout(DROPOUT),
        nn.Linear(width, width),  # fc7
    )


def init_weights(module: nn.Module) -> None:
    """Convolutions k x k to `out` channels N(0, sqrt(2 / (k k out))), linear layers N(0, 0.01), biases 0.

    Batch normalisation keeps what torch gives it: weight 1, bias 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, 0, LINEAR_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

"""The numerics probe: a few hundred operations and 20 training steps, hashed part by part.

Two machines whose probes are equal are expected to give byte-identical results; where they differ, the
first part that does tells which kind of operation is to blame. The inputs are addressed numbers, which
are exact everywhere. Import this only after the pins are set.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.augment import make_views
from bench.encoders.conv4 import Conv4
from bench.files import read_json, write_json
from bench.fingerprint import code_hash
from bench.methods.base import DataInfo
from bench.methods.simclr import SimCLR, nt_xent
from bench.numerics import environment
from bench.random import Address

STEPS = 20
ROWS = 64
SIDE = 28
RECIPE: dict[str, Any] = {
    "views": [
        {
            "count": 2,
            "size": SIDE,
            "ops": [
                {"crop": {"scale": [0.2, 1.0], "ratio": [0.75, 1.3333]}},
                {"jitter": dict.fromkeys(("brightness", "contrast", "saturation"), 0.4) | {"hue": 0.1, "p": 0.8}},
                {"grayscale": {"p": 0.2}},
            ],
        }
    ]
}


def probe(device: str = "cpu") -> dict[str, str]:
    """A hash for each part, in the order in which a difference would first show."""
    return {name: _digest(part(device)) for name, part in PARTS.items()}


def cached_probe(folder: Path, device: str) -> dict[str, str]:
    """The probe of this machine, kept in a folder by CPU or GPU, versions and pins: it takes seconds."""
    about = environment(device)
    name = hashlib.sha256(json.dumps([about, code_hash(["bench.probe"])]).encode()).hexdigest()
    path = folder / "probes" / f"{name[:16]}.json"
    if not path.is_file():
        write_json(path, {"environment": about, "probe": probe(device)})
    hashes: dict[str, str] = read_json(path)["probe"]
    return hashes


def _digest(tensors: list[Tensor]) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def _numbers(device: str, *shape: int) -> Tensor:
    """Addressed float32 numbers in (-2, 2)."""
    op = "x".join(map(str, shape))
    u = Address(0, "probe", np.arange(shape[0])).uniform(op, int(np.prod(shape[1:])))
    return torch.from_numpy((u * 4 - 2).astype(np.float32)).reshape(shape).to(device)


def _elementwise(device: str) -> list[Tensor]:
    out = []
    for n in (1, 7, 8, 63, 1000):
        x = _numbers(device, n, 5)
        positive = x.abs() + 0.1
        out += [x.exp(), x.tanh(), x.sigmoid(), x.cos(), x.sin(), x.double().exp()]
        out += [positive.log(), positive.rsqrt(), positive**1.7]
    return out


def _reductions(device: str) -> list[Tensor]:
    out = []
    for shape in ((3, 7), (17, 129), (64, 1000)):
        x = _numbers(device, *shape)
        out += [x.sum(1), x.mean(0), x.norm(dim=1), x.var(0), x.cumsum(1), x.double().sum(1)]
        out += [x.softmax(1), x.log_softmax(1), x.logsumexp(1)]
    return out


def _products(device: str) -> list[Tensor]:
    out = []
    for n, k, m in ((1, 5, 3), (17, 33, 65), (256, 128, 256), (100, 784, 10)):
        a, b = _numbers(device, n, k), _numbers(device, m, k)
        out += [a @ b.mT, a.double() @ b.double().mT, torch.bmm(a[None], b.mT[None])]
    return out


def _convolutions(device: str) -> list[Tensor]:
    out = []
    for channels, width, stride in ((1, 16, 1), (3, 16, 2), (16, 32, 2), (64, 128, 1)):
        x = _numbers(device, 8, channels, 14, 14).to(memory_format=torch.channels_last)
        weight = _numbers(device, width, channels, 3, 3).to(memory_format=torch.channels_last)
        x.requires_grad_()
        weight.requires_grad_()
        y = F.conv2d(x, weight, stride=stride, padding=1)
        out += [y, *torch.autograd.grad(y.square().sum(), [x, weight])]
    return out


def _normalisation(device: str) -> list[Tensor]:
    out = []
    for channels in (16, 24, 128):
        x = _numbers(device, 16, channels, 7, 7).to(memory_format=torch.channels_last).requires_grad_()
        layer = nn.BatchNorm2d(channels).to(device)
        y = layer(x)
        assert layer.running_var is not None
        out += [y, layer.running_var, *torch.autograd.grad((y.square() * x).sum(), [x])]
    return out


def _initialisation(device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)  # weights are drawn on the CPU, whatever trains them
    return [torch.randn(1000, generator=generator), torch.rand(1000, generator=generator)]


def _augmentation(device: str) -> list[Tensor]:
    return _views(device, 0)


def _training(device: str) -> list[Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Conv4(3, width=8, blocks=4, stem_stride=1, sobel=False)
        data = DataInfo(ROWS, 10, 3, SIDE)
        method = SimCLR(
            encoder, data, candidates="all", seed=0, temperature=0.2, normalize=True, head="mlp", hidden=64, dim=32
        )
    method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3, fused=True)
    losses = []
    for step in range(STEPS):
        z1, z2 = (method.projector(encoder(x)) for x in _views(device, step))
        loss = nt_xent(z1, z2, 0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss)
    return [*losses, *method.state_dict().values()]


def _views(device: str, epoch: int) -> list[Tensor]:
    rows = np.arange(ROWS)
    words = Address(0, "probe", rows).words("images", SIDE * SIDE * 3)
    images = (words >> np.uint32(24)).astype(np.uint8).reshape(ROWS, SIDE, SIDE, 3)
    return make_views(RECIPE, torch.from_numpy(images).to(device), Address(0, "probe", rows, epoch))


PARTS = {
    "elementwise": _elementwise,
    "reductions": _reductions,
    "products": _products,
    "convolutions": _convolutions,
    "normalisation": _normalisation,
    "initialisation": _initialisation,
    "augmentation": _augmentation,
    "training": _training,
}

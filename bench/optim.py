"""Optimisers, which parameters decay, and the learning rate over training."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bench.methods.base import ParameterGroup

DIGITS = 12  # of a learning rate: cos differs in its last bits between C libraries


def build(module: nn.Module, groups: Iterable[ParameterGroup], options: Mapping[str, Any]) -> Optimizer:
    """An optimiser over a method's parameter groups.

    Args:
        module: the method.
        groups: names of parameters with factors of the learning rate and the weight decay.
        options: `name`, `lr`, `weight_decay`, `decay_norm_bias` and the optimiser's own.
    """
    parameters = dict(module.named_parameters())
    built: list[dict[str, Any]] = []
    for group in groups:
        chosen = [parameters[name] for name in group.names]
        decay = options["weight_decay"] * group.decay
        bare = decay if options["decay_norm_bias"] else 0.0
        for members, weight_decay in (
            ([p for p in chosen if p.ndim > 1], decay),
            ([p for p in chosen if p.ndim <= 1], bare),
        ):
            if members:
                built.append({"params": members, "weight_decay": weight_decay, "lr_factor": group.lr})
    return _OPTIMIZERS[options["name"]](built, options)


def _sgd(groups: list[dict[str, Any]], options: Mapping[str, Any]) -> Optimizer:
    return torch.optim.SGD(groups, lr=options["lr"], momentum=options["momentum"], foreach=False)


def _adamw(groups: list[dict[str, Any]], options: Mapping[str, Any]) -> Optimizer:
    return torch.optim.AdamW(groups, lr=options["lr"], foreach=False)


class Lars(Optimizer):
    """LARS (You et al., 1708.03888, algorithm 1), the learning rate inside the momentum as SimCLR has it.

    v = momentum v + lr trust (g + decay w); w = w - v. Matrices and kernels have
    trust = eta |w| / |g + decay w|, or 1 where either norm is 0; biases and normalisation have 1.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float, eta: float):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "eta": eta, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad + group["weight_decay"] * p
                if p.ndim > 1:
                    update = update * _trust(p, update, group["eta"])
                state = self.state[p]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(p)
                state["velocity"].mul_(group["momentum"]).add_(update, alpha=group["lr"])
                p.sub_(state["velocity"])


def _trust(p: Tensor, update: Tensor, eta: float) -> Tensor:
    weight, change = p.norm(), update.norm()
    defined = (weight > 0) & (change > 0)
    return torch.where(defined, eta * weight / torch.where(defined, change, 1.0), 1.0)


def _lars(groups: list[dict[str, Any]], options: Mapping[str, Any]) -> Optimizer:
    return Lars(groups, lr=options["lr"], momentum=options["momentum"], eta=options["eta"])


_OPTIMIZERS = {"sgd": _sgd, "adamw": _adamw, "lars": _lars}


def learning_rate(step: int, *, base: float, steps: int, warmup: float, decay: str) -> float:
    """The learning rate of a step.

    Args:
        step: from 0.
        base: the rate at the end of the warm-up.
        steps: of the whole training.
        warmup: steps over which the rate rises linearly, from base / warmup.
        decay: "cosine" (to 0 after the last step: Loshchilov and Hutter, 1608.03983, eq. 5) or
            "constant".
    """
    if step < warmup:
        return _rounded(base * min(1.0, (step + 1) / warmup))
    if decay == "constant":
        return base
    return _rounded(base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


def _rounded(rate: float) -> float:
    return float(f"{rate:.{DIGITS}g}")


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set every group's rate, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]

"""Optimisers, which parameters decay, and the learning rate over training."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bench.methods.base import ParameterGroup

DIGITS = 12  # of a learning rate: cos differs in its last bits between C libraries
LINEAR_UNIT = 256  # images for which a linearly scaled learning rate is stated


def build(module: nn.Module, groups: Iterable[ParameterGroup], options: Mapping[str, Any]) -> Optimizer:
    """An optimiser over a method's parameter groups.

    Args:
        module: the method.
        groups: names of parameters with their factors.
        options: as params.yaml has them: `name`, `lr`, `weight_decay`, `decay_norm_bias` and the optimiser's own.
    """
    parameters = dict(module.named_parameters())
    built: list[dict[str, Any]] = []
    for group in groups:
        chosen = [parameters[name] for name in group.names]
        decay = options["weight_decay"] * group.decay
        bare = decay if options["decay_norm_bias"] else 0.0
        for members, weight_decay, lr in (
            ([p for p in chosen if p.ndim > 1], decay, group.lr),
            ([p for p in chosen if p.ndim <= 1], bare, group.lr * options.get("norm_bias_lr", 1.0)),
        ):
            if members:
                settings = {"weight_decay": weight_decay, "lr_factor": lr, "frozen_until": group.frozen_until}
                if "momentum" in options:
                    settings["momentum"] = options["momentum"] * group.momentum
                built.append({"params": members, **settings})
    return _OPTIMIZERS[options["name"]](built, options)


def _sgd(groups: list[dict[str, Any]], options: Mapping[str, Any]) -> Optimizer:
    return torch.optim.SGD(groups, lr=options["lr"], momentum=options["momentum"], foreach=False)


def _adamw(groups: list[dict[str, Any]], options: Mapping[str, Any]) -> Optimizer:
    # the others take their square roots through MKL, whose last bit depends on the CPU's maker (bench.numerics)
    return torch.optim.AdamW(groups, lr=options["lr"], fused=True)


class Lars(Optimizer):
    """LARS (You et al., 1708.03888, algorithm 1), the learning rate inside the momentum as SimCLR has it.

    v = momentum v + lr trust (g + decay w); w = w - v. Matrices and kernels have
    trust = eta |w| / |g + decay w|, or 1 where either norm is 0; biases and normalisation have 1 unless
    `adapt_norm_bias`.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, momentum: float, eta: float, adapt_norm_bias: bool = False
    ):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "eta": eta, "weight_decay": 0.0})
        self.adapt_norm_bias = adapt_norm_bias

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad + group["weight_decay"] * p
                if p.ndim > 1 or self.adapt_norm_bias:
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
    own = {key: options[key] for key in ("lr", "momentum", "eta", "adapt_norm_bias") if key in options}
    return Lars(groups, **own)


_OPTIMIZERS = {"sgd": _sgd, "adamw": _adamw, "lars": _lars}


def scaled(lr: float, scaling: str, batch: int) -> float:
    """The peak learning rate of a batch size.

    Args:
        lr: as params.yaml has it.
        scaling: "none"; "linear": lr * batch / 256 (Goyal et al., 1706.02677, section 2.1); "sqrt": lr * sqrt(batch)
            (SimCLR, 2002.05709, appendix B.1).
        batch: images per step.
    """
    return _rounded(lr * {"none": 1.0, "linear": batch / LINEAR_UNIT, "sqrt": math.sqrt(batch)}[scaling])


def learning_rate(
    step: int,
    *,
    base: float,
    steps: int,
    warmup: float,
    decay: str,
    warmup_from: float = 0.0,
    end: float = 0.0,
    milestones: Sequence[float] = (),
    factor: float = 1.0,
) -> float:
    """The learning rate of a step.

    Args:
        step: from 0.
        base: the rate at the end of the warm-up.
        steps: of the whole training.
        warmup: steps over which the rate rises linearly, to base with the last of them.
        decay: "cosine" (after the last step it would be end * base: Loshchilov and Hutter, 1608.03983, eq. 5),
            "step" or "constant".
        warmup_from: the share of base that the warm-up starts from.
        end: the share of base that a cosine ends at.
        milestones: steps from which on a "step" decay multiplies the rate by `factor`, each once more.
        factor: see milestones.
    """
    if step < warmup:
        return _rounded(base * (warmup_from + (1 - warmup_from) * min(1.0, (step + 1) / warmup)))
    if decay == "constant":
        return base
    if decay == "step":
        return _rounded(base * factor ** sum(step >= milestone for milestone in milestones))
    fallen = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    return _rounded(base * (end + (1 - end) * fallen))


def _rounded(rate: float) -> float:
    return float(f"{rate:.{DIGITS}g}")


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set every group's rate, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def drop_frozen_gradients(optimizer: Optimizer, step: int) -> None:
    """Take the gradients of the groups that are frozen at a step, so that neither decay nor momentum moves them."""
    for group in optimizer.param_groups:
        if step < group["frozen_until"]:
            for p in group["params"]:
                p.grad = None

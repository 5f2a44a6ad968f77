"""The optimiser settings of the papers, written as params.yaml would have them, give the papers' numbers.

Each row: what a user writes for one method on ImageNet, and the peak rate, the rates with which the warm-up begins and
the training ends, what is excluded from decay and from LARS's adaptation, as the paper or its released code states.
"""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from bench.methods.base import ParameterGroup
from bench.momentum import cosine_to_one
from bench.optim import Lars, build, learning_rate, scaled
from bench.settings import AdamW, Schedule, Sgd
from bench.settings import Lars as LarsSettings

IMAGENET = 1281167
KINDS = {"sgd": Sgd, "lars": LarsSettings, "adamw": AdamW}


@dataclass(frozen=True)
class Recipe:
    """A method's published settings and what they must come to."""

    epochs: int
    batch: int
    optimizer: dict
    schedule: dict
    peak: float
    first: float  # share of the peak from which the warm-up rises
    last: float  # the rate that the schedule ends at
    decayed: bool = False  # biases and normalisation decay
    adapted: bool = False  # and LARS adapts their rates
    at: dict[int, float] = field(default_factory=dict)  # rates at the beginning of epochs


LARS = {"name": "lars", "momentum": 0.9, "eta": 0.001, "scaling": "linear", "decay_norm_bias": False}
SGD = {"name": "sgd", "momentum": 0.9, "decay_norm_bias": True}
WARM_COSINE = {"warmup": 10, "decay": "cosine"}
RECIPES = {
    # 2002.05709, appendix B.1 and B.6: 0.3 x batch / 256 or 0.075 sqrt(batch), 10 epochs of warm-up
    "simclr": Recipe(1000, 4096, LARS | {"lr": 0.3, "weight_decay": 1e-6}, WARM_COSINE, 4.8, 0.0, 0.0),
    "simclr_sqrt": Recipe(
        1000, 4096, LARS | {"lr": 0.075, "scaling": "sqrt", "weight_decay": 1e-6}, WARM_COSINE, 4.8, 0.0, 0.0
    ),
    # 2003.04297 and its code
    "moco_v2": Recipe(
        200, 256, SGD | {"lr": 0.03, "weight_decay": 1e-4}, {"warmup": 0, "decay": "cosine"}, 0.03, 1.0, 0.0, True
    ),
    # 2006.07733, section 3.3 and its code's presets
    "byol_1000": Recipe(1000, 4096, LARS | {"lr": 0.2, "weight_decay": 1.5e-6}, WARM_COSINE, 3.2, 0.0, 0.0),
    "byol_300": Recipe(300, 4096, LARS | {"lr": 0.3, "weight_decay": 1e-6}, WARM_COSINE, 4.8, 0.0, 0.0),
    "byol_100": Recipe(100, 4096, LARS | {"lr": 0.45, "weight_decay": 1e-6}, WARM_COSINE, 7.2, 0.0, 0.0),
    # 2011.10566, section 4: 0.05 x batch / 256
    "simsiam": Recipe(
        100,
        512,
        SGD | {"lr": 0.05, "scaling": "linear", "weight_decay": 1e-4},
        {"warmup": 0, "decay": "cosine"},
        0.1,
        1.0,
        0.0,
        True,
    ),
    # 2006.09882, appendix: from 0.3 over 4.8 to 0.0048; every parameter decays and is adapted
    "swav": Recipe(
        800,
        4096,
        LARS | {"lr": 4.8, "scaling": "none", "weight_decay": 1e-6, "decay_norm_bias": True, "adapt_norm_bias": True},
        WARM_COSINE | {"warmup_from": 0.0625, "end": 0.001},
        4.8,
        0.3 / 4.8,
        0.0048,
        True,
        True,
    ),
    # 2103.03230, section 3: weights 0.2 x batch / 256, biases and normalisation 0.0048 x batch / 256
    "barlow_twins": Recipe(
        1000,
        2048,
        LARS | {"lr": 0.2, "weight_decay": 1e-6, "norm_bias_lr": 0.024},
        WARM_COSINE | {"end": 0.001},
        1.6,
        0.0,
        0.0016,
    ),
    # 2104.14548, section 4 (as SimCLR and BYOL)
    "nnclr": Recipe(1000, 4096, LARS | {"lr": 0.3, "weight_decay": 1e-6}, WARM_COSINE, 4.8, 0.0, 0.0),
    # 1805.01978, section 4.2 and its code: a tenth at 120 and again at 160 epochs
    "instdisc": Recipe(
        200,
        256,
        SGD | {"lr": 0.03, "weight_decay": 1e-4},
        {"warmup": 0, "decay": "step", "milestones": [120, 160], "factor": 0.1},
        0.03,
        1.0,
        0.0003,
        True,
        at={0: 0.03, 119: 0.03, 120: 0.003, 159: 0.003, 160: 0.0003, 199: 0.0003},
    ),
    # 1807.05520, section 4.1 and its code
    "deepcluster": Recipe(
        500,
        256,
        SGD | {"lr": 0.05, "weight_decay": 1e-5},
        {"warmup": 0, "decay": "constant"},
        0.05,
        1.0,
        0.05,
        True,
    ),
    # 2303.17142's released code
    "snclr": Recipe(
        300,
        4096,
        {"name": "adamw", "lr": 1.5e-4, "scaling": "linear", "weight_decay": 0.1, "decay_norm_bias": False},
        {"warmup": 40, "decay": "cosine"},
        2.4e-3,
        0.0,
        0.0,
    ),
}
each = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def rate(recipe: Recipe, step: int) -> float:
    per_epoch = IMAGENET // recipe.batch
    schedule = Schedule.model_validate(recipe.schedule)
    options = KINDS[recipe.optimizer["name"]].model_validate(recipe.optimizer)
    return learning_rate(
        step,
        base=scaled(options.lr, options.scaling, recipe.batch),
        steps=recipe.epochs * per_epoch,
        warmup=schedule.warmup * per_epoch,
        decay=schedule.decay,
        warmup_from=schedule.warmup_from,
        end=schedule.end or 0.0,
        milestones=[epoch * per_epoch for epoch in schedule.milestones or []],
        factor=schedule.factor or 1.0,
    )


@each
def test_the_warm_up_rises_from_its_start_to_the_scaled_peak_and_the_schedule_ends_at_its_end(recipe):
    per_epoch = IMAGENET // recipe.batch
    warm, steps = recipe.schedule["warmup"] * per_epoch, recipe.epochs * per_epoch
    one_step = recipe.peak * (1 - recipe.first) / warm if warm else 0.0
    assert rate(recipe, 0) == pytest.approx(recipe.first * recipe.peak + one_step)
    assert rate(recipe, max(warm - 1, 0)) == pytest.approx(recipe.peak)
    assert rate(recipe, warm) == pytest.approx(recipe.peak)
    assert rate(recipe, steps) == pytest.approx(recipe.last, abs=1e-12)
    for epoch, wanted in recipe.at.items():
        assert rate(recipe, epoch * per_epoch) == pytest.approx(wanted)


class Small(nn.Module):
    """A kernel, a normalisation and a layer with a bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Linear(3, 2)


@each
def test_decay_and_adaptation_leave_out_what_the_paper_leaves_out(recipe):
    module, options = Small(), KINDS[recipe.optimizer["name"]].model_validate(recipe.optimizer).model_dump()
    optimizer = build(module, [ParameterGroup([n for n, _ in module.named_parameters()])], options)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for p in module.parameters():
        assert decay[id(p)] == (options["weight_decay"] if p.ndim > 1 or recipe.decayed else 0.0)
    if not isinstance(optimizer, Lars):
        return
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1.0, 0.0
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in module.named_parameters():
        trust = 0.001 * before[name].norm() / p.numel() ** 0.5 if p.ndim > 1 or recipe.adapted else 1.0
        trust = 1.0 if before[name].norm() == 0 else trust
        torch.testing.assert_close(p.detach(), before[name] - trust, rtol=1e-5, atol=1e-7)


def test_barlow_twins_biases_and_normalisation_have_their_own_rate():
    module = Small()
    options = LarsSettings.model_validate(RECIPES["barlow_twins"].optimizer).model_dump()
    optimizer = build(module, [ParameterGroup([n for n, _ in module.named_parameters()])], options)
    peak = scaled(options["lr"], options["scaling"], 2048)
    rates = {p.ndim > 1: peak * group["lr_factor"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {True: pytest.approx(1.6), False: pytest.approx(0.0048 * 2048 / 256)}


MOMENTA = {  # base, epochs, batch
    "byol_1000": (0.996, 1000, 4096),
    "byol_300": (0.99, 300, 4096),
    "byol_40": (0.97, 40, 4096),
    "snclr": (0.99, 300, 4096),
}


@pytest.mark.parametrize(("base", "epochs", "batch"), MOMENTA.values(), ids=MOMENTA)
def test_the_momentum_rises_from_its_base_to_one(base, epochs, batch):
    steps = epochs * (IMAGENET // batch)
    assert cosine_to_one(base, 0, steps) == pytest.approx(base)
    assert cosine_to_one(base, steps // 2, steps) == pytest.approx((1 + base) / 2, abs=1e-4)
    assert cosine_to_one(base, steps, steps) == 1.0

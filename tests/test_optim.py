"""The learning rate over training, which parameters decay, and one step against each formula."""

import math

import pytest
import torch
from torch import nn

from bench.methods.base import ParameterGroup
from bench.optim import build, drop_frozen_gradients, learning_rate, scaled, set_learning_rate

COSINE = {"base": 0.5, "steps": 110, "warmup": 10.0, "decay": "cosine"}
CONSTANT = COSINE | {"decay": "constant"}
NO_WARMUP = {"base": 2e-3, "steps": 8, "warmup": 0.0, "decay": "cosine"}
HALF_STEPS = COSINE | {"warmup": 2.5}
STEP = {"base": 0.03, "steps": 200, "warmup": 0.0, "decay": "step", "milestones": [120, 160], "factor": 0.1}
RAISED = COSINE | {"warmup_from": 0.2, "end": 0.01}

RATES = {
    "first_step_is_a_warmup_th": (0, COSINE, 0.05),
    "warmup_rises_linearly": (4, COSINE, 0.25),
    "warmup_ends_at_the_base": (9, COSINE, 0.5),
    "cosine_begins_at_the_base": (10, COSINE, 0.5),
    "cosine_at_a_third": (10 + 100 // 3, COSINE | {"steps": 109}, 0.375),
    "cosine_is_half_at_its_middle": (60, COSINE, 0.25),
    "cosine_at_three_quarters": (85, COSINE, 0.5 * 0.5 * (1 - math.sqrt(0.5))),
    "cosine_is_0_after_the_last_step": (110, COSINE, 0.0),
    "constant_warms_up": (4, CONSTANT, 0.25),
    "constant_after_the_warmup": (10, CONSTANT, 0.5),
    "constant_at_the_last_step": (109, CONSTANT, 0.5),
    "no_warmup_begins_at_the_base": (0, NO_WARMUP, 2e-3),
    "no_warmup_middle": (4, NO_WARMUP, 1e-3),
    "part_of_a_step_of_warmup": (0, HALF_STEPS, 0.2),
    "part_of_a_step_never_overshoots": (2, HALF_STEPS, 0.5),
    "a_warmup_may_begin_above_0": (0, RAISED, 0.5 * (0.2 + 0.8 * 0.1)),
    "it_ends_at_the_base_all_the_same": (9, RAISED, 0.5),
    "a_cosine_may_end_above_0": (110, RAISED, 0.005),
    "and_is_halfway_between_at_its_middle": (60, RAISED, 0.5 * (1 + 0.01) / 2),
    "steps_keep_the_base_before_the_first": (119, STEP, 0.03),
    "the_first_step": (120, STEP, 0.003),
    "the_second_step": (160, STEP, 0.0003),
    "steps_after_a_warmup": (2, STEP | {"warmup": 4.0}, 0.0225),
    "warmup_longer_than_training": (7, NO_WARMUP | {"warmup": 16.0}, 1e-3),
    "warmup_of_all_steps": (7, NO_WARMUP | {"warmup": 8.0}, 2e-3),
}


@pytest.mark.parametrize(("step", "schedule", "rate"), RATES.values(), ids=RATES)
def test_the_learning_rate_of_a_step(step, schedule, rate):
    # rates are rounded to 12 digits
    assert learning_rate(step, **schedule) == pytest.approx(rate, rel=1e-11, abs=1e-16)


def test_a_cosine_falls_from_the_warmup_on_and_stays_above_zero():
    rates = [learning_rate(step, **COSINE) for step in range(110)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert len(set(rates[10:])) == 100
    assert 0 < rates[-1] < 1e-3 * rates[10]


def test_rates_have_12_digits_so_that_every_c_library_gives_them():
    for step in range(110):
        rate = learning_rate(step, **COSINE)
        assert rate == float(f"{rate:.12g}")


class Small(nn.Module):
    """Matrices, a kernel, biases and a normalisation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)


ALL = ["conv.weight", "conv.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"]
MATRICES = ["conv.weight", "head.weight"]
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "decay_norm_bias": False}
ADAMW = {"name": "adamw", "lr": 0.1, "weight_decay": 0.01, "decay_norm_bias": False}
LARS = SGD | {"name": "lars", "eta": 0.001}
OPTIMIZERS = {"sgd": SGD, "adamw": ADAMW, "lars": LARS}
each = pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)


def settings(module, optimizer):
    """name -> (weight decay, factor of the learning rate) of every parameter that is moved."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        names[id(parameter)]: (group["weight_decay"], group["lr_factor"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@each
def test_only_matrices_and_kernels_decay(options):
    module = Small()
    found = settings(module, build(module, [ParameterGroup(ALL)], options))
    assert found == {name: (0.01 if name in MATRICES else 0.0, 1.0) for name in ALL}


@each
def test_all_decay_where_norms_and_biases_are_to(options):
    module = Small()
    found = settings(module, build(module, [ParameterGroup(ALL)], options | {"decay_norm_bias": True}))
    assert found == dict.fromkeys(ALL, (0.01, 1.0))


@each
def test_a_groups_factors_are_its_own_and_what_no_group_names_stays(options):
    module = Small()
    groups = [
        ParameterGroup(["conv.weight", "conv.bias"], lr=0.5, decay=3.0),
        ParameterGroup(["head.weight"]),
    ]
    found = settings(module, build(module, groups, options))
    assert found == {"conv.weight": (0.03, 0.5), "conv.bias": (0.0, 0.5), "head.weight": (0.01, 1.0)}


def test_a_frozen_group_does_not_move_until_its_step_and_others_do():
    for options in OPTIMIZERS.values():
        module = Small()
        groups = [ParameterGroup(ALL[:4]), ParameterGroup(["head.weight", "head.bias"], frozen_until=2)]
        optimizer = build(module, groups, options | {"decay_norm_bias": True})
        moves = []
        for step in range(4):
            before = {name: p.clone() for name, p in module.named_parameters()}
            for p in module.parameters():
                p.grad = torch.ones_like(p)
            drop_frozen_gradients(optimizer, step)
            optimizer.step()
            moves.append({name for name, p in module.named_parameters() if not torch.equal(p, before[name])})
        assert moves == [set(ALL[:4]), set(ALL[:4]), set(ALL), set(ALL)]


@pytest.mark.parametrize("options", [SGD, LARS], ids=["sgd", "lars"])
def test_a_group_may_have_less_momentum_and_then_none_is_kept(options):
    module = Small()
    groups = [ParameterGroup(ALL[:4]), ParameterGroup(["head.weight", "head.bias"], momentum=0.0)]
    optimizer = build(module, groups, options)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9, 0.0}
    set_learning_rate(optimizer, 0.1)
    for _ in range(2):
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        before = module.head.bias.clone()
        optimizer.step()
        torch.testing.assert_close(module.head.bias, before - 0.1)


def test_lars_adapts_vectors_and_gives_them_a_rate_of_their_own_where_asked():
    module = Small()
    options = LARS | {"adapt_norm_bias": True, "norm_bias_lr": 0.024, "weight_decay": 0.0}
    optimizer = build(module, [ParameterGroup(ALL, lr=0.5)], options)
    found = settings(module, optimizer)
    assert found == {name: (0.0, 0.5 if name in MATRICES else 0.5 * 0.024) for name in ALL}
    set_learning_rate(optimizer, 2.0)
    before = module.norm.weight.detach().clone()
    for p in module.parameters():
        p.grad = torch.full_like(p, 3.0)
    optimizer.step()
    trust = 0.001 * before.norm() / (3 * math.sqrt(3))  # |g| of three entries of 3
    torch.testing.assert_close(module.norm.weight, before - 2.0 * 0.5 * 0.024 * trust * 3.0)


@pytest.mark.parametrize(
    ("scaling", "batch", "rate"),
    [("none", 4096, 0.3), ("linear", 256, 0.3), ("linear", 4096, 4.8), ("linear", 128, 0.15), ("sqrt", 4096, 19.2)],
)
def test_a_learning_rate_scales_with_the_batch_as_asked(scaling, batch, rate):
    assert scaled(0.3, scaling, batch) == pytest.approx(rate)


def test_linear_scaling_doubles_with_the_batch():
    assert scaled(0.2, "linear", 1024) == pytest.approx(2 * scaled(0.2, "linear", 512))


def test_a_rate_is_set_times_each_groups_factor():
    module = Small()
    groups = [ParameterGroup(["conv.weight"], lr=0.5), ParameterGroup(["head.weight", "head.bias"], lr=10.0)]
    optimizer = build(module, groups, SGD)
    for rate in (0.2, 0.01):
        set_learning_rate(optimizer, rate)
        assert [group["lr"] for group in optimizer.param_groups] == [0.5 * rate, 10.0 * rate, 10.0 * rate]


def naive_sgd(w, g, state, lr, decay, options):
    """v = mu v + (g + lambda w); w = w - lr v (Sutskever et al., 2013, as torch has it)."""
    state["v"] = options["momentum"] * state.get("v", 0.0) + g + decay * w
    return w - lr * state["v"]


def naive_adamw(w, g, state, lr, decay, options):
    """1711.05101, algorithm 2, with the decay times the learning rate; Adam's usual constants."""
    state["t"] = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g * g
    m, v = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.999 ** state["t"])
    return w - lr * (m / (v**0.5 + 1e-8) + decay * w)


def naive_lars(w, g, state, lr, decay, options):
    """1708.03888, algorithm 1: the layer's rate is eta |w| / |g + lambda w|; none for vectors."""
    update = g + decay * w
    trust = options["eta"] * w.square().sum().sqrt() / update.square().sum().sqrt() if w.ndim > 1 else 1.0
    state["v"] = options["momentum"] * state.get("v", 0.0) + lr * trust * update
    return w - state["v"]


NAIVE = {"sgd": naive_sgd, "adamw": naive_adamw, "lars": naive_lars}


@pytest.mark.parametrize("bare", [False, True], ids=["norms_undecayed", "norms_decayed"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_follow_the_formula(name, bare):
    options = OPTIMIZERS[name] | {"decay_norm_bias": bare, "weight_decay": 0.3}
    module = Small().double()
    wanted = {n: p.detach().clone() for n, p in module.named_parameters()}
    states = {n: {} for n in ALL}
    head = ["head.weight", "head.bias"]
    groups = [ParameterGroup(ALL[:4]), ParameterGroup(head, lr=2.0, decay=0.5)]
    optimizer = build(module, groups, options)
    generator = torch.Generator().manual_seed(1)
    for rate in (0.1, 0.05, 0.2):  # three steps: the momentum, its decay and a rate that changes
        set_learning_rate(optimizer, rate)
        for n, p in module.named_parameters():
            p.grad = torch.randn(p.shape, dtype=torch.float64, generator=generator)
            lr, decay = (2 * rate, 0.5 * 0.3) if n in head else (rate, 0.3)
            decay = decay if n in MATRICES or bare else 0.0
            wanted[n] = NAIVE[name](wanted[n], p.grad, states[n], lr, decay, options)
        optimizer.step()
    for n, p in module.named_parameters():
        # float64 and three steps of a few operations each
        torch.testing.assert_close(p.detach(), wanted[n], rtol=1e-12, atol=1e-12, msg=lambda m, n=n: f"{n}: {m}")


@each
def test_a_gradient_of_zero_moves_nothing_but_the_decay(options):
    module = Small().double()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizer = build(module, [ParameterGroup(ALL)], options | {"weight_decay": 0.0})
    set_learning_rate(optimizer, 0.1)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())


def test_lars_trusts_a_layer_of_zeros_as_it_is():
    module = Small().double()
    nn.init.zeros_(module.head.weight)
    optimizer = build(module, [ParameterGroup(["head.weight"])], LARS)
    set_learning_rate(optimizer, 0.1)
    module.head.weight.grad = torch.ones_like(module.head.weight)
    optimizer.step()
    assert torch.equal(module.head.weight, torch.full_like(module.head.weight, -0.1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_memory_format_of_a_kernel_changes_no_step(name):
    def moved(memory_format):
        module = nn.Conv2d(3, 4, 3).to(memory_format=memory_format)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            module.weight.copy_(torch.randn(4, 3, 3, 3, generator=generator))
        optimizer = build(module, [ParameterGroup(["weight"])], OPTIMIZERS[name])
        for _ in range(3):
            set_learning_rate(optimizer, 0.1)
            (module.weight * torch.randn(4, 3, 3, 3, generator=generator)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return module.weight.detach()

    torch.testing.assert_close(moved(torch.channels_last), moved(torch.contiguous_format), rtol=1e-6, atol=1e-6)

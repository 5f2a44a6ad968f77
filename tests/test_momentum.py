"""Momentum branches against closed forms, and the schedule of their momentum."""

import pytest
import torch
from torch import nn

from bench.momentum import Momentum, cosine_to_one


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def move(module):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1.0)


@pytest.mark.parametrize("steps", [1, 7, 200])
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.996])
def test_after_steps_of_a_constant_source_it_is_the_closed_form(momentum, steps):
    online = linear().double()
    branch, start = Momentum(online), online.weight.detach().clone()
    move(online)
    for _ in range(steps):
        branch.follow(momentum)
    left = momentum**steps
    expected = online.weight * (1 - left) + start * left
    torch.testing.assert_close(branch.average[0].weight, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("momentum", "moved"), [(1.0, False), (0.0, True)], ids=["one_freezes", "zero_copies"])
def test_the_ends_of_the_momentum(momentum, moved):
    online = linear()
    branch, start = Momentum(online), online.weight.detach().clone()
    move(online)
    branch.follow(momentum)
    assert torch.equal(branch.average[0].weight, online.weight if moved else start)


def test_it_begins_as_a_copy_that_shares_no_memory():
    online = linear()
    branch = Momentum(online)
    assert torch.equal(branch.average[0].weight, online.weight)
    move(online)
    assert not torch.equal(branch.average[0].weight, online.weight)


def test_it_keeps_its_own_batch_statistics_and_takes_no_gradient():
    online = nn.Sequential(linear(), nn.BatchNorm1d(2))
    branch, x = Momentum(online), torch.rand(8, 3, requires_grad=True)
    before = online[1].running_mean.clone()
    assert not branch(x).requires_grad
    branch.follow(0.5)
    assert torch.equal(online[1].running_mean, before)
    assert not torch.equal(branch.average[0][1].running_mean, before)
    assert not any(p.requires_grad for p in branch.parameters())


def test_what_it_follows_is_neither_among_its_parameters_nor_in_its_state():
    branch = Momentum(linear(), nn.BatchNorm1d(2))
    assert all(name.startswith("average.") for name in branch.state_dict())
    assert len(list(branch.parameters())) == 4


def test_it_follows_modules_that_were_moved_to_another_type_with_it():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.online = linear()
            self.branch = Momentum(self.online)

    both = Both().to(torch.float64)
    move(both.online)
    both.branch.follow(0.0)
    assert both.branch.average[0].weight.dtype == torch.float64
    assert torch.equal(both.branch.average[0].weight, both.online.weight)


@pytest.mark.parametrize("base", [0.0, 0.97, 0.99, 0.996, 1.0])
def test_the_cosine_schedule_runs_from_the_base_over_the_middle_to_one(base):
    values = [cosine_to_one(base, step, 100) for step in range(101)]
    assert values[0] == pytest.approx(base, abs=1e-12)
    assert values[50] == pytest.approx((1 + base) / 2, abs=1e-12)
    assert values[100] == 1.0
    assert values == sorted(values)


def test_a_momentum_has_12_digits_so_that_every_c_library_gives_it():
    for step in range(100):
        value = cosine_to_one(0.996, step, 100)
        assert value == float(f"{value:.12g}")

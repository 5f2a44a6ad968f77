"""InstDisc against loops written from the paper's equations (Wu et al., 1805.01978), and the laws it obeys."""

import math
from functools import cache
from itertools import product
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from bench.methods import instdisc
from bench.methods.base import Batch, DataInfo, Progress
from bench.methods.instdisc import InstDisc, estimate_z, nce_loss, proximal_term, softmax_loss

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64: a few hundred operations, each within 1e-16


def unit(v):
    return v / (v * v).sum().sqrt()


def naive_softmax(v, bank, index, temperature):
    """-1/n sum_i log P(i | v_i), P the share of e^(v_i . v / tau) in the sum over all rows, eq. 2 and 3."""
    total = 0.0
    for row, i in zip(v, index.tolist(), strict=True):
        scores = [((other * unit(row)).sum() / temperature).exp() for other in bank]
        total = total - (scores[i] / sum(scores)).log()
    return total / len(v)


def naive_nce(v, bank, index, negatives, temperature, z):
    """-log h(i, v) less the sum over the m draws of log(1 - h(j, v)), mean over i, eq. 4, 6 and 7; P_n = 1 / N."""
    m, total = negatives.shape[1], 0.0

    def posterior(row, j):
        p = ((bank[j] * unit(row)).sum() / temperature).exp() / z
        return p / (p + m / len(bank))

    for row, i, drawn in zip(v, index.tolist(), negatives.tolist(), strict=True):
        total = total - posterior(row, i).log()
        for j in drawn:
            total = total - (1 - posterior(row, j)).log()
    return total / len(v)


def naive_z(v, bank, negatives, temperature):
    """N times the mean over images and their m draws of e^(v_j . v / tau), eq. 8."""
    total = 0.0
    for row, drawn in zip(v, negatives.tolist(), strict=True):
        for j in drawn:
            total = total + ((bank[j] * unit(row)).sum() / temperature).exp()
    return len(bank) * total / negatives.numel()


def naive_proximal(v, old):
    """1/n sum_i |v_i - v_i'|^2, eq. 9 without its lambda."""
    total = 0.0
    for new, before in zip(v, old, strict=True):
        for a, b in zip(unit(new), before, strict=True):
            total = total + (a - b) ** 2
    return total / len(v)


def rows(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def units(n, d, seed=0):
    v = rows(n, d, seed)
    return v / v.norm(dim=1, keepdim=True)


def draws(n, m, images, seed=0):
    return torch.randint(images, (n, m), generator=torch.Generator().manual_seed(seed))


ONE = torch.tensor([[0.3, -1.2, 0.5]], dtype=torch.float64)
LINE = ONE / ONE.norm()
IMAGES = torch.tensor([4, 0, 7, 2, 2])
CASES = {  # v, bank, index, negatives, temperature
    "usual": (rows(5, 6), units(9, 6, 1), IMAGES, draws(5, 7, 9), 0.1),
    "one_row": (rows(1, 4), units(5, 4, 1), IMAGES[:1], draws(1, 3, 5), 0.2),
    "one_image": (rows(1, 4), units(1, 4, 1), torch.tensor([0]), draws(1, 3, 1), 0.2),
    "one_negative": (rows(5, 6), units(9, 6, 1), IMAGES, draws(5, 1, 9), 0.1),
    "more_negatives_than_images": (rows(3, 5), units(4, 5, 1), torch.tensor([3, 0, 1]), draws(3, 11, 4), 0.3),
    "negatives_are_the_positive": (rows(5, 6), units(9, 6, 1), IMAGES, IMAGES[:, None].repeat(1, 3), 0.2),
    "odd_sizes": (rows(3, 7), units(11, 7, 1), torch.tensor([10, 5, 0]), draws(3, 5, 11), 0.07),
    "one_dimension": (rows(5, 1), units(9, 1, 1), IMAGES, draws(5, 4, 9), 1.0),
    "duplicate_rows": (rows(2, 4).repeat(2, 1), units(4, 4, 1).repeat(2, 1), IMAGES[:4], draws(4, 6, 8), 0.2),
    "collapsed": (ONE.repeat(5, 1), LINE.repeat(9, 1), IMAGES, draws(5, 7, 9), 0.1),
    "collapsed_but_for_length": (ONE * torch.arange(1.0, 6)[:, None], LINE.repeat(9, 1), IMAGES, draws(5, 7, 9), 0.1),
    "rows_of_the_bank": (3 * units(9, 6, 1)[IMAGES], units(9, 6, 1), IMAGES, draws(5, 7, 9), 0.1),
    "opposite_to_the_bank": (-units(9, 6, 1)[IMAGES], units(9, 6, 1), IMAGES, draws(5, 7, 9), 0.1),
    "bank_that_is_not_unit": (rows(5, 6), rows(9, 6, 1) / 3, IMAGES, draws(5, 7, 9), 0.2),
    "long_rows": (1e6 * rows(5, 6), units(9, 6, 1), IMAGES, draws(5, 7, 9), 0.1),
    "high_temperature": (rows(5, 6), units(9, 6, 1), IMAGES, draws(5, 7, 9), 100.0),
    "low_temperature": (rows(5, 6), units(9, 6, 1), IMAGES, draws(5, 7, 9), 0.01),
}
cases = pytest.mark.parametrize(("v", "bank", "index", "negatives", "temperature"), CASES.values(), ids=CASES)


def exact_z(v, bank, temperature):
    """The mean over images of the sum over the whole bank."""
    everything = torch.arange(len(bank)).repeat(len(v), 1)
    return naive_z(v, bank, everything, temperature).item()


# the loss and its naive loop; both take the case, then z
LOSSES = {
    "softmax": (
        lambda v, bank, index, _, temperature, z: softmax_loss(v, bank, index, temperature),
        lambda v, bank, index, _, temperature, z: naive_softmax(v, bank, index, temperature),
    ),
    "nce": (nce_loss, naive_nce),
    "proximal": (
        lambda v, bank, index, *_: proximal_term(v, bank[index]),
        lambda v, bank, index, *_: naive_proximal(v, bank[index]),
    ),
}
losses = pytest.mark.parametrize(("loss", "naive"), LOSSES.values(), ids=LOSSES)


def value_and_gradient(loss, v, *case, autocast=False):
    v = v.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(v, *case)
    return value.detach(), torch.autograd.grad(value, v)[0]


@losses
@cases
def test_value_and_gradient_equal_the_naive_loop(v, bank, index, negatives, temperature, loss, naive):
    case = (v, bank, index, negatives, temperature, exact_z(v, bank, temperature))
    for ours, theirs in zip(value_and_gradient(loss, *case), value_and_gradient(naive, *case), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@cases
@pytest.mark.parametrize("rows_at_a_time", [1, 2, 3])
def test_negatives_gathered_in_several_blocks_are_each_rows_own(
    monkeypatch, v, bank, index, negatives, temperature, rows_at_a_time
):
    monkeypatch.setattr(instdisc, "ENTRIES", rows_at_a_time * negatives.shape[1] * bank.shape[1])
    case = (v, bank, index, negatives, temperature, exact_z(v, bank, temperature))
    for ours, theirs in zip(value_and_gradient(nce_loss, *case), value_and_gradient(naive_nce, *case), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    wanted = naive_z(v, bank, negatives, temperature)
    torch.testing.assert_close(estimate_z(v, bank, negatives, temperature), wanted, **CLOSE)


@cases
@pytest.mark.parametrize("factor", [1e-3, 0.5, 20.0])
def test_nce_takes_any_z(v, bank, index, negatives, temperature, factor):
    case = (v, bank, index, negatives, temperature, factor * exact_z(v, bank, temperature))
    for ours, theirs in zip(value_and_gradient(nce_loss, *case), value_and_gradient(naive_nce, *case), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@cases
def test_the_estimate_of_z_equals_the_naive_loop(v, bank, index, negatives, temperature):
    torch.testing.assert_close(
        estimate_z(v, bank, negatives, temperature), naive_z(v, bank, negatives, temperature), **CLOSE
    )


@losses
@cases
def test_single_precision_agrees_with_the_naive_loop_in_double(v, bank, index, negatives, temperature, loss, naive):
    rest = (index, negatives, temperature, exact_z(v, bank, temperature))
    value = loss(v.float(), bank.float(), *rest)
    assert value.dtype == torch.float32
    # products are within 1e-6 of the exact ones, and each of at most m + 1 terms turns them by 1 / temperature
    near = 1e-6 * (1 + negatives.shape[1]) / min(1, temperature)
    torch.testing.assert_close(value.double(), naive(v, bank, *rest), rtol=1e-6, atol=near)


@cases
def test_the_estimate_of_z_from_single_precision_rows_agrees(v, bank, index, negatives, temperature):
    # exponents are within 1e-6 / temperature of the exact ones, so is the relative error of the exponentials
    value = estimate_z(v.float(), bank.float(), negatives, temperature).double()
    torch.testing.assert_close(
        value, naive_z(v, bank, negatives, temperature), rtol=1e-6 * (1 + 1 / temperature), atol=0
    )


@losses
@cases
def test_positive_scales_of_v_do_not_matter(v, bank, index, negatives, temperature, loss, naive):
    scales = torch.linspace(0.1, 9.0, len(v), dtype=torch.float64)[:, None]
    rest = (bank, index, negatives, temperature, exact_z(v, bank, temperature))
    torch.testing.assert_close(loss(v * scales, *rest), loss(v, *rest), **CLOSE)


@cases
def test_positive_scales_of_v_do_not_matter_to_z(v, bank, index, negatives, temperature):
    scales = torch.linspace(0.1, 9.0, len(v), dtype=torch.float64)[:, None]
    given = estimate_z(v * scales, bank, negatives, temperature)
    torch.testing.assert_close(given, estimate_z(v, bank, negatives, temperature), **CLOSE)


@losses
def test_the_bank_is_taken_as_it_is(loss, naive):
    v, bank, *rest = CASES["usual"]
    assert abs(loss(v, 2 * bank, *rest, 20.0) - loss(v, bank, *rest, 20.0)) > 1e-2


@losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_changes_no_bit(dtype, loss, naive):
    v, bank, *rest = CASES["usual"]
    case = (v.to(dtype), bank.to(dtype), *rest, 20.0)
    inside = value_and_gradient(loss, *case, autocast=True)
    for under, plain in zip(inside, value_and_gradient(loss, *case), strict=True):
        assert under.dtype == dtype
        assert torch.equal(under, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_changes_no_bit_of_z(dtype):
    v, bank, _, negatives, temperature = CASES["usual"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = estimate_z(v.to(dtype), bank.to(dtype), negatives, temperature)
    assert torch.equal(under, estimate_z(v.to(dtype), bank.to(dtype), negatives, temperature))


@losses
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_rows_are_computed_in_single(autocast, loss, naive):
    v, bank, *rest = CASES["usual"]
    half, bank = v.bfloat16(), bank.float()
    value, gradient = value_and_gradient(loss, half, bank, *rest, 20.0, autocast=autocast)
    wanted, single = value_and_gradient(loss, half.float(), bank, *rest, 20.0)
    assert value.dtype == torch.float32
    assert torch.equal(value, wanted)
    # a gradient has its row's type: two roundings, relative to the largest
    near = 2 * torch.finfo(torch.bfloat16).eps * single.abs().max().item()
    torch.testing.assert_close(gradient.float(), single, rtol=0, atol=near)


# laws of the full softmax


@cases
def test_the_probabilities_of_the_full_softmax_sum_to_one(v, bank, index, negatives, temperature):
    for row in v:
        everything = [softmax_loss(row[None], bank, torch.tensor([i]), temperature) for i in range(len(bank))]
        assert sum(math.exp(-loss) for loss in everything) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("images", [1, 2, 7, 256])
@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_the_full_softmax_at_collapse_is_ln_of_the_images(images, temperature):
    loss = softmax_loss(ONE.repeat(3, 1), LINE.repeat(images, 1), torch.zeros(3, dtype=torch.int64), temperature)
    assert loss.item() == pytest.approx(math.log(images), abs=1e-9)


# laws of noise-contrastive estimation


def tangent(v, gradient):
    """What of a gradient with respect to a unit v is left once v is kept unit."""
    return gradient - (gradient * v).sum() * v


def expected_nce_gradient(v, bank, i, m, copies, temperature, z):
    """Of one v, exactly: over all N^m draws, or, the negatives being summed up, over `copies` of every row."""
    images = len(bank)
    if copies:
        drawn = torch.arange(images).repeat(copies)[None]
    else:
        drawn = torch.tensor(list(product(range(images), repeat=m)))
    v = v.clone().requires_grad_()
    loss = nce_loss(v.expand(len(drawn), -1), bank, torch.full((len(drawn),), i), drawn, temperature, z)
    return torch.autograd.grad(loss, v)[0]


EXPECTATIONS = {  # draws, copies of the whole bank in their place, r = m / N
    "one_draw": (1, 0, 1 / 5),
    "two_draws": (2, 0, 2 / 5),
    "four_draws": (4, 0, 4 / 5),
    "as_many_as_images": (0, 1, 1.0),
    "many": (0, 7, 7.0),
}


@pytest.mark.parametrize(("m", "copies", "r"), EXPECTATIONS.values(), ids=EXPECTATIONS)
@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_expected_nce_pulls_by_r_over_p_plus_r_and_pushes_by_r_p_over_p_plus_r(m, copies, r, factor):
    v, bank, i, temperature = units(1, 4)[0], units(5, 4, 1), 3, 0.3
    z = factor * exact_z(v[None], bank, temperature)
    p = [math.exp((row * v).sum() / temperature) / z for row in bank]
    pushes = [r * p_j / (p_j + r) for p_j in p]
    pull = r / (p[i] + r)
    wanted = sum(push * row for push, row in zip(pushes, bank, strict=True)) - pull * bank[i]
    given = expected_nce_gradient(v, bank, i, m, copies, temperature, z)
    torch.testing.assert_close(given, tangent(v, wanted) / temperature, **CLOSE)


def test_the_expected_nce_gradient_tends_to_the_full_softmaxs_as_r_grows():
    v, bank, i, temperature = units(1, 4)[0], units(5, 4, 1), 3, 0.3
    z = exact_z(v[None], bank, temperature)
    _, full = value_and_gradient(softmax_loss, v[None], bank, torch.tensor([i]), temperature)
    far = []
    for copies in (1, 10, 100, 1000):
        given = expected_nce_gradient(v, bank, i, 0, copies, temperature, z)
        far.append(((given - full[0]).norm() / full.norm()).item())
        if copies >= 100:
            assert torch.cosine_similarity(given, full[0], dim=0) > 0.999
    # r / (P + r) = 1 - P / r + ...: ten times the draws, a tenth of the distance
    assert far[0] > 0.05
    for near, wide in ((far[2], far[1]), (far[3], far[2])):
        assert near == pytest.approx(wide / 10, rel=0.1)


def posterior(v, bank, i, m, temperature, z):
    """h(i, v), read off a loss whose m negatives lie opposite to v: log(1 - h) of them is below e^(-30)."""
    opposite = torch.cat([bank, -unit(v)[None]])
    drawn = torch.full((1, m), len(bank))
    return math.exp(-nce_loss(v[None], opposite, torch.tensor([i]), drawn, temperature, z))


FAN = torch.stack([torch.tensor([math.cos(a), math.sin(a)], dtype=torch.float64) for a in (0.0, 0.2, 0.35, 0.5)])


@pytest.mark.parametrize("m", [1, 3, 50])
@pytest.mark.parametrize("i", range(4))
def test_h_is_a_half_if_and_only_if_p_equals_m_over_n(m, i):
    v, temperature, images = FAN[0], 0.05, len(FAN) + 1
    for share in (0.1, 0.9, 1.0, 1.1, 10.0):  # P over m / N
        z = math.exp((FAN[i] * v).sum() / temperature) / (share * m / images)
        h = posterior(v, FAN, i, m, temperature, z)
        assert h == pytest.approx(share / (share + 1), abs=1e-9)
        assert (abs(h - 0.5) < 1e-9) == (share == 1.0)


@pytest.mark.parametrize("factor", [0.1, 2.0, 30.0])
def test_scaling_z_shifts_every_log_p_by_the_same_constant(factor):
    m, temperature, images, z = 2, 0.05, len(FAN) + 1, 1e9

    def log_p(i, z):
        h = posterior(FAN[0], FAN, i, m, temperature, z)
        return math.log(m / images * h / (1 - h))

    for i in range(len(FAN)):
        assert log_p(i, factor * z) - log_p(i, z) == pytest.approx(-math.log(factor), abs=1e-7)


@cases
def test_nce_is_positive(v, bank, index, negatives, temperature):
    assert nce_loss(v, bank, index, negatives, temperature, exact_z(v, bank, temperature)) > 0


@cases
def test_the_order_of_the_draws_does_not_matter(v, bank, index, negatives, temperature):
    z = exact_z(v, bank, temperature)
    given = nce_loss(v, bank, index, negatives.flip(1), temperature, z)
    torch.testing.assert_close(given, nce_loss(v, bank, index, negatives, temperature, z), **CLOSE)


# laws of Z


@cases
def test_z_estimated_from_every_row_is_exact(v, bank, index, negatives, temperature):
    everything = torch.arange(len(bank)).repeat(len(v), 1)
    sums = [sum(math.exp((other * unit(row)).sum() / temperature) for other in bank) for row in v]
    given = estimate_z(v, bank, everything, temperature).item()
    assert given == pytest.approx(sum(sums) / len(v), rel=1e-9)


ESTIMATES = 3000


@cache
def estimates_of_z(m):
    """Many estimates from m draws, and mean, variance and kurtosis of one draw."""
    v, bank, temperature = units(1, 4), units(12, 4, 1), 0.5
    population = len(bank) * (bank @ v[0] / temperature).exp()
    variance = population.var(correction=0).item()
    kurtosis = ((population - population.mean()) ** 4).mean().item() / variance**2
    several = [estimate_z(v, bank, draw[None], temperature).item() for draw in draws(ESTIMATES, m, len(bank), seed=m)]
    return torch.tensor(several, dtype=torch.float64), population.mean().item(), variance, kurtosis


@pytest.mark.parametrize("m", [1, 4, 64])
def test_the_estimate_of_z_is_unbiased(m):
    several, exact, variance, _ = estimates_of_z(m)
    assert abs(several.mean() - exact) < 4 * math.sqrt(variance / m / ESTIMATES)


@pytest.mark.parametrize("m", [1, 4, 64])
def test_the_variance_of_the_estimate_of_z_falls_like_one_over_m(m):
    several, _, variance, kurtosis = estimates_of_z(m)
    # a sample variance has a relative standard error of sqrt((kurtosis - 1) / estimates); a mean's excess is 1 / m
    error = math.sqrt((2 + (kurtosis - 3) / m) / ESTIMATES)
    assert several.var().item() * m / variance == pytest.approx(1, abs=4 * error)


# laws of the proximal term


def test_the_gradient_of_the_proximal_term_is_twice_the_step_on_the_tangent():
    v, old = units(5, 4), units(5, 4, 1)
    _, gradient = value_and_gradient(proximal_term, v, old)
    wanted = torch.stack([tangent(new, 2 * (new - before) / 5) for new, before in zip(v, old, strict=True)])
    torch.testing.assert_close(gradient, wanted, **CLOSE)


def test_the_proximal_term_and_its_gradient_are_zero_where_nothing_moved():
    value, gradient = value_and_gradient(proximal_term, 3 * units(5, 4), units(5, 4))
    torch.testing.assert_close(value, torch.zeros_like(value), **CLOSE)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), **CLOSE)


def test_the_proximal_term_of_opposite_rows_is_four():
    assert proximal_term(-units(5, 4), units(5, 4)).item() == pytest.approx(4)


# the method


class Linear(torch.nn.Module):
    """An encoder with one layer: embeddings can be followed by hand."""

    dim = 4

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x.flatten(1))


OPTIONS = {"softmax": "nce", "negatives": 5, "z": "frozen", "z_batches": 2, "temperature": 0.2, "normalize": True} | {
    "proximal": 0.0,
    "bank_momentum": 0.5,
    "head": "linear",
    "hidden": 8,
    "dim": 3,
}
IMAGES_OF_THE_METHOD = 24


def build(weights: int = 0, seed: int = 0, images: int = IMAGES_OF_THE_METHOD, **options) -> InstDisc:
    torch.manual_seed(weights)
    return InstDisc(Linear(), DataInfo(images, 10, 1, 2), seed=seed, **OPTIONS | options)  # type: ignore[arg-type]


def batch(step: int = 0, n: int = 6, epoch: int = 0, index: torch.Tensor | None = None) -> Batch:
    index = (torch.arange(n) + n * step) % IMAGES_OF_THE_METHOD if index is None else index
    return Batch(
        [rows(n, 4, seed=step).float().view(n, 1, 2, 2)], index, index % 10, torch.zeros_like(index), epoch, step
    )


def train(method: InstDisc, b: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """One step, as the trainer takes it, but for the optimiser."""
    e = method.embed(b)
    loss, logs = method.loss(e, b)
    method.after_step({k: v.detach() for k, v in e.items()}, b, Progress(b.step, 10, b.epoch))
    return loss.detach(), logs


def draws_and_z(method: InstDisc, b: Batch) -> tuple[torch.Tensor, float]:
    """The negatives and the Z that a method's loss is computed with."""
    with patch.object(instdisc, "nce_loss", wraps=nce_loss) as spy:
        method.loss(method.embed(b), b)
    _, _, _, negatives, _, z = spy.call_args.args
    return negatives, float(z)


def test_z_is_the_mean_of_the_first_batches_estimates_and_then_frozen():
    method, estimates = build(z_batches=3), []
    for step in range(6):
        b = batch(step)
        negatives, z = draws_and_z(method, b)
        v, bank = method.embed(b)["v"].detach().double(), method.bank.rows.double()
        if step < 3:
            estimates.append(naive_z(v, bank, negatives, 0.2).item())
        expected = naive_nce(v, bank, b.index, negatives, 0.2, sum(estimates) / len(estimates))
        loss, _ = train(method, b)
        # single precision: products within 1e-6, 6 terms, 1 / temperature
        assert z == pytest.approx(sum(estimates) / len(estimates), rel=1e-5)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=3e-5)
    assert len(set(estimates)) == 3


def test_the_buffers_of_z_do_not_change_once_frozen():
    method = build(z_batches=2)
    train(method, batch(0))
    train(method, batch(1))
    frozen = {name: value.clone() for name, value in method.state_dict().items() if name.startswith("z_")}
    assert frozen
    _, z = draws_and_z(method, batch(2))
    for step in range(2, 5):
        assert draws_and_z(method, batch(step))[1] == z
        train(method, batch(step))
        assert all(torch.equal(method.state_dict()[name], value) for name, value in frozen.items())


def test_the_loss_alone_does_not_estimate_z():
    method, b = build(), batch(0)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    losses = [method.loss(method.embed(b), b)[0] for _ in range(3)]
    assert len({loss.item() for loss in losses}) == 1
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


@pytest.mark.parametrize("steps", [1, 2, 4], ids=["while_estimating", "just_frozen", "frozen"])
def test_z_and_the_bank_survive_a_round_trip_of_the_state(steps):
    method, other = build(z_batches=2), build(weights=1, z_batches=2)
    for step in range(steps):
        train(method, batch(step))
    other.load_state_dict(method.state_dict())
    for step in range(steps, 6):
        (loss, logs), (restored, restored_logs) = train(method, batch(step)), train(other, batch(step))
        assert torch.equal(loss, restored)
        assert logs == restored_logs
    assert torch.equal(method.bank.rows, other.bank.rows)


def test_negatives_are_the_same_for_the_same_seed_epoch_and_image():
    index = torch.tensor([3, 11, 20, 7])
    method, other = build(), build(weights=1)
    train(method, batch(0))
    first, _ = draws_and_z(method, batch(5, 4, epoch=1, index=index))
    second, _ = draws_and_z(other, batch(9, 4, epoch=1, index=index.flip(0)))
    assert first.shape == (4, 5)
    assert torch.equal(first, second.flip(0))


OTHERS = {"epoch": ({}, {"epoch": 1}), "seed": ({"seed": 1}, {}), "image": ({}, {"index": torch.arange(4) + 4})}


@pytest.mark.parametrize(("options", "shown"), OTHERS.values(), ids=OTHERS)
def test_negatives_are_others_for_another(options, shown):
    usual, _ = draws_and_z(build(negatives=16), batch(0, 4, index=torch.arange(4)))
    other, _ = draws_and_z(build(negatives=16, **options), batch(0, 4, **{"index": torch.arange(4)} | shown))
    for before, after in zip(usual, other, strict=True):
        assert not torch.equal(before, after)


@pytest.mark.parametrize("m", [1, 3, 4, 9])
def test_more_negatives_begin_with_fewer(m):
    fewer, _ = draws_and_z(build(negatives=m), batch())
    more, _ = draws_and_z(build(negatives=13), batch())
    assert torch.equal(fewer, more[:, :m])


def test_negatives_are_uniform_over_all_images():
    method = build(images=11, negatives=1100)
    drawn = torch.cat([draws_and_z(method, batch(epoch, 11, epoch, torch.arange(11)))[0] for epoch in range(4)])
    counts = torch.bincount(drawn.flatten(), minlength=11).double()
    assert len(counts) == 11
    expected = drawn.numel() / 11
    # chi-square with 10 degrees of freedom is above 29.6 once in a thousand
    assert ((counts - expected).square() / expected).sum() < 29.6
    # the positive is drawn as any other image is: 4 standard errors
    own = (drawn == torch.arange(11).repeat(4)[:, None]).double().mean().item()
    assert own == pytest.approx(1 / 11, abs=4 * math.sqrt(1 / 11 * 10 / 11 / drawn.numel()))


classifiers = pytest.mark.parametrize("softmax", ["parametric", "full", "nce"])


@classifiers
def test_a_gradient_reaches_the_encoder_and_not_the_bank(softmax):
    method, b = build(softmax=softmax), batch()
    method.loss(method.embed(b), b)[0].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert not method.bank.rows.requires_grad


@classifiers
@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_the_bank_is_updated_after_the_step_and_not_by_the_loss(softmax, momentum):
    method, b = build(softmax=softmax, bank_momentum=momentum), batch(0, 4, index=torch.tensor([9, 0, 23, 4]))
    before, e = method.bank.rows.clone(), method.embed(b)
    method.loss(e, b)
    assert torch.equal(method.bank.rows, before)
    method.after_step({k: v.detach() for k, v in e.items()}, b, Progress(0, 10, 0))
    for i in range(IMAGES_OF_THE_METHOD):
        if i not in b.index:
            assert torch.equal(method.bank.rows[i], before[i])
            continue
        v = e["v"][b.index.tolist().index(i)].detach()
        wanted = unit(momentum * before[i] + (1 - momentum) * unit(v))
        torch.testing.assert_close(method.bank.rows[i], wanted)
        assert method.bank.rows[i].norm().item() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(method.bank.rows, before) == (momentum == 1.0)


def test_a_loss_sees_the_bank_as_the_step_before_left_it():
    method = build(softmax="full", bank_momentum=0.0)
    first, again = train(method, batch())[0], train(method, batch())[0]
    # after one visit each image's row is its own feature
    bank, v = method.bank.rows, method.embed(batch())["v"]
    torch.testing.assert_close(softmax_loss(v, bank, batch().index, 0.2).detach(), again)
    assert again < first - 0.1


@classifiers
def test_the_proximal_factor_scales_the_term_and_zero_leaves_the_loss_alone(softmax):
    b = batch()
    bare, pulled = build(softmax=softmax), build(softmax=softmax, proximal=30.0)
    e = bare.embed(b)
    loss = bare.loss(e, b)[0]
    term = naive_proximal(e["v"].detach(), bare.bank.rows[b.index])
    torch.testing.assert_close((pulled.loss(e, b)[0] - loss).detach(), 30 * term, rtol=1e-5, atol=1e-5)
    if softmax == "full":
        assert torch.equal(loss, softmax_loss(e["v"], bare.bank.rows, b.index, 0.2))
    if softmax == "parametric":
        naive = [-e["logits"][i].softmax(0)[image].log() for i, image in enumerate(b.index)]
        torch.testing.assert_close(loss, sum(naive) / len(naive))
    if softmax == "nce":
        negatives, z = draws_and_z(bare, b)
        assert torch.equal(loss, nce_loss(e["v"], bare.bank.rows, b.index, negatives, 0.2, z))


@classifiers
@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("m", [1, 5, 60])
def test_collapse_of_v_and_bank_is_chance(softmax, n, m):
    method, b = build(softmax=softmax, negatives=m, proximal=30.0), batch(0, n)
    with torch.no_grad():
        method.encoder.layer.weight.zero_()
        v = method.embed(b)["v"][0]
        method.bank.rows.copy_(unit(v).expand_as(method.bank.rows))
        if method.classifier is not None:
            method.classifier.weight.copy_(method.classifier.weight[:1].expand_as(method.classifier.weight))
    for step in range(3):  # while Z is estimated, and after
        e = method.embed(b)
        # single precision: m + 1 terms
        assert method.loss(e, b)[0].item() == pytest.approx(method.chance(n), rel=1e-5)
        method.after_step({k: x.detach() for k, x in e.items()}, b, Progress(step, 3, 0))


def test_chance_of_nce_is_every_p_being_one_over_the_images():
    m = 5
    h = (1 / 24) / (1 / 24 + m / 24)
    assert build(negatives=m).chance(6) == pytest.approx(-math.log(h) - m * math.log(1 - h))
    assert build(softmax="full").chance(6) == build(softmax="parametric").chance(6) == math.log(24)


# ---- the ablations of Z and of the length of v


def nce_row_by_row(v, bank, index, drawn, temperature, z):
    """Eq. 4 to 7, row by row; z: one number a row."""
    losses = []
    for row, i, js, own in zip(v, index, drawn, z, strict=True):
        p = lambda j, row=row, own=own: float(torch.exp(bank[j] @ row / temperature)) / own  # noqa: E731
        r = len(js) / len(bank)
        losses.append(-math.log(p(i) / (p(i) + r)) - sum(math.log(1 - p(j) / (p(j) + r)) for j in js))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["exact", "reestimated"])
def test_z_is_each_rows_own_sum_or_this_batchs_estimate(kind, normalize):
    method, b = build(z=kind, normalize=normalize), batch()
    for step in range(3):  # a later batch than those a frozen Z is estimated from
        train(method, batch(step))
    e = method.embed(b)
    v = e["v"].detach().double()
    v = F.normalize(v, dim=1) if normalize else v
    bank, drawn = method.bank.rows.double(), method._draw(b)
    if kind == "exact":
        z = [float(torch.exp(bank @ row / 0.2).sum()) for row in v]
    else:
        drawn_exp = [float(torch.exp(bank[j] @ row / 0.2)) for row, js in zip(v, drawn, strict=True) for j in js]
        z = [len(bank) * sum(drawn_exp) / len(drawn_exp)] * len(v)
    loss, logs = method.loss(e, b)
    assert loss.item() == pytest.approx(nce_row_by_row(v, bank, b.index, drawn, 0.2, z), rel=1e-5)
    assert logs["z"] == pytest.approx(sum(z) / len(z), rel=1e-5)
    assert int(method.z_count) == 0  # nothing is frozen


def test_the_full_softmax_compares_v_as_it_is_where_it_is_not_normalised():
    method, b = build(softmax="full", normalize=False), batch()
    e = method.embed(b)
    expected = F.cross_entropy(e["v"] @ method.bank.rows.mT / 0.2, b.index)
    torch.testing.assert_close(method.loss(e, b)[0], expected)

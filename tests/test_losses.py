"""InfoNCE and NT-Xent against loops written from their equations, and the laws they obey."""

import math

import pytest
import torch

from bench.losses import info_nce
from bench.methods.base import DataInfo
from bench.methods.simclr import SimCLR, nt_xent

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64: a few hundred operations, each within 1e-16
LOSSES = {"info_nce": info_nce, "nt_xent": nt_xent}
both = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def cosine(a, b):
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def naive_info_nce(anchors, candidates, temperature):
    """-1/n sum_i log (e^(s_ii / tau) / sum_j e^(s_ij / tau)), 1807.03748, eq. 4."""
    total = 0.0
    for i, anchor in enumerate(anchors):
        scores = [(cosine(anchor, candidate) / temperature).exp() for candidate in candidates]
        total = total - (scores[i] / sum(scores)).log()
    return total / len(anchors)


def naive_nt_xent(z1, z2, temperature):
    """The mean of l(i, j) over the 2n ordered positive pairs, 2002.05709, eq. 1."""
    n, rows, total = len(z1), [*z1, *z2], 0.0
    for i in range(2 * n):
        j = i + n if i < n else i - n
        below = sum((cosine(rows[i], rows[k]) / temperature).exp() for k in range(2 * n) if k != i)
        total = total - ((cosine(rows[i], rows[j]) / temperature).exp() / below).log()
    return total / (2 * n)


NAIVE = {info_nce: naive_info_nce, nt_xent: naive_nt_xent}


def rows(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


ONE = torch.tensor([[0.3, -1.2, 0.5]], dtype=torch.float64)
CASES = {
    "usual": (rows(8, 6), rows(8, 6, 1), 0.1),
    "one_row": (rows(1, 4), rows(1, 4, 1), 0.2),
    "two_rows": (rows(2, 3), rows(2, 3, 1), 0.5),
    "odd_sizes": (rows(7, 5), rows(7, 5, 1), 0.07),
    "one_dimension": (rows(5, 1), rows(5, 1, 1), 1.0),
    "more_rows_than_dimensions": (rows(9, 2), rows(9, 2, 1), 0.3),
    "duplicate_rows": (rows(3, 4).repeat(2, 1), rows(3, 4, 1).repeat(2, 1), 0.2),
    "collapsed": (ONE.repeat(6, 1), ONE.repeat(6, 1), 0.1),
    "collapsed_but_for_length": (ONE * torch.arange(1.0, 6)[:, None], (2 * ONE).repeat(5, 1), 0.1),
    "opposite_views": (rows(4, 6), -rows(4, 6), 0.1),
    "equal_views": (rows(4, 6), rows(4, 6), 0.1),
    "long_rows": (rows(4, 6) * 1e6, rows(4, 6, 1) * 1e3, 0.2),
    "high_temperature": (rows(5, 6), rows(5, 6, 1), 100.0),
    "low_temperature": (rows(5, 6), rows(5, 6, 1), 0.01),
}
cases = pytest.mark.parametrize(("a", "b", "temperature"), CASES.values(), ids=CASES)


def value_and_gradients(loss, a, b, temperature, autocast=False):
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(a, b, temperature)
    return value.detach(), *torch.autograd.grad(value, (a, b))


@both
@cases
def test_value_and_gradient_equal_the_naive_loop(a, b, temperature, loss):
    given = value_and_gradients(loss, a, b, temperature)
    wanted = value_and_gradients(NAIVE[loss], a, b, temperature)
    for ours, naive in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours, naive, **CLOSE)


@both
@cases
def test_single_precision_agrees_with_the_naive_loop_in_double(a, b, temperature, loss):
    value = loss(a.float(), b.float(), temperature)
    assert value.dtype == torch.float32
    # cosines are within 1e-6 of the exact ones, and the loss turns them by at most 2 / temperature
    wanted = NAIVE[loss](a, b, temperature)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=2e-6 / min(1, temperature))


@pytest.mark.parametrize("n", [1, 2, 7, 256])
@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_collapse_is_chance(n, temperature):
    z = ONE.repeat(n, 1)
    assert info_nce(z, 3 * z, temperature).item() == pytest.approx(math.log(n), abs=1e-9)
    assert nt_xent(z, 3 * z, temperature).item() == pytest.approx(math.log(2 * n - 1), abs=1e-9)


@both
def test_aligned_views_of_spread_rows_approach_zero(loss):
    z = torch.eye(6, dtype=torch.float64)
    # the negatives' share: 5 (or 10) e^(-1 / 0.05) = 1e-8
    assert 0 < loss(z, z, 0.05).item() < 3e-8


@both
@cases
def test_positive_scales_of_rows_do_not_matter(a, b, temperature, loss):
    scales = torch.linspace(0.1, 9.0, len(a), dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(a * scales, b / scales, temperature), loss(a, b, temperature), **CLOSE)


@both
@cases
def test_a_common_rotation_does_not_matter(a, b, temperature, loss):
    rotation = torch.linalg.qr(rows(a.shape[1], a.shape[1], 2)).Q
    torch.testing.assert_close(loss(a @ rotation, b @ rotation, temperature), loss(a, b, temperature), **CLOSE)


@both
@cases
def test_the_order_of_rows_does_not_matter(a, b, temperature, loss):
    order = torch.arange(len(a)).roll(1)
    torch.testing.assert_close(loss(a[order], b[order], temperature), loss(a, b, temperature), **CLOSE)


@cases
def test_nt_xent_does_not_tell_the_views_apart(a, b, temperature):
    torch.testing.assert_close(nt_xent(a, b, temperature), nt_xent(b, a, temperature), **CLOSE)


def test_info_nce_tells_anchors_and_candidates_apart():
    a, b, temperature = CASES["usual"]
    assert abs(info_nce(a, b, temperature) - info_nce(b, a, temperature)) > 1e-3


@cases
def test_nt_xent_is_at_least_the_mean_of_both_directions(a, b, temperature):
    directions = (info_nce(a, b, temperature) + info_nce(b, a, temperature)) / 2
    assert nt_xent(a, b, temperature) >= directions - 1e-9  # equal for one row: the same round-off


@both
def test_wrong_positives_cost_more(loss):
    a = rows(6, 8)
    assert loss(a, a.roll(1, 0), 0.1) > loss(a, a, 0.1) + 1


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_loss_has_the_precision_of_its_rows(dtype, loss):
    value, *gradients = value_and_gradients(loss, rows(4, 3).to(dtype), rows(4, 3, 1).to(dtype), 0.1)
    assert {value.dtype, *(g.dtype for g in gradients)} == {dtype}


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_changes_no_bit(dtype, loss):
    a, b = rows(8, 16).to(dtype), rows(8, 16, 1).to(dtype)
    inside = value_and_gradients(loss, a, b, 0.1, autocast=True)
    for under, plain in zip(inside, value_and_gradients(loss, a, b, 0.1), strict=True):
        assert under.dtype == dtype
        assert torch.equal(under, plain)


def test_autocast_would_change_a_plain_product():
    a, b = rows(8, 16).float(), rows(8, 16, 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ b.mT).dtype == torch.bfloat16


HALVES = {
    "bfloat16": (torch.bfloat16, False),
    "bfloat16_under_autocast": (torch.bfloat16, True),
    "float16": (torch.float16, False),
}


@both
@pytest.mark.parametrize(("dtype", "autocast"), HALVES.values(), ids=HALVES)
def test_half_precision_rows_are_computed_in_single(dtype, autocast, loss):
    a, b = rows(8, 16).to(dtype), rows(8, 16, 1).to(dtype)
    value, *gradients = value_and_gradients(loss, a, b, 0.1, autocast)
    wanted, *singles = value_and_gradients(loss, a.float(), b.float(), 0.1)
    assert value.dtype == torch.float32
    assert torch.equal(value, wanted)
    for given, single in zip(gradients, singles, strict=True):
        # a gradient has its row's type: two roundings of its two parts, relative to the largest
        near = 2 * torch.finfo(dtype).eps * single.abs().max().item()
        torch.testing.assert_close(given.float(), single, rtol=0, atol=near)


@pytest.mark.parametrize("normalize", [True, False])
def test_simclr_of_the_other_views_alone_is_info_nce_of_n_keys_in_both_directions(normalize):
    torch.manual_seed(0)
    z1, z2, tau = torch.randn(5, 3).double(), torch.randn(5, 3).double(), 0.3
    encoder = torch.nn.Linear(2, 4)
    encoder.dim = 4  # type: ignore[assignment]
    method = SimCLR(encoder, DataInfo(5, 2, 1, 1), seed=0, candidates="other_view", temperature=tau,
                    normalize=normalize, head="linear", hidden=4, dim=3)  # fmt: skip
    terms = []
    for a, b in ((z1, z2), (z2, z1)):
        a, b = (x / x.norm(dim=1, keepdim=True) if normalize else x for x in (a, b))
        for i in range(5):
            exps = [math.exp(float(a[i] @ b[j]) / tau) for j in range(5)]
            terms.append(-math.log(exps[i] / sum(exps)))
    loss, _ = method.loss({"z1": z1, "z2": z2}, None)
    assert loss.item() == pytest.approx(sum(terms) / len(terms))
    assert method.chance(5) == math.log(5)

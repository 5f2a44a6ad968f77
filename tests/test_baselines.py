"""MoCo v2, BYOL, SimSiam and Barlow Twins against loops written from their equations, and the laws they obey."""

import math

import pytest
import torch

from bench.encoders.conv4 import Conv4
from bench.losses import spread
from bench.methods.barlow_twins import EPSILON, barlow_twins_loss
from bench.methods.base import Batch, DataInfo, Progress
from bench.methods.byol import byol_loss
from bench.methods.moco_v2 import MoCoV2, moco_loss
from bench.methods.simsiam import simsiam_loss


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def unit_rows(x):
    return x / x.norm(dim=1, keepdim=True)


def naive_moco(q, k, queue, temperature):
    """-log of the own key's share among it and the queue, 1911.05722, eq. 1."""
    total = 0.0
    for i in range(len(q)):
        query, key = q[i] / q[i].norm(), k[i] / k[i].norm()
        logits = [query @ key / temperature, *(query @ row / temperature for row in queue)]
        total = total - (logits[0] - torch.stack(logits).logsumexp(0))
    return total / len(q)


def naive_byol(p, z):
    """|p / |p| - z / |z||^2, 2006.07733, eq. 2."""
    total = 0.0
    for i in range(len(p)):
        difference = p[i] / p[i].norm() - z[i] / z[i].norm()
        total = total + sum(entry**2 for entry in difference)
    return total / len(p)


def naive_simsiam(p, z):
    """-p . z / (|p| |z|), 2011.10566, eq. 1."""
    return -sum(p[i] @ z[i] / (p[i].norm() * z[i].norm()) for i in range(len(p))) / len(p)


def naive_barlow(z1, z2, weight):
    """Sum of (C_ii - 1)^2 and weight C_ij^2 with C of eq. 2, 2103.03230, eq. 1."""
    n, d = z1.shape

    def column(z, i):
        mean = sum(z[b, i] for b in range(n)) / n
        variance = sum((z[b, i] - mean) ** 2 for b in range(n)) / n
        return [(z[b, i] - mean) / (variance + EPSILON) ** 0.5 for b in range(n)]

    total = torch.zeros((), dtype=z1.dtype)
    for i in range(d):
        for j in range(d):
            entry = sum(a * b for a, b in zip(column(z1, i), column(z2, j), strict=True)) / n
            total = total + ((entry - 1) ** 2 if i == j else weight * entry**2)
    return total


QUEUE = unit_rows(numbers(7, 5, seed=9))
LOSSES = {
    "moco": (lambda a, b: moco_loss(a, b, QUEUE, 0.2), lambda a, b: naive_moco(a, b, QUEUE, 0.2)),
    "byol": (byol_loss, naive_byol),
    "simsiam": (simsiam_loss, naive_simsiam),
    "barlow": (lambda a, b: barlow_twins_loss(a, b, 0.005), lambda a, b: naive_barlow(a, b, 0.005)),
}
ONE = torch.tensor([[0.3, -1.2, 0.5, 0.1, -0.4]]).double()
INPUTS = {
    "random": (numbers(6, 5), numbers(6, 5, seed=1)),
    "one_row": (numbers(1, 5), numbers(1, 5, seed=1)),
    "duplicate_rows": (numbers(2, 5).repeat(2, 1), numbers(2, 5, seed=1).repeat(2, 1)),
    "collapsed": (ONE.repeat(4, 1), ONE.repeat(4, 1)),
    "opposite": (numbers(4, 5), -numbers(4, 5)),
    "odd_size": (numbers(7, 5), numbers(7, 5, seed=1)),
    "long_rows": (numbers(4, 5) * 1e4, numbers(4, 5, seed=1) * 1e3),
}
each = pytest.mark.parametrize(("ours", "naive"), LOSSES.values(), ids=LOSSES)
cases = pytest.mark.parametrize(("a", "b"), INPUTS.values(), ids=INPUTS)


@each
@cases
def test_value_and_gradient_equal_the_naive_loop(a, b, ours, naive):
    x, y = (a.clone().requires_grad_() for _ in range(2))
    value, expected = ours(x, b), naive(y, b)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(v, [w])[0] for v, w in ((value, x), (expected, y))]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


def test_barlow_twins_gradient_reaches_both_views():
    a, b = (x.clone().requires_grad_() for x in INPUTS["random"])
    c, d = (x.clone().requires_grad_() for x in INPUTS["random"])
    ours = torch.autograd.grad(barlow_twins_loss(a, b, 0.005), [a, b])
    naive = torch.autograd.grad(naive_barlow(c, d, 0.005), [c, d])
    for given, wanted in zip(ours, naive, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("loss", ["moco", "byol", "simsiam"])
def test_no_gradient_flows_into_targets(loss):
    a, b = (x.clone().requires_grad_() for x in INPUTS["random"])
    LOSSES[loss][0](a, b).backward()
    assert a.grad is not None
    assert b.grad is None


@each
@cases
def test_the_order_of_rows_does_not_matter(a, b, ours, naive):
    order = torch.arange(len(a)).roll(1)
    torch.testing.assert_close(ours(a[order], b[order]), ours(a, b), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", ["moco", "byol", "simsiam"])
@cases
def test_positive_scales_of_rows_do_not_matter(a, b, loss):
    ours, scales = LOSSES[loss][0], torch.linspace(0.1, 9.0, len(a)).double()[:, None]
    torch.testing.assert_close(ours(a * scales, b / scales), ours(a, b), rtol=1e-9, atol=1e-9)


@each
def test_half_precision_rows_and_autocast_are_computed_in_single(ours, naive):
    a, b = (x.bfloat16() for x in INPUTS["random"])
    with torch.autocast("cpu", torch.bfloat16):
        value = ours(a, b)
    assert value.dtype == torch.float32
    assert torch.equal(value, ours(a.float(), b.float()))


@cases
def test_byol_lies_in_0_to_4_and_simsiam_in_minus_1_to_1(a, b):
    assert -1e-12 <= byol_loss(a, b).item() <= 4 + 1e-12
    assert -1 - 1e-12 <= simsiam_loss(a, b).item() <= 1 + 1e-12
    assert byol_loss(a, b).item() == pytest.approx(2 + 2 * simsiam_loss(a, b).item())


def test_collapse_and_agreement_have_their_values():
    z = numbers(4, 5)
    assert byol_loss(z, 3 * z).item() == pytest.approx(0.0, abs=1e-12)
    assert byol_loss(z, -z).item() == pytest.approx(4.0)
    assert simsiam_loss(z, 2 * z).item() == pytest.approx(-1.0)
    same, queue = ONE.repeat(3, 1), unit_rows(ONE.repeat(6, 1))
    assert moco_loss(same, same, queue, 0.2).item() == pytest.approx(math.log(7))


def test_spread_is_0_at_collapse_and_one_over_root_d_when_healthy():
    assert spread(ONE.repeat(9, 1) * torch.arange(1.0, 10)[:, None]) == pytest.approx(0.0, abs=1e-12)
    # the squared entries of a unit row sum to 1: each is 1 / d in the mean
    assert spread(numbers(20000, 64)) == pytest.approx(64**-0.5, rel=0.01)


def test_barlow_twins_is_zero_where_the_correlation_is_the_identity():
    # columns of a Hadamard matrix: mean 0, variance 1, uncorrelated; epsilon leaves (1 / (1 + 1e-5) - 1)^2 each
    z = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double()
    assert barlow_twins_loss(z, z, 1.0).item() == pytest.approx(0.0, abs=1e-9)
    assert barlow_twins_loss(z, z[:, [1, 0, 2]], 1.0).item() == pytest.approx(4.0, rel=1e-4)


def test_barlow_twins_ignores_scale_and_shift_of_features_but_not_the_sign_of_a_view():
    z1, z2 = numbers(32, 4), numbers(32, 4, seed=1)
    scale = torch.tensor([100.0, 3.0, 1.0, 20.0]).double()
    loss = barlow_twins_loss(z1, z2, 0.005)
    # up to epsilon, 1e-5 of a variance near 1
    torch.testing.assert_close(barlow_twins_loss(scale * z1 + 5, z2, 0.005), loss, rtol=1e-3, atol=1e-3)
    assert not torch.isclose(barlow_twins_loss(-z1, z2, 0.005), loss, rtol=0.05)


def test_barlow_twins_does_not_tell_the_views_apart():
    a, b = INPUTS["odd_size"]
    torch.testing.assert_close(barlow_twins_loss(a, b, 0.1), barlow_twins_loss(b, a, 0.1))


def test_barlow_twins_of_weight_0_sees_the_diagonal_only():
    z1 = numbers(16, 3)
    mixed = torch.stack([z1[:, 0], z1[:, 0], z1[:, 2]], 1)  # redundant: its second feature is its first
    assert barlow_twins_loss(mixed, mixed, 0.0).item() == pytest.approx(0.0, abs=1e-8)
    assert barlow_twins_loss(mixed, mixed, 1.0).item() > 1.9


def test_barlow_twins_cannot_reach_zero_with_no_more_rows_than_features():
    z = numbers(6, 8)  # centred, of rank 5: at least 8 - 5 of the identity's squared norm is missed
    assert barlow_twins_loss(z, z, 1.0).item() > 8 - 5 - 1e-3


def test_the_queue_holds_no_key_of_the_present_step_when_the_loss_is_computed():
    torch.manual_seed(0)
    method = MoCoV2(
        Conv4(1, width=2, blocks=4, stem_stride=2, sobel=False),
        DataInfo(50, 10, 1, 14),
        seed=0,
        temperature=0.2,
        normalize=True,
        queue_size=20,
        momentum=0.9,
        head="mlp",
        hidden=8,
        dim=4,
    )
    for step in range(4):
        views = [torch.rand(8, 1, 14, 14, generator=torch.Generator().manual_seed(2 * step + i)) for i in range(2)]
        index = torch.arange(8) + 8 * step
        batch = Batch(views, index, index % 10, torch.zeros(8), 0, step)
        e = method.embed(batch)
        loss, _ = method.loss(e, batch)
        assert not set(method.queue.index.tolist()) & set(index.tolist())
        torch.testing.assert_close(loss, moco_loss(e["q"], e["k"], method.queue.rows, 0.2), rtol=0, atol=0)
        branch = [p.clone() for p in method.key_encoder.parameters()]
        with torch.no_grad():
            for p in method.projector.parameters():
                p.add_(0.1)
        method.after_step({name: t.detach() for name, t in e.items()}, batch, Progress(step, 4, 0))
        assert method.queue.index[-8:].tolist() == index.tolist()
        online = [*method.encoder.parameters(), *method.projector.parameters()]
        for old, new, followed in zip(branch, method.key_encoder.parameters(), online, strict=True):
            torch.testing.assert_close(new, 0.9 * old + 0.1 * followed)

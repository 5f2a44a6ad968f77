"""SNCLR against loops written from the paper's equations (Ge et al., 2303.17142, section 3), and its laws."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bench.losses import info_nce
from bench.methods.base import Batch, DataInfo, Progress
from bench.methods.snclr import SNCLR, positiveness, snclr_loss

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64: a few hundred operations, each within 1e-16


def cosine(a, b):
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def naive_snclr(z, keys, neighbours, weights, temperature):
    """-log of the own key and its neighbours, times their weights, over all n (K + 1) unweighted; mean. Section 3."""
    total = 0.0
    for i, anchor in enumerate(z):
        above, below = 0.0, 0.0
        for j, key in enumerate(keys):
            term = (cosine(anchor, key) / temperature).exp()
            above, below = above + (term if i == j else 0.0), below + term
            for k, neighbour in enumerate(neighbours[j]):
                term = (cosine(anchor, neighbour) / temperature).exp()
                above, below = above + (weights[i, k] * term if i == j else 0.0), below + term
        total = total - (above / below).log()
    return total / len(z)


def naive_code_form(z, keys, neighbours, shares, temperature):
    """The shares' sum of logarithms, where the paper has a logarithm of a sum; shares (n, K + 1), the key's first."""
    total = 0.0
    for i, anchor in enumerate(z):
        candidates = [row for j, key in enumerate(keys) for row in (key, *neighbours[j])]
        below = sum((cosine(anchor, row) / temperature).exp() for row in candidates)
        for share, row in zip(shares[i], (keys[i], *neighbours[i]), strict=True):
            total = total - share * ((cosine(anchor, row) / temperature).exp() / below).log()
    return total / len(z)


def naive_positiveness(attention, scale):
    """e^(a_k) over the sum of a row's own K, over gamma. Section 3."""
    naive = torch.zeros_like(attention)
    for i, row in enumerate(attention.tolist()):
        for k, a in enumerate(row):
            naive[i, k] = math.exp(a) / sum(math.exp(other) for other in row) / scale
    return naive


def rows(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights(n, k, seed=9):
    return torch.rand(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def usual(n, d, k, temperature):
    return rows(n, d), rows(n, d, seed=1), rows(n, k, d, seed=2), weights(n, k), temperature


ONE = torch.tensor([[0.3, -1.2, 0.5]], dtype=torch.float64)
LENGTHS = torch.arange(1.0, 21, dtype=torch.float64).view(5, 4, 1)
CASES = {  # z, keys, neighbours, weights, temperature
    "usual": usual(6, 5, 3, 0.2),
    "one_row": usual(1, 4, 3, 0.2),
    "no_neighbours": usual(6, 5, 0, 0.1),
    "one_row_without_neighbours": usual(1, 4, 0, 0.1),
    "one_neighbour": usual(6, 5, 1, 0.2),
    "odd_sizes": usual(7, 3, 5, 0.07),
    "one_dimension": usual(5, 1, 2, 1.0),
    "weights_zero": (*usual(6, 5, 3, 0.2)[:3], torch.zeros(6, 3, dtype=torch.float64), 0.2),
    "weights_one": (*usual(6, 5, 3, 0.2)[:3], torch.ones(6, 3, dtype=torch.float64), 0.2),
    "weights_zero_and_one": (*usual(6, 5, 3, 0.2)[:3], weights(6, 3).round(), 0.2),
    "weights_above_one": (*usual(6, 5, 3, 0.2)[:3], 5 * weights(6, 3), 0.2),
    "duplicate_rows": (*(x.repeat(2, *[1] * (x.ndim - 1)) for x in usual(3, 5, 3, 0.2)[:4]), 0.2),
    "duplicate_neighbours": (*usual(5, 4, 1, 0.2)[:2], rows(5, 1, 4, seed=2).repeat(1, 3, 1), weights(5, 3), 0.2),
    "neighbours_are_the_key": (
        *usual(5, 4, 1, 0.2)[:2],
        rows(5, 4, seed=1)[:, None].repeat(1, 3, 1),
        weights(5, 3),
        0.2,
    ),
    "collapsed": (ONE.repeat(5, 1), ONE.repeat(5, 1), ONE.repeat(5, 4, 1), weights(5, 4), 0.1),
    "collapsed_but_for_length": (LENGTHS[:, 0] * ONE, 3 * ONE.repeat(5, 1), LENGTHS * ONE, weights(5, 4), 0.1),
    "equal_views": (rows(4, 6), rows(4, 6), rows(4, 2, 6, seed=2), weights(4, 2), 0.1),
    "opposite_views": (rows(4, 6), -rows(4, 6), rows(4, 2, 6, seed=2), weights(4, 2), 0.1),
    "long_rows": (1e6 * rows(4, 6), 1e3 * rows(4, 6, seed=1), 1e-3 * rows(4, 2, 6, seed=2), weights(4, 2), 0.2),
    "high_temperature": usual(5, 6, 3, 100.0),
    "low_temperature": usual(5, 6, 3, 0.01),
}
cases = pytest.mark.parametrize(("z", "keys", "neighbours", "w", "temperature"), CASES.values(), ids=CASES)


def value_and_gradients(loss, z, keys, neighbours, w, temperature, autocast=False):
    """The loss, and its gradient with respect to z and to the weights."""
    z, w = z.clone().requires_grad_(), w.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(z, keys, neighbours, w, temperature)
    return value.detach(), *torch.autograd.grad(value, (z, w), materialize_grads=True)


@cases
def test_value_and_gradients_equal_the_naive_loop(z, keys, neighbours, w, temperature):
    given = value_and_gradients(snclr_loss, z, keys, neighbours, w, temperature)
    wanted = value_and_gradients(naive_snclr, z, keys, neighbours, w, temperature)
    for ours, naive in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours, naive, **CLOSE)


@cases
def test_single_precision_agrees_with_the_naive_loop_in_double(z, keys, neighbours, w, temperature):
    value = snclr_loss(z.float(), keys.float(), neighbours.float(), w.float(), temperature)
    assert value.dtype == torch.float32
    # cosines are within 1e-6 of the exact ones, and the loss turns them by at most 2 / temperature
    wanted = naive_snclr(z, keys, neighbours, w, temperature)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=2e-6 / min(1, temperature))


@cases
def test_positive_scales_of_rows_do_not_matter(z, keys, neighbours, w, temperature):
    scales = torch.linspace(0.1, 9.0, len(z), dtype=torch.float64)[:, None]
    across = torch.linspace(5.0, 0.2, neighbours.shape[1], dtype=torch.float64)[:, None]
    wanted = snclr_loss(z, keys, neighbours, w, temperature)
    torch.testing.assert_close(snclr_loss(z * scales, keys, neighbours, w, temperature), wanted, **CLOSE)
    torch.testing.assert_close(snclr_loss(z, keys * scales, neighbours, w, temperature), wanted, **CLOSE)
    scaled = neighbours * scales[:, None] * across
    torch.testing.assert_close(snclr_loss(z, keys, scaled, w, temperature), wanted, **CLOSE)


@cases
def test_a_common_rotation_does_not_matter(z, keys, neighbours, w, temperature):
    r = torch.linalg.qr(rows(z.shape[1], z.shape[1], seed=3)).Q
    given = snclr_loss(z @ r, keys @ r, neighbours @ r, w, temperature)
    torch.testing.assert_close(given, snclr_loss(z, keys, neighbours, w, temperature), **CLOSE)


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_changes_no_bit(dtype, k):
    *given, temperature = usual(8, 16, k, 0.1)
    given = [x.to(dtype) for x in given]
    inside = value_and_gradients(snclr_loss, *given, temperature, autocast=True)
    for under, plain in zip(inside, value_and_gradients(snclr_loss, *given, temperature), strict=True):
        assert under.dtype == dtype
        assert torch.equal(under, plain)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_rows_are_computed_in_single(autocast):
    *given, temperature = usual(8, 16, 3, 0.1)
    halves = [x.bfloat16() for x in given]
    value, *gradients = value_and_gradients(snclr_loss, *halves, temperature, autocast=autocast)
    wanted, *singles = value_and_gradients(snclr_loss, *(x.float() for x in halves), temperature)
    assert value.dtype == torch.float32
    assert torch.equal(value, wanted)
    for half, single in zip(gradients, singles, strict=True):
        # a gradient has its row's type: two roundings, relative to the largest
        near = 2 * torch.finfo(torch.bfloat16).eps * single.abs().max().item()
        torch.testing.assert_close(half.float(), single, rtol=0, atol=near)


def test_half_precision_predictions_do_not_round_the_queues_rows():
    z, keys, neighbours, w, temperature = CASES["usual"]
    z, keys, neighbours, w = z.bfloat16(), keys.bfloat16(), neighbours.float(), w.float()
    given = snclr_loss(z, keys, neighbours, w, temperature)
    torch.testing.assert_close(given, snclr_loss(z.float(), keys.float(), neighbours, w, temperature))


FAR = {"weights_zero": 0.0, "weights_tiny": 1e-30, "weights_small": 1e-3}


@pytest.mark.parametrize("weight", FAR.values(), ids=FAR)
@pytest.mark.parametrize("temperature", [0.2, 0.05, 0.015])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_key_far_below_its_neighbours_is_not_lost(dtype, temperature, weight):
    """e^(-2 / tau) is below what single precision holds from tau = 0.02 down, its logarithm is not."""
    z = torch.eye(4, dtype=torch.float64)
    case = (z, -z, z[:, None], torch.full((4, 1), weight, dtype=torch.float64))
    value, gradient, _ = value_and_gradients(snclr_loss, *(x.to(dtype) for x in case), temperature)
    # single precision: cosines within 1e-6, 2 / temperature
    torch.testing.assert_close(value.double(), naive_snclr(*case, temperature), rtol=1e-6, atol=2e-6 / temperature)
    assert gradient.isfinite().all()


# laws


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_without_neighbours_it_is_info_nce(n, temperature):
    z, keys, *rest = usual(n, 5, 0, temperature)
    torch.testing.assert_close(snclr_loss(z, keys, *rest), info_nce(z, keys, temperature), **CLOSE)


@cases
def test_neighbours_of_weight_zero_are_more_negatives(z, keys, neighbours, w, temperature):
    loss = snclr_loss(z, keys, neighbours, torch.zeros_like(w), temperature)
    assert loss >= info_nce(z, keys, temperature) - 1e-9  # equal without neighbours: the same round-off
    terms = [torch.stack([cosine(a, b) for b in (*keys, *neighbours.flatten(0, 1))]) / temperature for a in z]
    naive = [t.logsumexp(0) - t[i] for i, t in enumerate(terms)]
    torch.testing.assert_close(loss, sum(naive) / len(naive), **CLOSE)


@cases
def test_weights_of_one_give_the_lowest_loss_and_zero_the_highest(z, keys, neighbours, w, temperature):
    losses = [snclr_loss(z, keys, neighbours, x, temperature) for x in (torch.zeros_like(w), w.clamp(0, 1), w * 0 + 1)]
    assert losses[0] >= losses[1] - 1e-9
    assert losses[1] >= losses[2] - 1e-9
    assert losses[2] >= -1e-9  # the numerator is part of the denominator


@cases
def test_it_falls_in_each_weight(z, keys, neighbours, w, temperature):
    _, _, slopes = value_and_gradients(snclr_loss, z, keys, neighbours, w, temperature)
    assert (slopes < 0).all()


@pytest.mark.parametrize(("i", "k"), [(0, 0), (3, 2), (5, 1)])
def test_a_larger_weight_gives_a_smaller_loss(i, k):
    z, keys, neighbours, w, temperature = CASES["usual"]
    losses = []
    for weight in (0.0, 0.1, 0.5, 1.0, 2.0):
        w = w.clone()
        w[i, k] = weight
        losses.append(snclr_loss(z, keys, neighbours, w, temperature).item())
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 5


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("k", [0, 1, 5])
@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_collapse_is_chance(n, k, weight):
    w = torch.full((n, k), weight, dtype=torch.float64)
    loss = snclr_loss(ONE.repeat(n, 1), 2 * ONE.repeat(n, 1), 3 * ONE.repeat(n, k, 1), w, 0.1)
    assert loss.item() == pytest.approx(math.log(n * (k + 1) / (1 + k * weight)), abs=1e-9)
    if weight == 1:
        assert loss.item() == pytest.approx(math.log(n), abs=1e-9)


@cases
def test_the_order_of_a_rows_neighbours_with_their_weights_does_not_matter(z, keys, neighbours, w, temperature):
    mixed, turned = neighbours.clone(), w.clone()
    for i in range(len(z)):
        order = torch.randperm(w.shape[1], generator=torch.Generator().manual_seed(i))
        mixed[i], turned[i] = neighbours[i, order], w[i, order]
    given = snclr_loss(z, keys, mixed, turned, temperature)
    torch.testing.assert_close(given, snclr_loss(z, keys, neighbours, w, temperature), **CLOSE)


def test_the_order_of_neighbours_without_their_weights_matters():
    z, keys, neighbours, w, temperature = CASES["usual"]
    given = snclr_loss(z, keys, neighbours.roll(1, 1), w, temperature)
    assert abs(given - snclr_loss(z, keys, neighbours, w, temperature)) > 1e-3


@cases
def test_the_order_of_rows_does_not_matter(z, keys, neighbours, w, temperature):
    order = torch.arange(len(z)).roll(1)
    given = snclr_loss(z[order], keys[order], neighbours[order], w[order], temperature)
    torch.testing.assert_close(given, snclr_loss(z, keys, neighbours, w, temperature), **CLOSE)


@cases
def test_the_sum_of_logarithms_is_at_least_the_logarithm_of_the_sum(z, keys, neighbours, w, temperature):
    """Jensen, for weights that sum to 1 with the key's: the released code's form is at least the paper's."""
    shares = torch.cat([torch.ones(len(w), 1, dtype=w.dtype), w], 1)
    total = shares.sum(1, keepdim=True)
    code = naive_code_form(z, keys, neighbours, shares / total, temperature)
    # the loss gives the key a weight of 1: dividing all weights by their sum adds its logarithm
    paper = snclr_loss(z, keys, neighbours, w, temperature) + total.log().mean()
    assert code >= paper - 1e-9  # equal where all terms are: the same round-off


def test_no_gradient_reaches_keys_and_neighbours():
    z, keys, neighbours, w, temperature = CASES["usual"]
    leaves = [x.clone().requires_grad_() for x in (z, keys, neighbours, w)]
    snclr_loss(*leaves, temperature).backward()
    assert [x.grad is None or not x.grad.any() for x in leaves] == [False, True, True, False]


# positiveness

ATTENTION = {
    "usual": 3 * rows(5, 4),
    "one_neighbour": rows(5, 1),
    "one_row": rows(1, 7),
    "equal": torch.full((3, 4), -2.5, dtype=torch.float64),
    "wide": 100 * rows(4, 3),
}
attentions = pytest.mark.parametrize("attention", ATTENTION.values(), ids=ATTENTION)
scales = pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])


@attentions
@scales
def test_positiveness_equals_the_naive_loop(attention, scale):
    torch.testing.assert_close(positiveness(attention, scale), naive_positiveness(attention, scale), **CLOSE)


@attentions
@scales
def test_positiveness_sums_to_one_over_the_scale(attention, scale):
    sums = positiveness(attention, scale).sum(1)
    torch.testing.assert_close(sums, torch.full_like(sums, 1 / scale), **CLOSE)


@pytest.mark.parametrize("k", [1, 2, 5])
@scales
def test_equal_similarities_are_equally_positive(k, scale):
    given = positiveness(torch.full((3, k), 7.0, dtype=torch.float64), scale)
    torch.testing.assert_close(given, torch.full_like(given, 1 / k / scale), **CLOSE)


@attentions
def test_positiveness_follows_a_permutation(attention):
    order = torch.arange(attention.shape[1]).flip(0)
    torch.testing.assert_close(positiveness(attention[:, order], 2.0), positiveness(attention, 2.0)[:, order], **CLOSE)


@attentions
def test_positiveness_is_of_a_row_alone(attention):
    alone = torch.cat([positiveness(row[None], 2.0) for row in attention])
    torch.testing.assert_close(positiveness(attention, 2.0), alone, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_changes_no_bit_of_positiveness(dtype):
    attention = ATTENTION["usual"].to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = positiveness(attention, 2.0)
    assert under.dtype == dtype
    assert torch.equal(under, positiveness(attention, 2.0))


def test_positiveness_of_half_precision_is_computed_in_single():
    half = ATTENTION["usual"].bfloat16()
    assert torch.equal(positiveness(half, 2.0), positiveness(half.float(), 2.0))


# the method


class Linear(torch.nn.Module):
    """An encoder with one layer: embeddings can be followed by hand."""

    dim = 4

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x.flatten(1))


OPTIONS = {"temperature": 0.2, "normalize": True, "queue_size": 16, "k": 3, "positiveness": "softmax"} | {
    "attention": "learnt",
    "scale": 2.0,
    "momentum": 0.9,
    "head": "mlp",
    "hidden": 8,
    "dim": 5,
}


def build(**options) -> SNCLR:
    torch.manual_seed(0)
    return SNCLR(Linear(), DataInfo(64, 10, 1, 2), seed=0, **OPTIONS | options)  # type: ignore[arg-type]


def view(seed: int, n: int = 8) -> torch.Tensor:
    return rows(n, 1, 2, 2, seed=seed).float()


def batch(step: int = 0, n: int = 8, views: tuple[torch.Tensor, torch.Tensor] | None = None) -> Batch:
    index = torch.arange(n) + n * step
    shown = list(views or (view(10 * step), view(10 * step + 1)))
    return Batch(shown, index, index % 10, torch.zeros_like(index), 0, step)


def follow(method: SNCLR, e: dict[str, torch.Tensor], b: Batch, steps: int = 10) -> None:
    method.after_step({k: v.detach() for k, v in e.items()}, b, Progress(b.step, steps, 0))


def unit(v):
    return v / (v * v).sum(-1, keepdim=True).sqrt()


def naive_neighbours(queue, keys, k):
    """The k rows of the queue with the largest cosine to each key, nearest first."""
    chosen = []
    for key in keys:
        cosines = [cosine(key, row).item() for row in queue]
        chosen.append([queue[j] for j in sorted(range(len(queue)), key=lambda j: -cosines[j])[:k]])
    return torch.stack([torch.stack(c) for c in chosen])


def naive_attention(method, y, neighbours):
    naive = [
        [(method.f1.weight @ unit(y[i])) @ (method.f2.weight @ row) for row in own] for i, own in enumerate(neighbours)
    ]
    return torch.stack([torch.stack(a) for a in naive])


def test_weights_come_from_y1_and_the_neighbours_of_the_second_views_key():
    method, b = build(), batch()
    follow(method, method.embed(b), b)
    b = batch(1)
    e = method.embed(b)
    for own, other in (("1", "2"), ("2", "1")):
        y = method.projector(method.encoder(b.views[int(own) - 1]))
        key = method.branch(b.views[int(other) - 1])
        torch.testing.assert_close(e["k" + other], key)
        neighbours = naive_neighbours(method.queue.rows, key, 3)
        assert torch.equal(e["nn" + own], neighbours)
        torch.testing.assert_close(e["a" + own], naive_attention(method, y, neighbours))
        torch.testing.assert_close(e["z" + own], method.predictor(y))


def test_another_first_view_changes_the_attention_and_not_the_neighbours():
    method = build()
    usual, other = (method.embed(batch(views=(view(first), view(1)))) for first in (0, 7))
    assert torch.equal(usual["nn1"], other["nn1"])
    assert not torch.allclose(usual["a1"], other["a1"])
    assert not torch.equal(usual["nn2"], other["nn2"])


def test_another_second_view_changes_the_neighbours():
    method = build()
    usual, other = (method.embed(batch(views=(view(0), view(second)))) for second in (1, 7))
    assert not torch.equal(usual["nn1"], other["nn1"])
    assert torch.equal(usual["nn2"], other["nn2"])


@pytest.mark.parametrize("k", [0, 1, 3, 16])
def test_the_loss_is_the_mean_of_both_directions(k):
    method, b = build(k=k), batch()
    e = method.embed(b)
    naive = []
    for z, keys, own in ((e["z1"], e["k2"], "1"), (e["z2"], e["k1"], "2")):
        neighbours = e["nn" + own] if k else torch.zeros(8, 0, 5)
        w = naive_positiveness(e["a" + own].detach(), 2.0) if k else torch.zeros(8, 0)
        naive.append(naive_snclr(*(x.detach().double() for x in (z, keys, neighbours, w)), 0.2))
    # single precision: cosines within 1e-6, 2 / temperature
    torch.testing.assert_close(method.loss(e, b)[0].detach().double(), sum(naive) / 2, rtol=1e-6, atol=1e-5)


def test_without_neighbours_it_is_info_nce_with_a_momentum_branch():
    method, b = build(k=0), batch()
    assert not [name for name, _ in method.named_parameters() if name.startswith("f")]
    e = method.embed(b)
    wanted = (info_nce(e["z1"], e["k2"], 0.2) + info_nce(e["z2"], e["k1"], 0.2)) / 2
    torch.testing.assert_close(method.loss(e, b)[0], wanted)


@pytest.mark.parametrize("k", [0, 3])
def test_a_gradient_reaches_every_online_parameter_and_none_of_the_branch(k):
    method, b = build(k=k), batch()
    e = method.embed(b)
    method.loss(e, b)[0].backward()
    branch = {name for name, _ in method.named_parameters() if name.startswith("branch.")}
    assert branch
    for name, parameter in method.named_parameters():
        assert (parameter.grad is None) == (name in branch), name
        assert parameter.requires_grad == (name not in branch), name
        assert name in branch or parameter.grad.abs().max() > 0, name
    assert not any(rows.requires_grad for rows in (method.queue.rows, e["k1"], e["k2"]))
    reached = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}
    assert reached == {"encoder", "projector", "predictor"} | ({"f1", "f2"} if k else set())


def test_weights_carry_gradient_to_f1_f2_and_y1_and_not_to_the_branch():
    method, b = build(), batch()
    positiveness(method.embed(b)["a1"], 2.0)[:, 0].sum().backward()
    reached = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}
    assert reached == {"f1", "f2", "projector", "encoder"}


def test_the_look_up_finds_only_what_earlier_steps_enqueued():
    method = build(momentum=1.0)
    for step in range(4):
        b = batch(step)
        before = method.queue.rows.clone()
        e = method.embed(b)
        method.loss(e, b)
        assert torch.equal(method.queue.rows, before)
        for neighbours, keys in ((e["nn1"], e["k2"]), (e["nn2"], e["k1"])):
            assert torch.equal(neighbours, naive_neighbours(before, keys, 3))
            # never a key of this step: the nearest rows are farther than single precision's round-off
            assert (unit(keys)[:, None] * neighbours).sum(2).max() < 1 - 1e-5
        follow(method, e, b)
        # the same images at the next step: a branch that stands still finds what this step enqueued
        torch.testing.assert_close(method.embed(b)["nn1"][:, 0], unit(e["k2"]))


def test_only_the_second_views_momentum_projection_is_enqueued():
    method = build()
    for step in range(3):
        b, before = batch(step), method.queue.rows.clone()
        e = method.embed(b)
        follow(method, e, b)
        torch.testing.assert_close(method.queue.rows[-8:], unit(e["k2"]))
        assert torch.equal(method.queue.rows[:-8], before[8:])
        assert method.queue.index[-8:].tolist() == b.index.tolist()


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_the_branch_follows_at_a_momentum_that_rises_to_one(steps):
    method = build(momentum=0.6)
    online = [*method.encoder.parameters(), *method.projector.parameters()]
    momenta = []
    for step in range(steps):
        with torch.no_grad():  # what an optimiser might do
            for seed, parameter in enumerate(online):
                parameter.add_(rows(*parameter.shape, seed=100 * step + seed).float())
        before = [p.clone() for p in method.branch.parameters()]
        b = batch(step)
        follow(method, method.embed(b), b, steps)
        momentum = 1 - (1 - 0.6) * (1 + math.cos(math.pi * (step + 1) / steps)) / 2
        momenta.append(momentum)
        for average, old, new in zip(method.branch.parameters(), before, online, strict=True):
            torch.testing.assert_close(average, momentum * old + (1 - momentum) * new, rtol=1e-5, atol=1e-6)
    assert momenta == sorted(momenta)
    assert momenta[-1] == 1
    assert all(torch.equal(p, old) for p, old in zip(method.branch.parameters(), before, strict=True))


def test_the_branch_starts_as_a_copy_of_encoder_and_projector():
    method = build()
    online = [*method.encoder.parameters(), *method.projector.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(method.branch.parameters(), online, strict=True))


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_collapse_of_rows_and_queue_is_what_the_method_calls_chance(n, k, scale):
    method, b = build(k=k, scale=scale), batch(n=n, views=(view(0, n), view(1, n)))
    e = dict.fromkeys(("z1", "z2", "k1", "k2"), torch.ones(n, 5))
    if k:
        e |= dict.fromkeys(("a1", "a2"), torch.zeros(n, k)) | dict.fromkeys(("nn1", "nn2"), torch.ones(n, k, 5))
    loss = method.loss(e, b)[0].item()
    assert loss == pytest.approx(method.chance(n), abs=1e-5)
    assert loss == pytest.approx(math.log(n * (k + 1) / (1 + (1 / scale if k else 0))), abs=1e-5)


def test_the_loss_does_not_change_when_the_views_are_swapped():
    method = build().eval()
    given, swapped = batch(views=(view(0), view(1))), batch(views=(view(1), view(0)))
    wanted = method.loss(method.embed(given), given)[0]
    torch.testing.assert_close(method.loss(method.embed(swapped), swapped)[0], wanted)


def test_queue_and_branch_survive_a_round_trip_of_the_state():
    method, other = build(), build()
    for step in range(2):
        follow(method, method.embed(batch(step)), batch(step))
    other.load_state_dict(method.state_dict())
    for step in range(2, 4):
        b = batch(step)
        e, restored = method.embed(b), other.embed(b)
        assert torch.equal(method.loss(e, b)[0], other.loss(restored, b)[0])
        follow(method, e, b)
        follow(other, restored, b)
    assert torch.equal(method.queue.rows, other.queue.rows)


# ---- the ablations


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("softmax", [[0.09003057, 0.24472847, 0.66524096], [1 / 3, 1 / 3, 1 / 3]]),
        ("zero", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        ("one", [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]),
        ("threshold", [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_positiveness_of_each_kind_is_divided_by_gamma(kind, expected):
    attention = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    torch.testing.assert_close(positiveness(attention, 2.0, kind), torch.tensor(expected) / 2)


def test_the_cosine_attention_has_no_f1_and_f2():
    method, b = build(attention="cosine"), batch()
    assert not any(name.startswith(("f1", "f2")) for name, _ in method.named_parameters())
    e = method.embed(b)
    y = method.projector(method.encoder(b.views[0]))
    torch.testing.assert_close(e["a1"], torch.einsum("nd,nkd->nk", F.normalize(y, dim=1), e["nn1"]))


@pytest.mark.parametrize("kind", ["zero", "one", "threshold"])
def test_a_constant_positiveness_trains_no_attention(kind):
    method = build(positiveness=kind)
    assert not any(name.startswith(("f1", "f2")) for name, _ in method.named_parameters())


def test_without_a_momentum_branch_keys_are_the_online_projections_and_carry_no_gradient():
    method, b = build(momentum=None), batch()
    e = method.embed(b)
    assert method.branch is None
    torch.testing.assert_close(e["k1"], method.projector(method.encoder(b.views[0])))
    assert not e["k1"].requires_grad
    method.after_step({k: v.detach() for k, v in e.items()}, b, Progress(0, 10, 0))
    torch.testing.assert_close(method.queue.rows[-8:], F.normalize(e["k2"], dim=1))


def naive_auc(mine, others):
    pairs = [(a > b) + 0.5 * (a == b) for a in mine for b in others]
    return float(sum(pairs)) / len(pairs)


def test_weights_by_class_are_those_of_the_neighbours_images_whatever_is_noise():
    method = build(k=6, queue_size=24)
    method.labels = labels = torch.arange(64) % 3
    for step in range(2):  # 16 images in 24 rows: 8 rows are noise still
        b = batch(step)
        follow(method, method.embed(b), b)
    b = replace(batch(2), labels=labels[batch(2).index])
    e = method.embed(b)
    logs = method.loss(e, b)[1]
    origins = method.queue.index[e["at1"]]
    w = positiveness(e["a1"], method.scale).detach()
    mine, others = [], []
    for i in range(8):
        for k in range(6):
            if origins[i, k] >= 0:
                (mine if labels[origins[i, k]] == b.labels[i] else others).append(w[i, k].item())
    assert 0 < len(mine) < len(others)
    assert (origins == -1).any()
    assert logs["weight_same"] == pytest.approx(sum(mine) / len(mine))
    assert logs["weight_other"] == pytest.approx(sum(others) / len(others))
    assert logs["weight_auc"] == pytest.approx(naive_auc(mine, others))


def test_before_any_image_is_in_the_queue_weights_by_class_are_equal():
    method = build(k=4)
    method.labels = torch.arange(64) % 3
    b = batch()
    logs = method.loss(method.embed(b), b)[1]
    assert logs["weight_auc"] == 0.5
    assert logs["weight_same"] == logs["weight_other"] == pytest.approx(1 / 4 / method.scale)

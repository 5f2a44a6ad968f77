"""SwAV against loops written from its equations: the swapped prediction, Sinkhorn-Knopp, the queue, the prototypes."""

import copy
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from bench.checkpoint import Checkpoints
from bench.methods.base import Batch, DataInfo, Progress
from bench.methods.swav import SwAV, sinkhorn, swav_loss
from bench.pretrain import Trainer
from tests.test_methods import config, images

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64: a few hundred operations, each within 1e-16


def naive_sinkhorn(scores, epsilon, iterations):
    """Q = Diag(u) exp(C^T Z / epsilon) Diag(v), 2006.09882, eq. 5, as its appendix A iterates it.

    Each prototype's total to 1 / K, then each image's to 1 / n; an image's row of n Q is its assignment.
    """
    n, k = scores.shape
    q = [[math.exp(float(s) / epsilon) for s in row] for row in scores]
    for _ in range(iterations):
        for j in range(k):
            total = sum(q[i][j] for i in range(n))
            for i in range(n):
                q[i][j] /= total * k
        for i in range(n):
            total = sum(q[i])
            q[i] = [x / (total * n) for x in q[i]]
    return torch.tensor([[x / sum(row) for x in row] for row in q], dtype=torch.float64)


def naive_swav(scores, assignments, temperature):
    """l(z_t, q_s) = -sum_k q_s^(k) log p_t^(k), 2006.09882, eq. 2, over the pairs of eq. 6, as a mean."""
    total, terms = 0.0, 0
    for s, codes in enumerate(assignments):
        for t, view in enumerate(scores):
            if s == t:
                continue
            for i in range(len(view)):
                below = sum((x / temperature).exp() for x in view[i])
                for k, x in enumerate(view[i]):
                    total = total - codes[i][k] * ((x / temperature).exp() / below).log()
                terms += 1
    return total / terms


def rows(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosines(n, k, seed=0, d=4):
    return F.normalize(rows(n, d, seed), dim=1) @ F.normalize(rows(k, d, seed + 100), dim=1).mT


def views(n, k, count):
    return [cosines(n, k, seed) for seed in range(count)]


def codes(n, k, count=2):
    return [rows(n, k, 50 + seed).softmax(1) for seed in range(count)]


ONE = cosines(1, 5)
CASES = {
    "usual": (views(6, 4, 2), codes(6, 4), 0.1),
    "one_row": (views(1, 4, 2), codes(1, 4), 0.1),
    "one_prototype": (views(3, 1, 2), codes(3, 1), 0.1),
    "odd_sizes": (views(7, 5, 2), codes(7, 5), 0.3),
    "one_local_view": (views(4, 3, 3), codes(4, 3), 0.1),
    "four_local_views": (views(3, 5, 6), codes(3, 5), 0.2),
    "duplicate_rows": ([v.repeat(2, 1) for v in views(3, 4, 3)], [q.repeat(2, 1) for q in codes(3, 4)], 0.1),
    "collapsed": ([ONE.repeat(4, 1)] * 3, [torch.full((4, 5), 0.2, dtype=torch.float64)] * 2, 0.1),
    "hard_codes": (views(4, 4, 2), [torch.eye(4, dtype=torch.float64)] * 2, 0.1),
    "low_temperature": (views(5, 4, 3), codes(5, 4), 0.01),
    "high_temperature": (views(5, 4, 3), codes(5, 4), 100.0),
    "three_global_views": (views(3, 4, 4), codes(3, 4, 3), 0.1),
}
cases = pytest.mark.parametrize(("scores", "assignments", "temperature"), CASES.values(), ids=CASES)


def value_and_gradients(loss, scores, assignments, temperature):
    scores = [s.clone().requires_grad_() for s in scores]
    value = loss(scores, assignments, temperature)
    return value.detach(), *torch.autograd.grad(value, scores)


@cases
def test_value_and_gradient_equal_the_naive_loop(scores, assignments, temperature):
    given = value_and_gradients(swav_loss, scores, assignments, temperature)
    wanted = value_and_gradients(naive_swav, scores, assignments, temperature)
    for ours, naive in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours, naive, **CLOSE)


@cases
def test_single_precision_agrees_with_the_naive_loop_in_double(scores, assignments, temperature):
    value = swav_loss([s.float() for s in scores], [q.float() for q in assignments], temperature)
    assert value.dtype == torch.float32
    # scores are within 6e-8 of the exact ones, and the loss turns them by at most 2 / temperature
    wanted = naive_swav(scores, assignments, temperature)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-6 / min(1, temperature))


@cases
def test_the_order_of_views_within_their_kind_does_not_matter(scores, assignments, temperature):
    k = len(assignments)
    swapped = [*scores[:k][::-1], *scores[k:][::-1]]
    ours = swav_loss(swapped, assignments[::-1], temperature)
    torch.testing.assert_close(ours, swav_loss(scores, assignments, temperature), **CLOSE)


@cases
def test_the_names_of_prototypes_do_not_matter(scores, assignments, temperature):
    order = torch.arange(scores[0].shape[1]).roll(1)
    ours = swav_loss([s[:, order] for s in scores], [q[:, order] for q in assignments], temperature)
    torch.testing.assert_close(ours, swav_loss(scores, assignments, temperature), **CLOSE)


def test_a_view_does_not_predict_its_own_assignment():
    a, b = views(4, 3, 2)
    hard = [torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]], torch.eye(3, dtype=torch.float64)[[2, 2, 1, 0]]]
    crossed = -(a.div(0.1).log_softmax(1)[range(4), [2, 2, 1, 0]] + b.div(0.1).log_softmax(1)[range(4), [0, 1, 2, 0]])
    torch.testing.assert_close(swav_loss([a, b], hard, 0.1), crossed.mean() / 2, **CLOSE)


@pytest.mark.parametrize("k", [1, 2, 20, 3000])
@pytest.mark.parametrize("count", [2, 5])
def test_uniform_scores_are_chance(k, count):
    scores = [torch.full((3, k), 0.7, dtype=torch.float64)] * count
    assert swav_loss(scores, codes(3, k), 0.1).item() == pytest.approx(math.log(k), abs=1e-9)


# Sinkhorn-Knopp

MATRICES = {
    "usual": (cosines(8, 4), 0.05),
    "more_prototypes_than_rows": (cosines(3, 7), 0.05),
    "one_row": (cosines(1, 5), 0.05),
    "one_prototype": (cosines(5, 1), 0.05),
    "odd_sizes": (cosines(7, 5), 0.1),
    "duplicate_rows": (cosines(3, 4).repeat(2, 1), 0.05),
    "collapsed": (ONE.repeat(6, 1), 0.05),
    "uniform": (torch.full((4, 3), 0.3, dtype=torch.float64), 0.05),
    "sharp": (cosines(6, 4), 0.01),
    "flat": (cosines(6, 4), 10.0),
}
matrices = pytest.mark.parametrize(("scores", "epsilon"), MATRICES.values(), ids=MATRICES)
iterated = pytest.mark.parametrize("iterations", [0, 1, 3, 10])


@matrices
@iterated
def test_assignments_equal_the_naive_algorithm(scores, epsilon, iterations):
    torch.testing.assert_close(
        sinkhorn(scores, epsilon, iterations), naive_sinkhorn(scores, epsilon, iterations), **CLOSE
    )


@matrices
@iterated
def test_rows_sum_to_one_and_are_not_negative(scores, epsilon, iterations):
    q = sinkhorn(scores, epsilon, iterations)
    torch.testing.assert_close(q.sum(1), torch.ones(len(q), dtype=torch.float64), rtol=0, atol=1e-12)
    assert (q >= 0).all()


@matrices
def test_no_iterations_are_a_softmax(scores, epsilon):
    torch.testing.assert_close(sinkhorn(scores, epsilon, 0), (scores / epsilon).softmax(1), **CLOSE)


# random cosines of 32 rows: what is left of the imbalance shrinks geometrically
@pytest.mark.parametrize(("iterations", "tolerance"), [(3, 3.0), (10, 1.0), (100, 1e-4), (1000, 1e-9)])
def test_prototypes_are_used_alike_the_more_so_the_longer_it_iterates(iterations, tolerance):
    n, k = 32, 5
    q = sinkhorn(cosines(n, k), 0.05, iterations)
    torch.testing.assert_close(q.sum(0), torch.full((k,), n / k, dtype=torch.float64), rtol=0, atol=tolerance)


@matrices
def test_the_imbalance_of_prototypes_never_grows_with_iterations(scores, epsilon):
    n, k = scores.shape
    errors = [(sinkhorn(scores, epsilon, t).sum(0) - n / k).abs().sum() for t in range(1, 12)]
    # scaling rows and columns is a stochastic map, under which the absolute error cannot grow but by round-off
    assert all(after <= before + 1e-9 for before, after in pairwise(errors))


@iterated
@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (3, 20)])
def test_uniform_scores_give_uniform_assignments(shape, iterations):
    q = sinkhorn(torch.full(shape, -0.4, dtype=torch.float64), 0.05, iterations)
    torch.testing.assert_close(q, torch.full(shape, 1 / shape[1], dtype=torch.float64), rtol=0, atol=1e-12)


@matrices
@iterated
@pytest.mark.parametrize("shift", [-3.0, 5.0])
def test_a_constant_added_to_all_scores_does_not_matter(scores, epsilon, iterations, shift):
    # the shift is rounded at 1e-15, and divided by epsilon
    torch.testing.assert_close(
        sinkhorn(scores + shift, epsilon, iterations), sinkhorn(scores, epsilon, iterations), rtol=0, atol=1e-9
    )


@matrices
@pytest.mark.parametrize("iterations", [1, 3])
def test_a_prototype_that_all_rows_prefer_alike_gains_nothing(scores, epsilon, iterations):
    # scaling columns first takes any constant of a column away
    shifts = torch.linspace(-1, 1, scores.shape[1], dtype=torch.float64)
    torch.testing.assert_close(
        sinkhorn(scores + shifts, epsilon, iterations), sinkhorn(scores, epsilon, iterations), rtol=0, atol=1e-9
    )


@matrices
@iterated
def test_permuted_rows_and_prototypes_permute_the_assignments(scores, epsilon, iterations):
    a = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    b = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(1))
    ours = sinkhorn(scores[a][:, b], epsilon, iterations)
    torch.testing.assert_close(ours, sinkhorn(scores, epsilon, iterations)[a][:, b], **CLOSE)


@pytest.mark.parametrize("epsilon", [0.05, 0.005])
@iterated
def test_single_precision_does_not_overflow(epsilon, iterations):
    scores = cosines(16, 6)
    scores[0], scores[1], scores[:, 0] = 1.0, -1.0, 1.0  # e^(1 / .005) is far above the largest float32
    q = sinkhorn(scores.float(), epsilon, iterations)
    assert q.dtype == torch.float32
    assert q.isfinite().all()
    # scores / epsilon are up to 200, held within 2^-17
    torch.testing.assert_close(q.double(), naive_sinkhorn(scores, epsilon, iterations), rtol=0, atol=2e-4)
    torch.testing.assert_close(q.sum(1), torch.ones(16), rtol=0, atol=1e-6)


# The method


class Flat(torch.nn.Module):
    """An encoder that shows the pixels: embeddings can be followed by hand."""

    dim = 4

    def forward(self, x):
        return x.flatten(1)


OPTIONS = {
    "prototypes": 5,
    "temperature": 0.1,
    "normalize": True,
    "epsilon": 0.05,
    "iterations": 3,
    "queue_size": 16,
    "queue_from": 1,
    "freeze_steps": 0,
    "head": "mlp",
    "hidden": 8,
    "dim": 3,
}


def swav(seed=0, **changes):
    torch.manual_seed(seed)
    return SwAV(Flat(), DataInfo(64, 10, 1, 2), seed=seed, **OPTIONS | changes).double()


def batch(step, epoch=0, n=8, count=2):
    shown = [rows(n, 4, 1000 + 10 * step + v).reshape(n, 1, 2, 2) for v in range(count)]
    index = torch.arange(n) + n * step
    return Batch(shown, index, index % 10, torch.zeros(n, dtype=torch.int64), epoch, step)


def finish(method, e, b):
    method.after_step({name: t.detach() for name, t in e.items()}, b, Progress(b.step, 100, b.epoch))


def expected(method, e, count, past=(), *, iterations=3):
    """The loss of a batch from its definition; `past`: z of earlier batches for each global view."""
    prototypes = method.prototypes.weight.detach()
    assignments = []
    for view in range(2):
        scores = e[f"s{view + 1}"].detach()
        n = len(scores)
        if past:
            scores = torch.stack([*scores, *(prototypes @ z for z in past[view])])
        assignments.append(naive_sinkhorn(scores, 0.05, iterations)[:n])
    return naive_swav([e[f"s{i + 1}"] for i in range(count)], assignments, 0.1)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_scores_are_cosines_to_the_prototypes_in_every_view(count):
    method, b = swav().eval(), batch(0, count=count)
    e = method.embed(b)
    for i in range(count):
        z = method.projector(b.views[i].flatten(1))
        naive = torch.stack([F.cosine_similarity(z, c[None], dim=1) for c in method.prototypes.weight], 1)
        ours = e[f"s{i + 1}"]
        torch.testing.assert_close(ours, naive, rtol=0, atol=1e-6)  # prototypes were made unit in single precision
        assert ours.requires_grad


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("iterations", [0, 3])
def test_loss_and_gradients_are_those_of_constant_assignments(count, iterations):
    method, b = swav(iterations=iterations), batch(0, count=count)
    gradients = []
    for loss in (lambda e: method.loss(e, b)[0], lambda e: expected(method, e, count, iterations=iterations)):
        e = method.embed(b)
        value = loss(e)
        scores = [e[f"s{i + 1}"] for i in range(count)]
        gradients.append((value, *torch.autograd.grad(value, [*scores, *method.parameters()])))
    for ours, naive in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, naive, **CLOSE)


@pytest.mark.parametrize("count", [2, 4])
def test_the_loss_does_not_change_when_the_global_views_are_swapped(count):
    method, b = swav(queue_size=0).eval(), batch(0, count=count)
    swapped = Batch([b.views[1], b.views[0], *b.views[2:]], b.index, b.labels, b.occurrence, 0, 0)
    losses = [method.loss(method.embed(x), x)[0] for x in (b, swapped)]
    torch.testing.assert_close(*losses, **CLOSE)


def test_at_uniform_scores_the_loss_is_what_the_method_calls_chance():
    method, b = swav(), batch(0, count=4)
    e = {name: torch.full_like(t, 0.2) for name, t in method.embed(b).items()}
    assert method.loss(e, b)[0].item() == pytest.approx(math.log(5), abs=1e-9)
    assert method.chance(8) == pytest.approx(math.log(5))


@pytest.mark.parametrize(("size", "queue_from"), [(16, 1), (20, 0), (8, 2), (5, 0)])
def test_the_queue_joins_the_assignments_once_full_and_from_its_epoch_on(size, queue_from):
    method = swav(queue_size=size, queue_from=queue_from)
    past, joined = ([], []), []
    for step in range(9):
        b = batch(step, epoch=step // 3, count=3)
        e = method.embed(b)
        use = len(past[0]) >= size and b.epoch >= queue_from
        wanted = expected(method, e, 3, [z[-size:] for z in past] if use else ())
        torch.testing.assert_close(method.loss(e, b)[0], wanted, **CLOSE)
        joined.append(use and abs(wanted - expected(method, e, 3)).item() > 1e-6)
        before = [queue.rows.clone() for queue in method.queues]
        method.loss(e, b)
        assert all(torch.equal(queue.rows, rows) for queue, rows in zip(method.queues, before, strict=True))
        finish(method, e, b)
        for z, name in zip(past, ("z1", "z2"), strict=True):
            z.extend(e[name].detach())
    assert joined == [8 * step >= size and step // 3 >= queue_from for step in range(9)]


def test_the_queue_holds_unit_embeddings_of_earlier_batches_each_view_its_own():
    method = swav()
    assert len(method.queues) == 2
    for step in range(3):
        b = batch(step)
        e = method.embed(b)
        finish(method, e, b)
        for queue, name in zip(method.queues, ("z1", "z2"), strict=True):
            torch.testing.assert_close(queue.rows[-8:], e[name].detach(), **CLOSE)
            torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(16).double(), rtol=0, atol=1e-6)


def test_rows_of_the_queue_are_no_rows_of_the_loss():
    method = swav(queue_from=0)
    for step in range(3):
        b = batch(step)
        e = method.embed(b)
        loss, _ = method.loss(e, b)
        assert {name: len(t) for name, t in e.items()} == dict.fromkeys(("s1", "s2", "z1", "z2"), 8)
        assert all(not queue.rows.requires_grad for queue in method.queues)
        loss.backward()
        finish(method, e, b)


def test_without_a_queue_nothing_is_kept():
    method = swav(queue_size=0, queue_from=0)
    for step in range(3):
        b = batch(step)
        e = method.embed(b)
        torch.testing.assert_close(method.loss(e, b)[0], expected(method, e, 2), **CLOSE)
        finish(method, e, b)
    assert not list(method.buffers(recurse=False))
    assert not any("queue" in name for name in method.state_dict())


def test_all_of_its_state_is_saved_and_restored():
    method = swav()
    for step in range(3):
        b = batch(step)
        finish(method, method.embed(b), b)
    other = swav(seed=1)
    later = batch(3, epoch=1)
    assert method.loss(method.embed(later), later)[0] != other.loss(other.embed(later), later)[0]
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    ours, theirs = (m.loss(m.embed(later), later) for m in (method, other))
    assert torch.equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]
    for queue, restored in zip(method.queues, other.queues, strict=True):
        assert torch.equal(queue.rows, restored.rows)
        assert torch.equal(queue.index, restored.index)
        assert queue.full
        assert restored.full


# Training

OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": 0.3, "momentum": 0.9, "weight_decay": 0.1, "decay_norm_bias": True},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "decay_norm_bias": True},
    "lars": {"name": "lars", "lr": 0.3, "momentum": 0.9, "weight_decay": 0.1, "decay_norm_bias": True, "eta": 0.01},
}
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def train(folder, optimizer, freeze):
    """Prototypes before training and after each of its 6 steps."""
    cell = copy.deepcopy(config("swav", epochs=2, optimizer=optimizer))
    cell["method"]["options"]["freeze_steps"] = freeze
    weights = []

    def keep(step, steps):
        weights.append(run.method.prototypes.weight.detach().clone())

    run = Trainer(cell, images(1), Checkpoints(folder), report=keep)
    keep(0, 6)
    run.run()
    return weights


@optimizers
def test_prototypes_are_unit_before_training_and_after_each_step(tmp_path, optimizer):
    weights = train(tmp_path, optimizer, freeze=2)
    assert len(weights) == 7
    for weight in weights:
        # within two roundings of float32
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(20), rtol=0, atol=3e-7)


@optimizers
@pytest.mark.parametrize("freeze", [0, 2, 100])
def test_frozen_prototypes_do_not_move_by_gradient_decay_or_momentum(tmp_path, optimizer, freeze):
    weights = train(tmp_path, optimizer, freeze)
    for step, (before, after) in enumerate(pairwise(weights)):
        if step < freeze:
            assert torch.equal(before, after), f"moved in step {step} by {(before - after).abs().max():.1e}"
        else:
            assert (before - after).abs().max() > 1e-5

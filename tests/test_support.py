"""The support set: first in, first out, of unit rows, looked up before the step and filled after it."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from bench.losses import info_nce
from bench.methods.nnclr import nnclr_loss
from bench.support import NOISE, MemoryBank, SupportSet


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("size", "batches"),
    [
        pytest.param(8, [4, 4, 4], id="divides"),
        pytest.param(10, [4, 4, 4, 4, 4], id="does_not_divide"),
        pytest.param(10, [3, 7, 1, 9], id="uneven"),
        pytest.param(5, [12], id="batch_larger_than_the_set"),
        pytest.param(5, [2, 12, 3], id="larger_in_between"),
        pytest.param(4, [4], id="exactly_full"),
        pytest.param(6, [2], id="not_full_yet"),
        pytest.param(1, [3, 2], id="one_row"),
    ],
)
def test_it_holds_the_last_rows_pushed_oldest_first(size, batches):
    support = SupportSet(size, 3, seed=0)
    pushed, origins = list(support.rows), [NOISE] * size  # naive: a list from which the oldest is dropped
    for step, n in enumerate(batches):
        z = numbers(n, 3, seed=step + 1)
        index = torch.arange(n) + 100 * step
        support.enqueue(z, index)
        pushed = [*pushed, *F.normalize(z, dim=1)][-size:]
        origins = [*origins, *index.tolist()][-size:]
    torch.testing.assert_close(support.rows, torch.stack(pushed), rtol=0, atol=0)
    assert support.index.tolist() == origins


def test_rows_are_unit_from_the_start_and_whatever_is_pushed():
    support = SupportSet(7, 4, seed=3)
    torch.testing.assert_close(support.rows.norm(dim=1), torch.ones(7))
    support.enqueue(100 * numbers(5, 4))
    torch.testing.assert_close(support.rows.norm(dim=1), torch.ones(7))
    assert support.index.tolist() == [NOISE] * 7


def test_initial_rows_follow_the_seed():
    assert torch.equal(SupportSet(5, 3, 1).rows, SupportSet(5, 3, 1).rows)
    assert not torch.equal(SupportSet(5, 3, 1).rows, SupportSet(5, 3, 2).rows)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_neighbours_are_the_rows_of_largest_cosine_nearest_first(k):
    support, z = SupportSet(9, 4, seed=0), numbers(6, 4, seed=5)
    support.enqueue(numbers(5, 4, seed=6))
    neighbours, positions = support.nearest(z, k)
    rows = support.rows
    for i in range(6):
        cosines = [float(F.cosine_similarity(z[i], row, dim=0)) for row in rows]
        naive = sorted(range(9), key=lambda j: -cosines[j])[:k]
        assert positions[i].tolist() == naive
        assert torch.equal(neighbours[i], rows[naive])


def test_a_mask_keeps_rows_out():
    support, z = SupportSet(6, 3, seed=0), numbers(2, 3)
    allowed = torch.tensor([[True, False, True, False, True, False], [False, True] * 3])
    _, positions = support.nearest(z, 3, allowed)
    assert all(allowed[i, p] for i in range(2) for p in positions[i])
    with pytest.raises(ValueError, match="fewer than k = 4"):
        support.nearest(z, 4, allowed)


@pytest.mark.parametrize("k", [0, 7])
def test_more_neighbours_than_rows_is_an_error(k):
    with pytest.raises(ValueError, match=f"1 to the support set's 6 rows, not {k}"):
        SupportSet(6, 3, seed=0).nearest(numbers(2, 3), k)


def test_all_of_its_state_is_saved_and_restored():
    support = SupportSet(5, 3, seed=0)
    support.enqueue(numbers(7, 3), torch.arange(7))
    other = SupportSet(5, 3, seed=9)
    other.load_state_dict(support.state_dict())
    support.enqueue(numbers(3, 3, seed=2), torch.arange(3))
    other.enqueue(numbers(3, 3, seed=2), torch.arange(3))
    assert torch.equal(other.rows, support.rows)
    assert torch.equal(other.index, support.index)


def test_a_larger_support_set_never_has_a_farther_neighbour():
    z, pushed = numbers(8, 4), numbers(40, 4, seed=1)
    best = []
    for size in (5, 10, 20, 40):
        support = SupportSet(size, 4, seed=0)
        support.enqueue(pushed)
        neighbours, _ = support.nearest(z)
        best.append((F.normalize(z, dim=1) * neighbours[:, 0]).sum(1))
    assert all((after >= before).all() for before, after in pairwise(best))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_bank_rows_are_unit_and_move_only_where_they_are_updated(momentum):
    bank, z = MemoryBank(9, 4, momentum, seed=0), 3 * numbers(3, 4)
    before, index = bank.rows.clone(), torch.tensor([7, 0, 4])
    bank.update(index, z)
    naive = before.clone()
    for row, v in zip(index.tolist(), z, strict=True):
        mixed = momentum * before[row] + (1 - momentum) * v / v.norm()
        naive[row] = mixed / mixed.norm()
    torch.testing.assert_close(bank.rows, naive)
    untouched = [row for row in range(9) if row not in index.tolist()]
    assert torch.equal(bank.rows[untouched], before[untouched])
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(9))


# NNCLR


def naive_nnclr(neighbours, predictions, temperature):
    """Section 3.2, written out: -log of exp(NN_i . p_i / tau) over the sum over k of exp(NN_i . p_k / tau)."""

    def unit(v):
        return v / v.norm()

    total = 0.0
    for i in range(len(neighbours)):
        logits = [unit(neighbours[i]) @ unit(p) / temperature for p in predictions]
        total = total - (logits[i] - torch.stack(logits).logsumexp(0))
    return total / len(neighbours)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_loss_equals_a_naive_loop_in_value_and_gradient(n):
    neighbours = numbers(n, 5).double()
    ours, theirs = (numbers(n, 5, seed=1).double().requires_grad_() for _ in range(2))
    loss, naive = nnclr_loss(neighbours, ours, 0.1), naive_nnclr(neighbours, theirs, 0.1)
    torch.testing.assert_close(loss, naive, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        *(torch.autograd.grad(v, [x])[0] for v, x in ((loss, ours), (naive, theirs))), rtol=1e-9, atol=1e-9
    )


def test_self_support_with_its_own_embeddings_it_is_info_nce():
    z1, p2 = numbers(12, 6), numbers(12, 6, seed=1)
    support = SupportSet(12, 6, seed=0)
    support.enqueue(z1)
    neighbours, positions = support.nearest(z1)
    assert positions[:, 0].tolist() == list(range(12))
    torch.testing.assert_close(nnclr_loss(neighbours[:, 0], p2, 0.1), info_nce(z1, p2, 0.1))


def test_no_gradient_flows_into_neighbours():
    neighbours = numbers(4, 3).requires_grad_()
    predictions = numbers(4, 3, seed=1).requires_grad_()
    nnclr_loss(neighbours, predictions, 0.1).backward()
    assert neighbours.grad is None
    assert predictions.grad is not None


def test_at_collapse_the_loss_is_ln_n():
    same = torch.ones(9, 4)
    assert nnclr_loss(same, same, 0.1).item() == pytest.approx(math.log(9))

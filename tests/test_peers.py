"""Losses and support sets against lightly's: equal where they are the same quantity, else the difference stated.

lightly is pinned (the group `peers` in pyproject.toml) and installed without its own dependencies, which the modules
imported here do not need. A test of a difference fails where a later lightly removes the difference.
"""

import inspect
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.models.modules.nn_memory_bank import NNMemoryBankModule

from bench.losses import info_nce
from bench.methods.barlow_twins import barlow_twins_loss
from bench.methods.byol import byol_loss
from bench.methods.moco_v2 import moco_loss
from bench.methods.nnclr import nnclr_loss
from bench.methods.simclr import nt_xent
from bench.methods.simsiam import simsiam_loss
from bench.methods.swav import sinkhorn, swav_loss
from bench.support import SupportSet

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64; what is wanted is 1e-6


def rows(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value_and_gradients(loss, *inputs):
    """The value as a scalar (SwaVLoss has shape (1,)) and a gradient for each input, 0 where none flows."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    value = loss(*inputs).reshape(())
    return value.detach(), *torch.autograd.grad(value, inputs, materialize_grads=True)


def assert_same(ours, theirs, *inputs):
    given, wanted = value_and_gradients(ours, *inputs), value_and_gradients(theirs, *inputs)
    for mine, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


def test_bench_does_not_import_lightly():
    root = Path(__file__).resolve().parents[1]
    files = [file for folder in ("bench", "stages") for file in (root / folder).rglob("*.py")]
    assert files
    assert not [file for file in files if re.search(r"^\s*(import|from)\s+lightly\b", file.read_text(), re.MULTILINE)]


# Losses of two views. The third entry of a case is the temperature, or Barlow Twins' weight.
TWO_VIEWS = {
    "nt_xent": (nt_xent, lambda a, b, t: NTXentLoss(t)(a, b)),
    "simsiam": (lambda p, z, _: simsiam_loss(p, z), lambda p, z, _: NegativeCosineSimilarity()(p, z.detach())),
    "byol": (lambda p, z, _: byol_loss(p, z), lambda p, z, _: 2 + 2 * NegativeCosineSimilarity()(p, z.detach())),
    "barlow_twins": (barlow_twins_loss, lambda a, b, w: BarlowTwinsLoss(w)(a, b)),
}
ONE = torch.tensor([[0.3, -1.2, 0.5]], dtype=torch.float64)
CASES = {
    "usual": (rows(8, 6), rows(8, 6, 1), 0.1),
    "one_row": (rows(1, 4), rows(1, 4, 1), 0.2),
    "two_rows": (rows(2, 3), rows(2, 3, 1), 0.5),
    "odd_sizes": (rows(7, 5), rows(7, 5, 1), 0.07),
    "one_dimension": (rows(5, 1), rows(5, 1, 1), 1.0),
    "more_rows_than_dimensions": (rows(33, 2), rows(33, 2, 1), 0.3),
    "more_dimensions_than_rows": (rows(3, 65), rows(3, 65, 1), 0.005),
    "duplicate_rows": (rows(3, 4).repeat(2, 1), rows(3, 4, 1).repeat(2, 1), 0.2),
    "collapsed": (ONE.repeat(6, 1), ONE.repeat(6, 1), 0.1),
    "collapsed_but_for_length": (ONE * torch.arange(1.0, 6)[:, None], (2 * ONE).repeat(5, 1), 0.1),
    "opposite_views": (rows(4, 6), -rows(4, 6), 0.1),
    "equal_views": (rows(4, 6), rows(4, 6), 0.1),
    "long_rows": (rows(4, 6) * 1e6, rows(4, 6, 1) * 1e3, 0.2),
    "high": (rows(5, 6), rows(5, 6, 1), 100.0),
    "low": (rows(5, 6), rows(5, 6, 1), 0.01),
}
VARIANCE_OF_ONE_ROW = ("barlow_twins", "one_row")  # lightly refuses it: see below
PAIRS = {
    f"{loss}-{case}": (*TWO_VIEWS[loss], *CASES[case])
    for loss in TWO_VIEWS
    for case in CASES
    if (loss, case) != VARIANCE_OF_ONE_ROW
}


@pytest.mark.parametrize(("ours", "theirs", "a", "b", "number"), PAIRS.values(), ids=PAIRS)
def test_value_and_gradient_are_lightlys(ours, theirs, a, b, number):
    assert_same(lambda a, b: ours(a, b, number), lambda a, b: theirs(a, b, number), a, b)


QUEUES = {
    "usual": (8, 6, 16, 0.2),
    "one_row": (1, 4, 5, 0.2),
    "one_negative": (5, 3, 1, 0.07),
    "odd_sizes": (7, 5, 13, 0.07),
    "queue_shorter_than_the_batch": (9, 4, 3, 1.0),
}


@pytest.mark.parametrize(("n", "d", "m", "temperature"), QUEUES.values(), ids=QUEUES)
def test_moco_is_lightlys_nt_xent_with_a_bank(n, d, m, temperature):
    queue = F.normalize(rows(m, d, 2))

    def theirs(q, k):
        loss = NTXentLoss(temperature, memory_bank_size=(m, d)).double()
        loss.memory_bank.bank = queue.clone()
        return loss(q, k.detach())

    assert_same(lambda q, k: moco_loss(q, k, queue, temperature), theirs, rows(n, d), rows(n, d, 1))


def cosines(n, prototypes, seed):
    return F.normalize(rows(n, 8, seed)) @ F.normalize(rows(prototypes, 8, 99)).mT


# scores of global views, local views and queues of the global views, epsilon, iterations, temperature
VIEWS = {
    "usual": (2, 0, 0, 8, 5, (0.05, 3, 0.1)),
    "multi_crop": (2, 6, 0, 8, 5, (0.05, 3, 0.1)),
    "three_global_views": (3, 1, 0, 7, 4, (0.1, 3, 0.2)),
    "one_global_view": (1, 2, 0, 7, 4, (0.1, 3, 0.2)),
    "queue": (2, 3, 11, 4, 6, (0.05, 3, 0.1)),
    "one_row": (2, 1, 0, 1, 5, (0.05, 3, 0.1)),
    "one_row_and_a_queue": (2, 1, 9, 1, 5, (0.05, 3, 0.1)),
    "one_prototype": (2, 1, 0, 5, 1, (0.05, 3, 0.1)),
    "more_prototypes_than_rows": (2, 2, 0, 3, 40, (0.05, 3, 0.1)),
    "one_iteration": (2, 2, 0, 9, 7, (0.05, 1, 0.1)),
    "many_iterations": (2, 2, 0, 9, 7, (0.03, 100, 0.1)),
    "soft": (2, 2, 0, 9, 7, (10.0, 3, 5.0)),
    "sharp": (2, 2, 0, 9, 7, (0.01, 3, 0.02)),
}


@pytest.mark.parametrize(("globals_", "locals_", "queued", "n", "k", "options"), VIEWS.values(), ids=VIEWS)
def test_swav_is_lightlys_and_a_queue_is_more_rows(globals_, locals_, queued, n, k, options):
    epsilon, iterations, temperature = options
    queues = [cosines(queued, k, 50 + i) for i in range(globals_)]

    def ours(*scores):
        pairs = zip(scores[:globals_], queues, strict=True)
        assignments = [sinkhorn(torch.cat([s.detach(), q]), epsilon, iterations)[:n] for s, q in pairs]
        return swav_loss(list(scores), assignments, temperature)

    def theirs(*scores):
        loss = SwaVLoss(temperature, iterations, epsilon)
        return loss(list(scores[:globals_]), list(scores[globals_:]), queues if queued else None)

    assert_same(ours, theirs, *(cosines(n, k, i) for i in range(globals_ + locals_)))


SCORES = {
    "usual": cosines(8, 5, 0),
    "one_row": cosines(1, 5, 0),
    "one_prototype": cosines(5, 1, 0),
    "more_prototypes_than_rows": cosines(3, 40, 0),
    "odd_sizes": cosines(13, 7, 0),
    "duplicate_rows": cosines(3, 4, 0).repeat(2, 1),
    "collapsed": cosines(1, 5, 0).repeat(6, 1),
    "uniform": torch.zeros(6, 4, dtype=torch.float64),
}


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("iterations", [1, 3, 50])
@pytest.mark.parametrize("epsilon", [0.02, 0.05, 1.0])
def test_sinkhorn_is_lightlys(scores, epsilon, iterations):
    wanted = lightly_sinkhorn(scores, iterations, epsilon)
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations), wanted, **CLOSE)


SETS = {
    "usual": (rows(8, 6), rows(20, 6, 1)),
    "one_query": (rows(1, 4), rows(7, 4, 1)),
    "one_row": (rows(5, 4), rows(1, 4, 1)),
    "long_queries": (rows(8, 6) * 1e4, rows(20, 6, 1)),
    "the_rows_themselves": (rows(9, 5), rows(9, 5)),
    "duplicate_rows": (rows(8, 6), rows(5, 6, 1).repeat(3, 1)),
}


def lightly_bank(held):
    bank = NNMemoryBankModule(tuple(held.shape)).double()
    bank.bank = held.clone()
    return bank


@pytest.mark.parametrize(("queries", "held"), SETS.values(), ids=SETS)
def test_the_nearest_rows_are_lightlys(queries, held):
    held = F.normalize(held)
    support = SupportSet(*held.shape, seed=0).double()
    support.enqueue(held)
    neighbours, _ = support.nearest(queries)
    torch.testing.assert_close(neighbours[:, 0], lightly_bank(held)(queries), **CLOSE)


# The differences: defaults and conventions.

DEFAULTS = {  # each with its paper's values, but for nt_xent, which has no one value there
    "nt_xent": (NTXentLoss(), lambda a, b: nt_xent(a, b, 0.5)),
    "barlow_twins": (BarlowTwinsLoss(), lambda a, b: barlow_twins_loss(a, b, 5e-3)),
    "swav": (
        lambda a, b: SwaVLoss()([a, b], []),
        lambda a, b: swav_loss([a, b], [sinkhorn(s.detach(), 0.05, 3) for s in (a, b)], 0.1),
    ),
}


@pytest.mark.parametrize(("theirs", "ours"), DEFAULTS.values(), ids=DEFAULTS)
def test_lightly_has_defaults(theirs, ours):
    assert_same(ours, theirs, cosines(7, 5, 0), cosines(7, 5, 1))


def test_ours_have_no_defaults_but_that_they_normalise_as_their_papers_do():
    for loss in (nt_xent, nnclr_loss, moco_loss, barlow_twins_loss, swav_loss, sinkhorn):
        parameters = inspect.signature(loss).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        assert defaults in ({}, {"normalize": True}), loss


def test_lightly_leaves_the_stop_gradient_to_its_caller():
    """SimSiam, 2011.10566, eq. 3: z carries no gradient. MoCo, 1911.05722, algorithm 1: neither do keys."""
    p, z, queue = rows(5, 4), rows(5, 4, 1), F.normalize(rows(6, 4, 2))
    bank = NTXentLoss(0.2, memory_bank_size=(6, 4)).double()
    bank.memory_bank.bank = queue.clone()
    for theirs, ours in (
        (NegativeCosineSimilarity(), simsiam_loss),
        (bank, lambda p, z: moco_loss(p, z, queue, 0.2)),
    ):
        assert value_and_gradients(theirs, p, z)[2].abs().max() > 1e-3
        assert value_and_gradients(ours, p, z)[2].abs().max() == 0


def test_lightlys_cosine_of_rows_shorter_than_1e_8_is_smaller():
    short = 1e-9 * F.normalize(rows(5, 4))
    assert simsiam_loss(short, short).item() == pytest.approx(-1, abs=1e-9)
    assert NegativeCosineSimilarity()(short, short).item() == pytest.approx(-0.01, abs=1e-9)  # (1e-9 / 1e-8)^2


# The differences: Barlow Twins.


def test_lightly_refuses_barlow_twins_of_one_row():
    z1, z2, weight = CASES["one_row"]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BarlowTwinsLoss(weight)(z1, z2)
    assert barlow_twins_loss(z1, z2, weight).item() == pytest.approx(z1.shape[1])  # C = 0, as at collapse


def barlow_twins_of(c, weight):
    off_diagonal = ~torch.eye(len(c), dtype=torch.bool)
    return (c.diagonal() - 1).square().sum() + weight * c[off_diagonal].square().sum()


def test_lightly_has_eq_2_of_barlow_twins_and_not_the_smaller_c_of_its_algorithm_1():
    """2103.03230: eq. 2 is a correlation; algorithm 1 divides by torch's std, of n - 1, and then by n."""
    n, weight = 5, 0.1
    z1, z2 = 1e4 * rows(n, 4), 1e4 * rows(n, 4, 1)  # long: the variance's 1e-5 does not show
    c1, c2 = z1 - z1.mean(0), z2 - z2.mean(0)
    equation = c1.mT @ c2 / torch.outer(c1.square().sum(0).sqrt(), c2.square().sum(0).sqrt())
    algorithm = (c1 / z1.std(0)).mT @ (c2 / z2.std(0)) / n
    torch.testing.assert_close(algorithm, equation * (n - 1) / n, **CLOSE)
    theirs = BarlowTwinsLoss(weight)(z1, z2)
    torch.testing.assert_close(theirs, barlow_twins_of(equation, weight), **CLOSE)
    assert abs(theirs - barlow_twins_of(algorithm, weight)) > 0.1


# The differences: SwAV.


def test_no_iterations_of_lightlys_sinkhorn_are_no_softmax():
    scores = SCORES["usual"]
    theirs = lightly_sinkhorn(scores, 0, 0.05)
    exponentials = (scores / 0.05).exp()
    torch.testing.assert_close(theirs, exponentials * len(scores) / exponentials.sum(), **CLOSE)
    assert (theirs.sum(1) - 1).abs().max() > 0.5
    torch.testing.assert_close(sinkhorn(scores, 0.05, 0), (scores / 0.05).softmax(1), **CLOSE)


OVERFLOWS = {"single": (torch.float32, 0.01), "double": (torch.float64, 0.001)}


@pytest.mark.parametrize(("dtype", "epsilon"), OVERFLOWS.values(), ids=OVERFLOWS)
def test_lightlys_sinkhorn_overflows_where_epsilon_is_small(dtype, epsilon):
    scores = torch.eye(3, dtype=dtype)
    assert lightly_sinkhorn(scores, 3, epsilon).isnan().any()
    torch.testing.assert_close(sinkhorn(scores, epsilon, 3), scores)


# The differences: NNCLR and its support set.


def naive_cross_entropy(anchor, candidates, positive, temperature):
    scores = torch.stack([F.cosine_similarity(anchor, c, dim=0) / temperature for c in candidates])
    return scores.logsumexp(0) - scores[positive]


def naive_nnclr(neighbours, p, temperature):
    """2104.14548, section 3.2: each neighbour, with its own p among all n."""
    return sum(naive_cross_entropy(a, p, i, temperature) for i, a in enumerate(neighbours)) / len(p)


def naive_lightly_nnclr(neighbours, p, temperature):
    """What lightly's documentation of NNMemoryBankModule has, NTXentLoss()(neighbours, p).

    Neighbours and p are anchors; of the others' rows, neighbours and p are candidates.
    """
    n, everything, total = len(p), [*neighbours, *p], 0.0
    for i, anchor in enumerate(everything):
        candidates = [row for k, row in enumerate(everything) if k != i]
        positive = (i + n) % (2 * n)
        total = total + naive_cross_entropy(anchor, candidates, positive - (positive > i), temperature)
    return total / (2 * n)


SEVERAL_ROWS = {name: case for name, case in CASES.items() if len(case[0]) > 1}


@pytest.mark.parametrize(("neighbours", "p", "temperature"), CASES.values(), ids=CASES)
def test_ours_has_nnclrs_n_candidates_and_lightly_2n_minus_1(neighbours, p, temperature):
    """By hand; and lightly's is at least the mean of both directions, which NNCLR does not have."""

    def with_(loss):
        return lambda p: loss(neighbours, p, temperature)

    assert_same(with_(nnclr_loss), with_(naive_nnclr), p)
    assert_same(lambda p: NTXentLoss(temperature)(neighbours, p), with_(naive_lightly_nnclr), p)
    directions = nnclr_loss(neighbours, p, temperature) + info_nce(p, neighbours, temperature)
    assert NTXentLoss(temperature)(neighbours, p) >= directions / 2 - 1e-9


@pytest.mark.parametrize(("neighbours", "p", "temperature"), SEVERAL_ROWS.values(), ids=SEVERAL_ROWS)
def test_lightlys_nnclr_is_another_loss(neighbours, p, temperature):
    assert abs(NTXentLoss(temperature)(neighbours, p) - nnclr_loss(neighbours, p, temperature)) > 1e-3


@pytest.mark.parametrize("n", [2, 7, 64])
def test_nnclr_at_collapse_is_ln_n_and_lightlys_ln_2n_minus_1(n):
    z = ONE.repeat(n, 1)
    assert nnclr_loss(z, z, 0.1).item() == pytest.approx(math.log(n), abs=1e-9)
    assert NTXentLoss(0.1)(z, z).item() == pytest.approx(math.log(2 * n - 1), abs=1e-9)


def numbered(first, last):
    """Rows of unit length on half a circle, one for each number; `numbers` reads them again."""
    angles = torch.arange(first, last) * math.pi / 32
    return torch.stack([angles.cos(), angles.sin()], 1)


def numbers(held):
    return (held @ numbered(0, 32).mT).argmax(1).tolist()


# size, rows of each batch, batches, then the numbers lightly's bank holds
PUSHES = {
    "the_size_is_a_multiple": (8, 4, 5, [*range(12, 20)]),
    "a_batch_fills_it": (8, 8, 3, [*range(16, 24)]),
    "the_rest_of_a_batch_is_dropped": (10, 4, 5, [8, 9, *range(12, 20)]),
    "of_a_batch_larger_than_it_the_first_rows_stay": (5, 8, 2, [*range(8, 13)]),
}


@pytest.mark.parametrize(("size", "batch", "batches", "lightlys"), PUSHES.values(), ids=PUSHES)
def test_ours_holds_the_last_rows_and_lightlys_bank_only_where_batches_fill_it(size, batch, batches, lightlys):
    support, bank = SupportSet(size, 2, seed=0), MemoryBankModule((size, 2))
    for i in range(batches):
        z = numbered(i * batch, (i + 1) * batch)
        support.enqueue(z)
        bank(z, update=True)
    last = batches * batch
    assert numbers(support.rows) == [*range(last - size, last)]
    assert sorted(numbers(bank.bank)) == lightlys


def test_lightlys_bank_is_not_in_its_state():
    z = numbered(0, 4)
    for bank in (NNMemoryBankModule((4, 2)), NTXentLoss(memory_bank_size=(4, 2))):
        assert not bank.state_dict()
    support, resumed = SupportSet(4, 2, seed=0), SupportSet(4, 2, seed=1)
    support.enqueue(z)
    resumed.load_state_dict(support.state_dict())
    assert torch.equal(resumed.rows, support.rows)


def test_lightlys_bank_holds_rows_as_they_come():
    z = 3 * numbered(0, 4)
    support, bank = SupportSet(4, 2, seed=0), MemoryBankModule((4, 2))
    support.enqueue(z)
    bank(z, update=True)
    assert torch.equal(bank.bank, z)
    torch.testing.assert_close(support.rows, z / 3)


def test_lightlys_loss_pushes_its_keys_where_it_is_computed():
    """Computed twice in one step it has another value; ours takes the queue as it is and leaves it so."""
    q, k, queue = rows(4, 2).float().requires_grad_(), numbered(0, 4), numbered(10, 14)
    loss = NTXentLoss(0.2, memory_bank_size=(4, 2))
    loss.memory_bank.bank = queue.clone()
    first, second = loss(q, k), loss(q, k)
    assert numbers(loss.memory_bank.bank) == [0, 1, 2, 3]
    assert abs(first - second) > 0.1
    for _ in range(2):
        assert moco_loss(q, k, queue, 0.2).item() == pytest.approx(first.item(), abs=1e-5)

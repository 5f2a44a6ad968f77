"""Products without a gradient, and which of them is the largest, against double precision."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import kernels, products
from bench.numerics import pins
from bench.products import Queries, maximum_inner_product, rows_by_rows

ROOT = Path(__file__).resolve().parents[1]
COUNTS = [1, 2, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025, 2100]
KINDS = {"single": torch.float32, "bfloat16": torch.bfloat16}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def rounded(a, b):
    """The products of rows in bfloat16, as a CPU with instructions for it has them: summed in single precision."""
    return (a.float() @ b.float().mT).to(a.dtype)


@pytest.fixture
def screen(monkeypatch, kind):
    """What the fast products are made in."""
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: kind == torch.bfloat16)
    monkeypatch.setattr(products, "_multiplied", rounded)


def naive(queries, rows, bias):
    """The first of the largest in double precision; nan is passed over."""
    found = []
    for query in queries.double():
        scores = [(query * row).sum().item() + added for row, added in zip(rows.double(), bias.tolist(), strict=True)]
        known = [score for score in scores if not math.isnan(score)]
        found.append(scores.index(max(known)) if known else 0)
    return found


@kinds
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.usefixtures("screen")
def test_the_row_of_the_largest_product_is_found_wherever_it_lies(count):
    rows = torch.nn.functional.normalize(drawn(count, 24), dim=1)
    found = maximum_inner_product(3 * rows, rows)
    assert found.tolist() == list(range(count))


@kinds
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("screen")
def test_it_is_that_of_double_precision(count, seed):
    queries, rows, bias = drawn(5, 7, seed=seed), drawn(count, 7, seed=seed + 10), drawn(count, seed=seed + 20)
    assert maximum_inner_product(queries, rows, bias).tolist() == naive(queries, rows, bias)
    assert maximum_inner_product(queries, rows).tolist() == naive(queries, rows, 0 * bias)


@kinds
@pytest.mark.parametrize("scale", [1e-30, 1e-23, 1e-16, 1e15])
@pytest.mark.usefixtures("screen")
def test_vectors_whose_squares_leave_single_precision_are_told_apart(scale):
    queries, rows = drawn(9, 40) * scale, drawn(300, 40, seed=1) * scale
    for pair in ((queries, drawn(300, 40, seed=1)), (drawn(9, 40), rows), (queries, rows)):
        assert maximum_inner_product(*pair).tolist() == naive(*pair, torch.zeros(300))


@kinds
@pytest.mark.parametrize("place", [0, 1, 130, 1500, 2099])
@pytest.mark.usefixtures("screen")
def test_what_single_precision_cannot_tell_apart_is_told_apart(place):
    queries, rows = torch.ones(2, 3), torch.tensor([1.0, 0.5, 0.0]).repeat(2100, 1)
    rows[place, 2] = 2.0**-40
    assert maximum_inner_product(queries, rows).tolist() == [place, place]


@kinds
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.usefixtures("screen")
def test_of_equals_the_first_is_found(seed):
    queries, rows = drawn(40, 3, seed=seed).round(), drawn(2100, 3, seed=seed + 1).round()  # so that many are equal
    assert maximum_inner_product(queries, rows).tolist() == naive(queries, rows, torch.zeros(2100))


@kinds
@pytest.mark.usefixtures("screen")
def test_rows_far_apart_in_length_and_far_from_zero_are_told_apart():
    lengths = torch.logspace(-6, 6, 300)[:, None]
    queries, rows = drawn(9, 16) * lengths[::34], 100 + drawn(300, 16, seed=1) * lengths
    bias = -rows.square().sum(1) / 2
    for order in (slice(None), torch.arange(299, -1, -1)):
        given = (queries, rows[order], bias[order])
        assert maximum_inner_product(*given).tolist() == naive(*given)


@kinds
@pytest.mark.parametrize("near", [1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.usefixtures("screen")
def test_rows_that_all_point_one_way_are_told_apart(near):
    base = drawn(1, 24, seed=5)
    queries, rows = (torch.nn.functional.normalize(base + near * drawn(n, 24, seed=n), dim=1) for n in (40, 2100))
    exact = (queries.double() @ rows.double().mT).max(1).indices
    assert torch.equal(maximum_inner_product(queries, rows), exact)


@kinds
@pytest.mark.usefixtures("screen")
def test_a_bias_that_rounding_takes_part_of_is_added_whole():
    rows, bias = torch.tensor([[2.993], [0.997]]), torch.tensor([16777220.0, 16777222.0])
    assert maximum_inner_product(torch.ones(1, 1), rows, bias).tolist() == [1]
    exact = torch.tensor([1.0, 1.0 + 2.0**-40], dtype=torch.float64)
    assert maximum_inner_product(torch.ones(1, 1), torch.ones(2, 1), exact).tolist() == [1]


@kinds
@pytest.mark.usefixtures("screen")
def test_sums_that_overflow_on_the_way_are_told_apart():
    rows = torch.tensor([[1e19, 0, 0, 0, 0], [-3e19, -3e19, 3e19, 3e19, 3e19]])
    assert maximum_inner_product(torch.full((1, 5), 1e19), rows).tolist() == [1]


@pytest.mark.parametrize("most", [0, 1, 5])
@pytest.mark.parametrize("kind", [torch.bfloat16])
@pytest.mark.usefixtures("screen")
def test_queries_for_which_bfloat16_is_too_coarse_are_decided_by_single_precision(monkeypatch, most):
    monkeypatch.setattr(products, "MOST", most)
    queries, rows, bias = drawn(30, 7), drawn(2100, 7, seed=1), drawn(2100, seed=2)
    assert maximum_inner_product(queries, rows, bias).tolist() == naive(queries, rows, bias)


@kinds
@pytest.mark.usefixtures("screen")
def test_nan_is_passed_over_and_a_query_of_nothing_else_finds_the_first_row():
    queries, rows = torch.tensor([[1.0], [math.nan], [-1.0]]), torch.tensor([[math.nan], [1.0], [math.nan], [2.0]])
    assert maximum_inner_product(queries, rows).tolist() == [3, 0, 1]


@kinds
@pytest.mark.usefixtures("screen")
def test_infinite_products_are_the_largest():
    rows = torch.tensor([[1.0], [math.inf], [2.0]])
    assert maximum_inner_product(torch.ones(1, 1), rows).tolist() == [1]
    assert maximum_inner_product(torch.ones(1, 1), rows, torch.tensor([0.0, -math.inf, 0.0])).tolist() == [2]


@kinds
@pytest.mark.usefixtures("screen")
def test_rows_and_queries_are_read_as_they_lie():
    whole = drawn(6, 40)
    for part in (whole[:, 3:38], whole[::2], whole.mT):
        same = part.clone(memory_format=torch.contiguous_format)
        assert torch.equal(maximum_inner_product(part, part), maximum_inner_product(same, same))


def test_double_precision_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(products, "ENTRIES", 20)
    queries, rows, bias = (drawn(*shape, dtype=torch.float64) for shape in ((7, 4), (9, 4), (9,)))
    assert maximum_inner_product(queries, rows, bias).tolist() == naive(queries, rows, bias)


@kinds
@given(
    n=st.integers(1, 4),
    dim=st.integers(1, 300),
    scale=st.sampled_from([1e-14, 1e-3, 1.0, 1e6]),
    bias=st.sampled_from([0.0, 1e-3, 1.0, 1e7]),
    seed=st.integers(0, 99),
)
def test_no_product_is_off_by_more_than_is_said(kind, n, dim, scale, bias, seed):
    queries, rows = drawn(n, dim, seed=seed) * scale, drawn(6, dim, seed=seed + 1)
    added = bias * scale * drawn(6, dtype=torch.float64, seed=seed + 2)
    exact = queries.double() @ rows.double().mT + added
    fast = rounded(queries.to(kind), rows.to(kind)).float() + added.float()
    said = products._off(kind, queries.norm(dim=1), rows.norm(dim=1).max(), added, dim)
    assert (said.isinf() == (queries.norm(dim=1) <= products.SHORT)).all()
    assert ((fast.double() - exact).abs() <= said[:, None]).all()


@pytest.mark.parametrize("length", [0.0, 1e-20, 1e30, math.inf, math.nan])
def test_where_it_is_not_known_it_is_infinite(length):
    bias = torch.zeros(1)
    said = products._off(torch.float32, torch.tensor([length, 1.0]), torch.tensor(1e15), bias, 3)
    assert said.isinf().tolist() == [True, False]
    assert products._off(torch.float32, torch.full((2,), 1e15), torch.tensor(length), bias, 3).isinf().all()
    assert products._off(torch.float32, torch.ones(2), torch.ones(()), bias + 1e38, 3).isinf().all()


NATIVE = """
import torch
from bench import products
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
queries, rows = (torch.nn.functional.normalize(torch.randn(n, 256, generator=generator), dim=1) for n in (300, 5000))
exact = (queries.double() @ rows.double().mT).max(1).indices
assert torch.equal(products.maximum_inner_product(queries, rows), exact)
if products.multiplies_bfloat16():
    a, b = queries.bfloat16(), rows.bfloat16()
    off = (products._multiplied(a, b).double() - queries.double() @ rows.double().mT).abs().max()
    assert 1e-4 < off < products.relative_error(torch.bfloat16, 256), off
rows = torch.nn.functional.normalize(rows[:1] + 1e-3 * rows, dim=1)
exact = (queries.double() @ rows.double().mT).max(1).indices
assert torch.equal(products.maximum_inner_product(queries, rows), exact)
"""


def test_this_cpus_own_fast_products_are_as_near_as_is_said():
    bare = {name: value for name, value in os.environ.items() if name not in pins("portable", 1)}
    environment = {**bare, **pins("native", 1), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", NATIVE], env=environment, check=True)


def test_portable_numerics_do_without_bfloat16():
    assert not products.multiplies_bfloat16()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_by_rows_are_the_products_of_every_two(dtype):
    a, b = drawn(7, 5, dtype=dtype), drawn(9, 5, dtype=dtype)
    wanted = torch.tensor([[sum(x * y for x, y in zip(p, q, strict=True)) for q in b.tolist()] for p in a.tolist()])
    assert torch.allclose(rows_by_rows(a, b).double(), wanted.double(), atol=1e-5)


@kinds
@pytest.mark.parametrize("stride", [1, 3, 64])
@pytest.mark.parametrize(("room", "counted"), [(19, -1), (20, 20), (21, 20)])
def test_candidates_that_find_no_room_are_too_many(kind, stride, room, counted):
    values, wanted = torch.zeros(2, 130, dtype=kind), torch.randperm(130)[:20].sort().values
    values[0, wanted] = 1.0
    bits = values.view(products.BITS[kind]).numpy()
    tops, bounds = np.empty((2, -(-130 // stride)), np.float32), np.ones(2, np.float32)
    places, counts = np.full((2, room + stride), -7), np.zeros(2, np.int64)
    kernels.tops(bits, stride, tops)
    kernels.candidates(bits, stride, tops, bounds, 5, (places, counts))
    assert counts.tolist() == [counted, 0]
    assert places[1].tolist() == [-7] * (room + stride)
    if counted > 0:
        assert places[0, :counted].tolist() == (wanted + 5).tolist()


@kinds
@pytest.mark.usefixtures("screen")
def test_queries_are_made_ready_once_for_searches_among_many_rows():
    queries = drawn(1100, 7)
    ready = Queries.of(queries)
    for seed in range(1, 4):
        rows = drawn(40, 7, seed=seed)
        assert torch.equal(maximum_inner_product(ready, rows), maximum_inner_product(queries, rows))
        some = torch.arange(1020, 1040)
        assert torch.equal(maximum_inner_product(ready[some], rows), maximum_inner_product(queries[some], rows))


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 128])
def test_dots_are_the_products_of_each_query_with_its_own_rows(dim):
    rows, queries = drawn(20, dim, dtype=torch.float64), drawn(4, dim, dtype=torch.float64)
    places, counts = torch.randint(20, (4, 6)).sort().values, torch.tensor([0, 1, 5, 6])
    found = torch.full((4, 6), -7.0, dtype=torch.float64)
    kernels.dots(rows.numpy(), queries.numpy(), places.numpy(), counts.numpy(), found.numpy())
    for i, count in enumerate(counts.tolist()):
        assert torch.allclose(found[i, :count], rows[places[i, :count]] @ queries[i])
        assert found[i, count:].tolist() == [-7.0] * (6 - count)


def test_dots_are_the_same_however_many_rows_stay_in_the_cache():
    rows = drawn(kernels.TILE // 256, 128)  # two tiles of them
    places = torch.tensor([0, 5, 511, 512, 513, 1022, 1023]).repeat(3, 1)
    found = torch.zeros(3, 7, dtype=torch.float64)
    kernels.dots(rows.numpy(), rows[:3].numpy(), places.numpy(), np.full(3, 7), found.numpy())
    assert torch.allclose(found, rows[:3].double() @ rows[places[0]].double().mT, rtol=1e-12)

"""Products without a gradient, and the largest of each row, against what torch says of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import kernels
from bench.products import largest, rows_by_rows

WIDTHS = [1, 2, 31, 32, 33, 511, 512, 513, 1024, 1500]


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_largest_of_each_row_is_found_wherever_it_lies(width):
    values = drawn(width, width).clamp_max(3)
    values[range(width), range(width)] = 4.0
    best, places = largest(values)
    assert best.tolist() == [4.0] * width
    assert places.tolist() == list(range(width))


@given(st.integers(1, 5), st.sampled_from(WIDTHS), st.integers(0, 99))
def test_of_equals_the_first_is_the_largest(n, width, seed):
    values = drawn(n, width, seed=seed).round()  # whole numbers, so that many are equal
    best, places = largest(values)
    assert torch.equal(best, values.max(1).values)
    for row, high, place in zip(values.tolist(), best.tolist(), places.tolist(), strict=True):
        assert row.index(high) == place


def test_rows_of_a_larger_matrix_are_read_as_they_lie():
    whole = drawn(6, 40)
    for part in (whole[:, 3:38], whole[::2], whole.mT):
        assert torch.equal(largest(part)[1], part.max(1).indices)


def test_double_precision_is_left_to_torch():
    values = drawn(3, 5, dtype=torch.float64)
    assert torch.equal(largest(values)[0], values.max(1).values)


def test_nan_is_passed_over_and_a_row_of_nothing_else_has_place_zero():
    values = torch.tensor([[math.nan, 1.0, math.nan, 2.0], [math.nan] * 4])
    best, places = largest(values)
    assert best.tolist() == [2.0, -math.inf]
    assert places.tolist() == [3, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_is_added_to_the_products_with_each_row(dtype):
    a, b, bias = drawn(7, 5, dtype=dtype), drawn(9, 5, dtype=dtype), drawn(9, dtype=dtype)
    naive = torch.tensor([[sum(x * y for x, y in zip(p, q, strict=True)) for q in b.tolist()] for p in a.tolist()])
    assert torch.allclose(rows_by_rows(a, b).double(), naive.double(), atol=1e-5)
    assert torch.allclose(rows_by_rows(a, b, bias).double(), (naive + bias).double(), atol=1e-5)


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 128])
def test_dots_are_the_products_of_each_query_with_its_own_rows(dim):
    rows, queries = drawn(20, dim, dtype=torch.float64), drawn(4, dim, dtype=torch.float64)
    places, counts = torch.randint(20, (4, 6)), torch.tensor([0, 1, 5, 6])
    products = torch.full((4, 6), -7.0, dtype=torch.float64)
    kernels.dots(rows.numpy(), queries.numpy(), places.numpy(), counts.numpy(), products.numpy())
    for i, count in enumerate(counts.tolist()):
        assert torch.allclose(products[i, :count], rows[places[i, :count]] @ queries[i])
        assert products[i, count:].tolist() == [-7.0] * (6 - count)

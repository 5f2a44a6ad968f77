"""Intervals over seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from bench.stats import t_interval

CASES = {
    "two": [0.91, 0.93],
    "three_seeds": [0.862, 0.857, 0.866],
    "negative_and_large": [-1e6, 2e6, 5.0, 17.0],
    "ten": np.random.default_rng(0).normal(0.8, 0.01, 10).tolist(),
}


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_interval_equals_scipys(values, level):
    found = t_interval(values, level)
    low, high = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    # the same formula in another order: a few roundings of float64
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert found.mean == pytest.approx(math.fsum(values) / len(values), rel=1e-14)
    assert found.n == len(values)


def test_the_usual_level_is_95_per_cent():
    # for three values t is 4.302653 (any table: two degrees of freedom, 0.975); here s = 1
    assert t_interval([1.0, 2.0, 3.0]).half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_one_value_has_no_interval():
    found = t_interval([0.9])
    assert (found.mean, found.half, found.n) == (0.9, None, 1)
    assert found.low == found.high == 0.9


def test_equal_values_have_an_interval_of_no_width():
    found = t_interval([0.5, 0.5, 0.5])
    assert (found.low, found.mean, found.high, found.half) == (0.5, 0.5, 0.5, 0.0)


def test_more_values_of_one_spread_narrow_the_interval():
    halves = [t_interval([0.0, 1.0] * n).half for n in (1, 2, 5, 50)]
    assert halves == sorted(halves, reverse=True)
    assert len(set(halves)) == 4


def test_it_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2_000, 3)).tolist()
    found = [t_interval(row) for row in draws]
    covered = np.mean([interval.low <= 3.0 <= interval.high for interval in found])
    assert covered == pytest.approx(0.95, abs=0.025)  # five standard errors: sqrt(.95 * .05 / 2000)


@pytest.mark.parametrize("values", [[], [math.nan], [0.9, math.nan], [0.9, math.inf], [-math.inf, 0.1]], ids=str)
def test_values_that_are_not_finite_are_refused_and_shown(values):
    with pytest.raises(ValueError, match="an interval wants finite values, not ") as caught:
        t_interval(values)
    assert str(list(values)) in str(caught.value)

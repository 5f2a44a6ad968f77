"""Intervals and tests over seeds, and over seeds and images."""

import math

import numpy as np
import pytest
from scipy import stats

from bench.stats import (
    detectable,
    hierarchical_difference,
    holm,
    jonckheere,
    kendall_tau,
    mean_squares,
    p_above,
    page_l,
    paired,
    paired_difference,
    spread,
    t_interval,
    tost,
)

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


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 1.0, shape)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("bound", [-0.5, 0.0, 0.3])
def test_a_p_value_equals_scipys(n, bound):
    values = normal(n, n)
    expected = stats.ttest_1samp(values, bound, alternative="greater").pvalue
    assert p_above(values, bound) == pytest.approx(expected, rel=1e-9)


def test_values_without_spread_are_sure():
    assert p_above([0.2] * 5, 0.1) == 0.0
    assert p_above([0.2] * 5, 0.2) == p_above([0.2] * 5, 0.3) == 1.0


GROUPS = {
    "one": [[0.91, 0.93, 0.90]],
    "of_equal_size": [[1.0, 2.0], [11.0, 15.0], [-3.0, -3.5]],
    "of_other_sizes_and_some_that_tell_nothing": [[0.1, 0.4, 0.2, 0.9], [5.0], [], [7.0, 7.5, 7.1]],
}


def naive_spread(groups, level):
    """Pooled variance by loops; the chi-square quantile by bisection of its density's sum."""
    squares, freedom = 0.0, 0
    for group in groups:
        for value in group:
            squares += (value - sum(group) / len(group)) ** 2
        freedom += max(0, len(group) - 1)

    def below(x):
        steps = 20_000
        middles = ((i + 0.5) * x / steps for i in range(steps))
        density = sum(y ** (freedom / 2 - 1) * math.exp(-y / 2) for y in middles) * x / steps
        return density / (2 ** (freedom / 2) * math.gamma(freedom / 2))

    def quantile(p):
        low, high = 0.0, 100.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if below(middle) < p else (low, middle)
        return low

    ends = [math.sqrt(squares / quantile(p)) for p in ((1 + level) / 2, (1 - level) / 2)]
    return math.sqrt(squares / freedom), *ends, freedom


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_a_spread_equals_a_naive_one(groups, level):
    found = spread(groups, level)
    # the naive one's sum of a density is right to five digits
    assert (found.deviation, found.low, found.high, found.freedom) == pytest.approx(
        naive_spread(groups, level), rel=1e-4
    )


def test_a_spread_of_two_degrees_of_freedom_has_a_closed_form():
    # chi-square of 2 is exponential of mean 2: its quantile at p is -2 ln(1 - p)
    found = spread([[1.0, 2.0, 3.0]])
    ends = [math.sqrt(2.0 / (-2 * math.log(1 - p))) for p in (0.975, 0.025)]
    assert (found.deviation, found.low, found.high, found.freedom) == pytest.approx((1.0, *ends, 2), rel=1e-12)


@pytest.mark.parametrize("sizes", [(5,), (3, 3), (2, 4, 1, 3)], ids=str)
def test_a_spread_covers_the_deviation_as_often_as_it_says_whatever_the_groups_means(sizes):
    generator = np.random.default_rng(1)
    draws = [[generator.normal(i, 2.0, n).tolist() for i, n in enumerate(sizes)] for _ in range(2_000)]
    found = [spread(groups) for groups in draws]
    covered = np.mean([one.low <= 2.0 <= one.high for one in found])
    assert covered == pytest.approx(0.95, abs=0.025)  # five standard errors: sqrt(.95 * .05 / 2000)
    assert np.mean([one.deviation**2 for one in found]) == pytest.approx(4.0, rel=0.1)  # s^2 has no bias


def test_values_that_are_equal_have_no_spread_and_lone_ones_tell_none():
    found = spread([[0.5, 0.5], [0.7, 0.7]])
    assert (found.deviation, found.low, found.high, found.freedom) == (0.0, 0.0, 0.0, 2)
    assert spread([[0.5], [], [0.9]]) is spread([]) is None
    with pytest.raises(ValueError, match=r"a spread wants finite values, not \[\[0.5, nan\]\]"):
        spread([[0.5, math.nan]])


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf]], ids=str)
def test_a_p_value_of_nothing_is_refused(values):
    with pytest.raises(ValueError, match="two finite values or more"):
        p_above(values, 0.0)


def test_pairs_are_by_seed_and_of_common_seeds():
    ours, theirs = {3: 5.0, 1: 1.0, 2: 9.0}, {1: 0.5, 3: 1.0, 7: 0.0}
    assert paired(ours, theirs) == [0.5, 4.0]
    found = paired_difference(ours, theirs)
    assert (found.mean, found.n) == (2.25, 2)


@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_equivalence_is_two_one_sided_tests(margin):
    values = normal(4, 7)
    sides = [("greater", -margin), ("less", margin)]
    expected = max(stats.ttest_1samp(values, bound, alternative=side).pvalue for side, bound in sides)
    assert tost(values, margin) == pytest.approx(expected, rel=1e-9)


def test_equivalence_is_that_the_interval_lies_inside():
    for seed in range(200):
        values, margin = normal(seed, 5), 1.2
        inside = t_interval(values).low > -margin and t_interval(values).high < margin
        assert (tost(values, margin) < 0.025) == inside


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04, kept from falling
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(1)
    for _ in range(200):
        p = rng.beta(0.3, 3, 6)
        rejected, order = np.zeros(6, bool), np.argsort(p)
        for rank, i in enumerate(order):  # Holm 1979: stop at the first that is above level / (remaining)
            if p[i] > 0.05 / (6 - rank):
                break
            rejected[i] = True
        assert ((np.array(holm(p)) <= 0.05) == rejected).all()


def test_kendalls_tau_counts_pairs():
    first, second = [1, 2, 3, 4], [1, 3, 2, 4]  # five pairs in one order, one in the other
    assert kendall_tau(first, second) == pytest.approx(4 / 6)
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))


def test_pages_l_by_hand():
    rows = [[1, 2, 3], [1, 3, 2], [1, 2, 3]]
    # rank sums 3, 7, 8: L = 3 + 14 + 24; of 6^3 rankings 7 reach 41 (three 14s: 1; two 14s and a 13: 6)
    assert page_l(rows).statistic == 41
    assert page_l(rows).p == pytest.approx(7 / 216)


def test_jonckheere_with_two_levels_is_mann_whitney():
    low, high = normal(1, 6), normal(2, 9) + 0.5
    expected = stats.mannwhitneyu(high, low, alternative="greater", method="asymptotic", use_continuity=False)
    found = jonckheere([low, high])
    assert (found.statistic, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)


def test_jonckheere_counts_a_tie_one_half():
    assert jonckheere([[1, 2], [2, 3], [0, 3]]).statistic == (3 + 0.5) + (0 + 1 + 0 + 1) + (0 + 1 + 0 + 0.5)


def test_jonckheere_holds_its_level_and_finds_a_rise():
    rng = np.random.default_rng(2)
    nothing = [jonckheere(rng.normal(0, 1, (4, 5))).p <= 0.05 for _ in range(1_000)]
    assert np.mean(nothing) == pytest.approx(0.05, abs=0.028)  # four standard errors
    assert jonckheere([[i + e for e in (0.0, 0.1, 0.2)] for i in range(4)]).p < 1e-4


@pytest.mark.parametrize(("n", "level"), [(3, 0.95), (5, 0.95), (5, 0.99), (10, 0.95)])
def test_what_is_detectable_is_detected_in_four_of_five_experiments(n, level):
    spread = stats.zscore(np.arange(n), ddof=1)  # a sample whose standard deviation is 1
    difference = detectable(spread, level)
    draws = np.random.default_rng(n).normal(difference, 1.0, (20_000, n))
    t = draws.mean(1) / draws.std(1, ddof=1) * np.sqrt(n)
    found = np.mean(np.abs(t) > stats.t.ppf((1 + level) / 2, n - 1))
    assert found == pytest.approx(0.8, abs=0.012)  # four standard errors: sqrt(.8 * .2 / 20000)


def test_more_seeds_detect_less_and_one_seed_nothing():
    sizes = [detectable([0.0, 1.0] * n) for n in (1, 2, 5, 20)]
    assert sizes == sorted(sizes, reverse=True)
    assert detectable([0.5]) is None
    assert detectable([0.5, 0.5, 0.5]) == 0.0


def correct(rng: np.random.Generator, seeds: int, images: int, of_seeds: float, of_images: float) -> list[np.ndarray]:
    """Whether two methods classify each image at each seed: a probit with effects of both, and their truth."""
    difficulty = rng.normal(0, 1.5, images)  # shared by the methods
    sides = []
    for mean in (1.0, 0.8):
        effects = rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, of_images, images)
        sides.append(mean + difficulty + effects + rng.normal(0, 1, (seeds, images)) > 0)
    return sides


def coverage(n: int, of_seeds: float, of_images: float, experiments: int) -> float:
    rng = np.random.default_rng(n)
    spread = math.sqrt(1.5**2 + of_seeds**2 + of_images**2 + 1)
    truth = stats.norm.cdf(1.0 / spread) - stats.norm.cdf(0.8 / spread)
    hits = 0
    for _ in range(experiments):
        ours, theirs = (dict(enumerate(rows)) for rows in correct(rng, n, 1_000, of_seeds, of_images))
        found = hierarchical_difference(ours, theirs)
        hits += found.low <= truth <= found.high
    return hits / experiments


SPREADS = {"neither": (0.0, 0.0), "images": (0.0, 0.5), "both": (0.05, 0.3), "seeds": (0.3, 0.3)}


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_hierarchical_interval_covers_new_seeds_and_images(n, spread):
    # between 93 and 97 %, and three standard errors of 1,500 experiments
    assert coverage(n, *spread, 1_500) == pytest.approx(0.95, abs=0.02 + 0.017)


@pytest.mark.slow
@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_hierarchical_interval_covers_closely(n, spread):
    assert coverage(n, *spread, 5_000) == pytest.approx(0.95, abs=0.02)


def test_seeds_alone_cover_too_little_where_images_decide():
    """Why there is a hierarchical interval: Student's over seeds does not speak of other test images."""
    rng, hits = np.random.default_rng(0), 0
    spread = math.sqrt(1.5**2 + 0.5**2 + 1)
    truth = stats.norm.cdf(1.0 / spread) - stats.norm.cdf(0.8 / spread)
    for _ in range(300):
        ours, theirs = correct(rng, 10, 1_000, 0.0, 0.5)
        found = t_interval((ours.mean(1) - theirs.mean(1)).tolist())
        hits += found.low <= truth <= found.high
    assert hits / 300 < 0.9


def test_the_hierarchical_interval_is_students_where_images_add_nothing():
    rows = np.array([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]])
    found = hierarchical_difference(dict(enumerate(rows)), dict.fromkeys(range(3), np.zeros(2)))
    expected = t_interval([0.0, 1.0, 3.0])
    assert (found.mean, found.half, found.n) == pytest.approx((expected.mean, expected.half, 3))


def test_mean_squares_are_those_of_a_two_way_layout():
    rows = normal(3, 4, 6)
    grand = rows.mean()
    of_rows = sum(6 * (rows[i].mean() - grand) ** 2 for i in range(4)) / 3
    of_columns = sum(4 * (rows[:, j].mean() - grand) ** 2 for j in range(6)) / 5
    whole = sum((rows[i, j] - grand) ** 2 for i in range(4) for j in range(6))
    rest = (whole - 3 * of_rows - 5 * of_columns) / 15
    assert mean_squares(rows) == pytest.approx((of_rows, of_columns, rest))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [({0: [1, 0]}, {0: [0, 0]}), ({0: [1, 0], 1: [1]}, {0: [0, 0], 1: [0]}), ({0: [1], 1: [0]}, {0: [1], 1: [1]})],
    ids=["one_seed", "ragged", "one_image"],
)
def test_a_hierarchical_interval_of_too_little_is_refused(ours, theirs):
    with pytest.raises(ValueError, match="two seeds and images"):
        hierarchical_difference(ours, theirs)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_students_interval_covers_at_every_number_of_seeds(n):
    draws = np.random.default_rng(n).normal(3.0, 2.0, (2_000, n)).tolist()
    covered = np.mean([(i := t_interval(row)).low <= 3.0 <= i.high for row in draws])
    assert covered == pytest.approx(0.95, abs=0.02)

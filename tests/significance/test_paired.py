"""Tests of two networks on the same images, against scipy, statsmodels and closed forms."""

import math
import time

import numpy as np
import pytest
from scipy import stats

from raybust.significance import (
    compare_means,
    compare_seeds,
    compare_shares,
    decide,
    difference_band,
    holm,
)
from raybust.significance.means import bca, needed, p_of_zero, p_within, permutation
from raybust.significance.seeds import hierarchical
from raybust.significance.shares import mcnemar, tango, tango_interval

DRAW = np.random.default_rng(0)


def pair(both, only_a, only_b, neither):
    """Whether A and B are right on each image."""
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return np.array(a), np.array(b)


@pytest.mark.parametrize(
    ("only_a", "only_b"), [(0, 0), (1, 0), (5, 0), (10, 3), (40, 41), (200, 120)]
)
def test_mcnemar_is_statsmodels(only_a, only_b):
    oracle = pytest.importorskip("statsmodels.stats.contingency_tables")
    table = [[50, only_a], [only_b, 30]]
    expected = 1.0 if only_a + only_b == 0 else oracle.mcnemar(table, exact=True).pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(expected, abs=1e-9)
    found = compare_shares(*pair(50, only_a, only_b, 30), 0.01)
    assert found.p == pytest.approx(expected, abs=1e-9)
    assert found.difference == pytest.approx((only_a - only_b) / (80 + only_a + only_b))


def test_the_score_interval_inverts_the_statistic():
    for counts in ((9, 0, 57), (3, 12, 100), (1, 0, 10)):
        low, high = tango_interval(*counts)
        assert tango(*counts, low) == pytest.approx(1.959964, abs=1e-4)
        assert tango(*counts, high) == pytest.approx(-1.959964, abs=1e-4)
        assert low < (counts[0] - counts[1]) / counts[2] < high
    assert tango_interval(10, 0, 10)[1] == 1.0


@pytest.mark.parametrize(
    "counts", [(9, 0, 57), (3, 12, 100), (50, 40, 999), (0, 0, 50), (7, 7, 14)]
)
def test_the_score_statistic_uses_the_constrained_maximum_likelihood(counts):
    """The estimate of the smaller share under the hypothesis, by numerical maximization."""
    from scipy.optimize import minimize_scalar

    only_a, only_b, total = counts
    for difference in (-0.2, -0.01, 0.05, 0.3):
        lowest, highest = max(0.0, -difference), (1 - difference) / 2

        def loss(share, difference=difference):
            rest = 1 - 2 * share - difference
            terms = ((only_a, share + difference), (only_b, share), (total - only_a - only_b, rest))
            return -sum(n * math.log(max(p, 1e-300)) for n, p in terms if n)

        best = minimize_scalar(loss, bounds=(lowest, highest), method="bounded",
                               options={"xatol": 1e-13})  # fmt: skip
        variance = total * (2 * best.x + difference * (1 - difference))
        expected = (only_a - only_b - total * difference) / math.sqrt(variance)
        assert tango(only_a, only_b, total, difference) == pytest.approx(expected, rel=1e-4)


def test_the_score_interval_covers():
    """95 % of the intervals contain the true difference, for shares where Wald's fails."""
    hits, total = 0, 40
    for _ in range(2000):
        only_a, only_b, _ = DRAW.multinomial(total, (0.12, 0.02, 0.86))
        low, high = tango_interval(int(only_a), int(only_b), total)
        hits += low <= 0.10 <= high
    assert 0.93 <= hits / 2000 <= 0.985


def test_the_bootstrap_is_scipys_up_to_its_own_noise():
    values = DRAW.gamma(0.7, size=300) * (DRAW.random(300) < 0.6)
    ours = bca(values, float(values.max()), 20_000)
    theirs = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000,
                             rng=np.random.default_rng(5)).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert ours == pytest.approx(tuple(theirs), abs=0.02 * width)
    percentile = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000,
                                 rng=np.random.default_rng(5)).confidence_interval  # fmt: skip
    assert abs(ours[1] - theirs.high) < abs(ours[1] - percentile.high), "skewness is corrected"


def test_equal_values_leave_room_for_what_was_not_seen():
    """With N images, 1 - 0.025^(1/N) of all may be others, at confidence 97.5 %."""
    others = 1 - 0.025 ** (1 / 8)
    low, high = bca(np.full(8, 0.25), 1.0)
    assert low == pytest.approx((1 - others) * 0.25 - others)
    assert high == pytest.approx((1 - others) * 0.25 + others)
    few, many = (compare_means(np.full(n, 0.3), np.full(n, 0.3), 0.01) for n in (10, 2000))
    assert (few.p, few.needed) == (1.0, None)
    assert few.p_within > 0.5, "ten images show nothing"
    assert many.p_within < 1e-6
    assert few.low < 0 < few.high


def test_no_number_of_identical_networks_hides_that_images_are_few():
    """Two seeds that agree on every image say no more than one."""
    two = np.ones((2, 2))
    found = compare_seeds(two, 0 * two, 0.01, paired=True)
    assert (found.p, found.p_within) == (1.0, 1.0)
    same = compare_seeds(two, two, 0.01, paired=True)
    assert (same.p, same.p_within > 0.9) == (1.0, True)
    assert same.low < 0 < same.high
    wide = np.ones((3, 2000))
    assert compare_seeds(wide, wide, 0.01, paired=False).p_within < 1e-6


def test_equivalence_is_rarely_claimed_at_the_margin_by_identical_seeds():
    """One image in a hundred differs: the true difference is the margin."""
    for images in (60, 200, 500):
        claimed = 0
        for _ in range(200):
            a = np.ones((3, images))
            b = np.tile(DRAW.random(images) >= 0.01, (3, 1)).astype(float)
            claimed += compare_seeds(a, b, 0.01, paired=True, resamples=1).p_within <= 0.05
        assert claimed <= 0.08 * 200, images


@pytest.mark.parametrize(
    ("seeds", "images", "noise"), [(2, 300, 0.3), (2, 1000, 0.1), (3, 300, 0.3)]
)
@pytest.mark.parametrize("paired", [True, False])
def test_few_seeds_find_no_more_than_they_may(seeds, images, noise, paired):
    wrong = 0
    for _ in range(400):
        a, b = (noise * DRAW.normal(size=(seeds, 1)) + 0.5 * DRAW.normal(size=(seeds, images))
                for _ in "ab")  # fmt: skip
        wrong += compare_seeds(a, b, 0.1, paired=paired, resamples=1).p <= 0.05
    assert wrong <= 0.08 * 400


def test_where_images_are_lacking_no_number_of_seeds_is_promised():
    a, b = of_seeds(4, 400, 0.3, 0.9)
    assert compare_seeds(a, b, 0.1, paired=False, resamples=1).needed is not None
    identical = np.tile(DRAW.normal(size=30), (3, 1))
    moved = identical + np.tile(DRAW.normal(0.02, 0.5, 30), (3, 1))
    assert compare_seeds(moved, identical, 0.1, paired=True, resamples=1).needed is None


def test_the_band_holds_for_groups_of_seeds():
    """The whole true curve is inside in about 95 % of samples, whatever varies."""
    grid, missed = np.linspace(0, 1.5, 40), 0
    truth = np.zeros(40)
    for _ in range(120):
        images = DRAW.gamma(2.0, 0.25, 200)
        groups = [np.stack([images + DRAW.normal(0, 0.05) + DRAW.normal(0, 0.1, 200)
                            for _ in range(3)]) for _ in "ab"]  # fmt: skip
        band = difference_band(*groups, grid)
        missed += bool(((band.low > truth) | (band.high < truth)).any())
    assert missed <= 0.10 * 120


def test_the_largest_possible_difference_is_no_error():
    for total in (9, 13, 36, 41):
        a, b = np.zeros(total, bool), np.ones(total, bool)
        low, high = tango_interval(0, total, total)
        assert low <= compare_shares(a, b, 0.01).difference <= high


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.15])
def test_permutations_are_scipys(shift):
    values = DRAW.normal(shift, 0.3, 60)
    theirs = stats.permutation_test(
        (values, np.zeros(60)), lambda x, y, axis: np.mean(x - y, axis=axis), vectorized=True,
        permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(5),
    ).pvalue  # fmt: skip
    spread = 4 * math.sqrt(2 * theirs * (1 - theirs) / 20_000) + 2 / 20_000
    assert permutation(values, 20_000) == pytest.approx(theirs, abs=spread)


def test_permutations_of_few_images_are_all_of_them():
    """Five equal differences: of 32 sign changes two are as extreme."""
    assert permutation(np.ones(5), 40_000) == pytest.approx(2 / 32, abs=0.005)


def test_t_tests_are_scipys():
    """Of the tests of equivalence, t and the bound on unseen images, t is the larger one here."""
    draw = np.random.default_rng(3)
    a, b = draw.normal(size=30), draw.normal(0.3, size=30)
    d = a - b
    error = d.std(ddof=1) / math.sqrt(30)
    assert p_of_zero(d.mean(), error, 29) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=1e-9)
    found = compare_means(a, b, 0.5)
    assert found.checks["paired t"] == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=1e-9)
    lower = stats.ttest_1samp(d, -0.5, alternative="greater").pvalue
    upper = stats.ttest_1samp(d, 0.5, alternative="less").pvalue
    assert p_within(d.mean(), error, 29, 0.5) == pytest.approx(max(lower, upper), abs=1e-9)
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    assert found.p_within == pytest.approx(weightstats.ttost_paired(a, b, -0.5, 0.5)[0], abs=1e-9)


def test_holm_is_statsmodels():
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    for size in (1, 2, 7, 30):
        values = DRAW.random(size) ** 3
        expected = multipletests(values, method="holm")[1]
        assert holm(values.tolist()) == pytest.approx(expected.tolist(), abs=1e-12)
    assert holm([]) == []


def test_the_needed_number_has_the_power_it_promises():
    """Images: found in 80 % of samples of that size; seeds: the same for a t test, roughly."""
    found = compare_shares(*pair(700, 60, 40, 200), 0.01)
    shares, hits = (0.06, 0.04, 0.90), 0
    for _ in range(1000):
        only_a, only_b, _ = DRAW.multinomial(found.needed, shares)
        hits += mcnemar(int(only_a), int(only_b)) <= 0.05
    assert 0.74 <= hits / 1000 <= 0.86
    assert needed(0.0, 1.0) is None
    count = needed(0.5, 1.0)
    hits = sum(stats.ttest_1samp(DRAW.normal(0.5, 1, count), 0).pvalue <= 0.05 for _ in range(1000))
    assert 0.74 <= hits / 1000 <= 0.86


def of_seeds(seeds, images, noise, effect=0.0):
    """Values of networks: a part of the image, one of the seed, one of both."""
    shared = DRAW.normal(size=images)
    return [
        shared
        + effect * side
        + noise * DRAW.normal(size=(seeds, 1))
        + DRAW.normal(size=(seeds, images))
        for side in (1, 0)
    ]


@pytest.mark.parametrize("paired", [True, False])
def test_seeds_are_compared_by_the_t_tests_of_scipy_and_more_carefully(paired):
    a, b = of_seeds(5, 200, 0.3, 0.5)
    found = compare_seeds(a, b, 0.1, paired=paired)
    test = stats.ttest_rel if paired else lambda x, y: stats.ttest_ind(x, y, equal_var=False)
    (name,) = [key for key in found.checks if "t over seeds" in key]
    expected = test(a.mean(1), b.mean(1)).pvalue
    assert found.checks[name] == pytest.approx(expected, abs=1e-9)
    assert found.seeds == (5, 5)
    assert found.low < found.difference < found.high


def test_false_findings_over_seeds_are_rare_where_single_seeds_find_too_much():
    """No difference but that of seeds: two single networks differ significantly in most cases."""
    wrong = {"seeds": 0, "one": 0, "bootstrap": 0}
    for _ in range(300):
        a, b = of_seeds(5, 400, 0.2)
        wrong["seeds"] += compare_seeds(a, b, 0.1, paired=False, resamples=1).p <= 0.05
        wrong["one"] += stats.ttest_rel(a[0], b[0]).pvalue <= 0.05
    assert wrong["seeds"] <= 0.06 * 300 + 6
    assert wrong["one"] > 0.3 * 300


def test_the_hierarchical_bootstrap_sees_seeds_and_images():
    a, b = of_seeds(6, 200, 0.3, 2.0)
    assert hierarchical(a, b, paired=False, resamples=500) < 0.02
    same = of_seeds(6, 200, 0.3)[0]
    assert hierarchical(same, same, paired=True, resamples=200) == 1.0


def test_ten_thousand_images_take_seconds():
    a, b = DRAW.gamma(1.0, size=(2, 10_000))
    began = time.perf_counter()
    compare_means(a, b, 0.01)
    compare_shares(a > 0.5, b > 0.5, 0.01)
    assert time.perf_counter() - began < 60, "a hang, not a speed: see benchmarks/compare.py"


@pytest.mark.parametrize(
    ("bounds", "verdicts"),
    [
        ((False, False), ["better", "worse", "equivalent"]),
        ((True, False), ["cannot say", "worse", "cannot say"]),
        ((False, True), ["better", "cannot say", "cannot say"]),
        ((True, True), ["cannot say"] * 3),
    ],
)
def test_an_upper_bound_proves_no_side_better_and_no_two_equivalent(bounds, verdicts):
    ahead, behind = pair(50, 40, 5, 50), pair(50, 5, 40, 50)
    family = [compare_shares(*both, 0.01) for both in (ahead, behind)]
    family.append(compare_shares(*pair(900, 3, 3, 900), 0.01))
    found = decide(family, [bounds] * 3)
    assert [one.verdict for one in found] == verdicts
    assert [one.held for one in found] == [
        verdict != plain.verdict for verdict, plain in zip(verdicts, decide(family), strict=True)
    ]

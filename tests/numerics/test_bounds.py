"""Closed forms first: Clopper-Pearson against SciPy, coverage and error probabilities by exact
sums, radii against fifty-digit arithmetic."""

import itertools
import math

import mpmath
import numpy as np
import pytest
from crossing import crossing_probability
from scipy.stats import beta, binom, binomtest

from raybust.numerics import bounds


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_clopper_pearson_equals_scipy_for_every_count(alpha):
    for k in range(21):
        interval = binomtest(k, 20).proportion_ci(1 - 2 * alpha, method="exact")
        assert bounds.clopper_pearson_lower(k, 20, alpha) == pytest.approx(interval.low, abs=1e-12)
        assert bounds.clopper_pearson_upper(k, 20, alpha) == pytest.approx(interval.high, abs=1e-12)
    k = np.arange(1, 21)
    assert np.array_equal(
        bounds.clopper_pearson_lower(k, 20, alpha), beta.ppf(alpha, k, 20 - k + 1)
    )


@pytest.mark.parametrize(
    ("k", "n", "value"),
    [
        (99_999, 100_000, 0.99990767),
        (100_000, 100_000, 0.99993092),
        (50_000, 100_000, 0.49510904),
        (99, 100, 0.91137311),
        (100, 100, 0.93325430),
    ],
)
def test_clopper_pearson_reference_values(k, n, value):
    bound = float(bounds.clopper_pearson_lower(k, n, 0.001))
    assert bound == pytest.approx(value, abs=5e-9)  # the reference has eight digits
    if k < n:
        assert binom.sf(k - 1, n, bound) == pytest.approx(0.001, abs=1e-9)
    else:
        assert bound == pytest.approx(0.001 ** (1 / n), abs=1e-9)


def test_clopper_pearson_at_the_ends():
    assert bounds.clopper_pearson_lower(0, 10, 0.01) == 0.0
    assert bounds.clopper_pearson_upper(10, 10, 0.01) == 1.0


@pytest.mark.parametrize("n", [1, 7, 50, 200])
def test_coverage_by_exact_summation(n):
    k = np.arange(n + 1)
    for alpha, p in itertools.product((0.05, 0.001), np.linspace(0.01, 0.99, 37)):
        wrong = bounds.clopper_pearson_lower(k, n, alpha) > p
        assert binom.pmf(k, n, p)[wrong].sum() <= alpha + 1e-12


def test_least_count_inverts_the_bound():
    for n, p in itertools.product((11, 100, 1000), (0.5, 0.7, 0.99)):
        k = bounds.least_count(n, p, 0.001)
        assert k > n or bounds.clopper_pearson_lower(k, n, 0.001) >= p
        assert bounds.clopper_pearson_lower(k - 1, n, 0.001) < p
    assert [bounds.least_count(n, 0.5, 0.001) for n in (100, 1000, 10_000, 100_000)] == [
        66,
        550,
        5156,
        50_490,
    ]


def test_looks_and_the_alpha_they_spend():
    early = (100, 300, 1000, 3000, 10_000, 30_000)
    assert bounds.look_times(100_000) == (*early, 50_000, 75_000, 100_000)
    assert bounds.look_times(50) == (50,)
    assert bounds.look_times(1050) == (100, 300, 600, 800, 1050)
    assert bounds.look_times(500) == (100, 300, 400, 500)
    shares = bounds.spend_alpha(7, 0.001)
    assert sum(shares) == pytest.approx(0.001, rel=1e-12)
    assert shares[-1] == pytest.approx(0.0009)
    assert bounds.spend_alpha(1, 0.001) == (0.001,)
    times = bounds.growing_times(100_000)
    assert times[-1] == 100_000
    assert all(time % 100 == 0 for time in times)
    assert all(a < b for a, b in itertools.pairwise(times))


def test_mixture_martingale_has_mean_one():
    for n, p in itertools.product((1, 10, 100), (0.3, 0.5, 0.97)):
        values = [math.exp(bounds.mixture_log(k, n, p)) for k in range(n + 1)]
        assert binom.pmf(np.arange(n + 1), n, p) @ values == pytest.approx(1.0, abs=1e-9)


def test_mixture_bound_solves_its_equation():
    assert bounds.mixture_lower(0, 10, 0.01) == 0.0
    for k, n in ((1, 10), (50, 100), (100, 100), (99_999, 100_000)):
        low = bounds.mixture_lower(k, n, 0.001)
        assert low < k / n
        assert bounds.mixture_log(k, n, low) == pytest.approx(-math.log(0.001), abs=1e-6)
    for n, p in ((100, 0.5), (1000, 0.9), (100_000, 0.977)):
        k = bounds.mixture_least_count(n, p, 0.001)
        assert bounds.mixture_lower(k, n, 0.001) >= p - 1e-12
        assert bounds.mixture_lower(k - 1, n, 0.001) < p
    assert bounds.mixture_least_count(5, 0.9, 0.001) == 6


def test_crossing_probability_by_enumeration():
    times, counts, p = (3, 5, 9), (3, 5, 7), 0.6
    expected = 0.0
    for path in itertools.product((0, 1), repeat=9):
        if any(sum(path[:t]) >= c for t, c in zip(times, counts, strict=True)):
            expected += p ** sum(path) * (1 - p) ** (9 - sum(path))
    assert crossing_probability(times, counts, p) == pytest.approx(expected, abs=1e-13)
    assert crossing_probability((5,), (0,), p) == pytest.approx(1.0)
    assert crossing_probability((5,), (6,), p) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("p", "value"), [(0.977, 9.1e-5)])
def test_crossing_probability_of_the_confidence_sequence_at_every_n(p, value):
    times = range(1, 10_001)
    counts = [bounds.mixture_least_count(n, p, 0.001) for n in times]
    found = crossing_probability(times, counts, p)
    assert 0.6 * value < found <= value * 1.01  # the reference continues to n = 100,000


@pytest.mark.parametrize("sigma", [0.12, 0.25, 1.0])
def test_radius_is_rounded_down_never_up(sigma):
    mpmath.mp.dps = 40
    generator = np.random.default_rng(0)
    for n in (100, 1000, 1000, 10_000) * 5:
        k = int(generator.integers(int(0.8 * n), n + 1))
        p = float(bounds.clopper_pearson_lower(k, n, 0.001))
        exact = sigma * mpmath.sqrt(2) * mpmath.erfinv(2 * _exact_lower(k, n, p) - 1)
        radius = bounds.gaussian_radius(p, sigma)
        for digits in (3, 8):
            down = bounds.round_down(radius, digits)
            assert mpmath.mpf(repr(down)) <= exact
            assert down >= float(exact) * (1 - 1.1 * 10 ** (1 - digits)) - 1e-8


def _exact_lower(k, n, start):
    """The root of P(Bin(n, p) >= k) = 0.001 to forty digits, by Newton's method."""
    alpha = mpmath.mpf("0.001")
    if k == n:
        return alpha ** (mpmath.mpf(1) / n)
    p = mpmath.mpf(start)
    slope = n * mpmath.binomial(n - 1, k - 1)
    for _ in range(4):
        tail = sum(
            mpmath.binomial(n, j) * p**j * (1 - p) ** (n - j)
            for j in range(k, min(n, k + 60 + 12 * int(math.sqrt(n - k + 1))) + 1)
        )
        p -= (tail - alpha) / (slope * p ** (k - 1) * (1 - p) ** (n - k))
    return p


def test_round_down_edges():
    assert bounds.round_down(0.0) == 0.0
    assert bounds.round_down(-1.0) == 0.0
    assert bounds.round_down(0.9528, 3) == 0.952
    assert bounds.round_down(0.953, 3) == 0.952  # the slack: never above
    assert bounds.round_down(1.2345678951) == 1.2345678


def test_radius_constants():
    for n, value in ((100, 1.5005), (1000, 2.4633), (100_000, 3.8115)):
        assert bounds.gaussian_radius(0.001 ** (1 / n), 1.0) == pytest.approx(value, abs=5e-5)
    assert bounds.gaussian_radius(0.5, 1.0) == 0.0
    assert bounds.uniform_radius(0.75, 0.4) == pytest.approx(0.2)
    assert bounds.uniform_radius(0.4, 0.4) == 0.0


@pytest.mark.parametrize(("pixels", "keep"), [(4, 1), (8, 2), (12, 3), (12, 6)])
def test_ablation_by_enumeration(pixels, keep):
    kept = list(itertools.combinations(range(pixels), keep))
    for r in range(pixels - keep + 1):
        avoids = sum(not set(chosen) & set(range(r)) for chosen in kept)
        assert bounds.ablation_overlap(pixels, keep)[r] == pytest.approx(avoids / len(kept))
    for p in (0.5, 0.6, 0.8, 0.95, 1.0):
        found = [
            r
            for r in range(pixels - keep + 1)
            if p - (1 - math.comb(pixels - r, keep) / math.comb(pixels, keep)) > 0.5
        ]
        assert bounds.ablation_radius(p, pixels, keep) == (max(found) if found else 0)


def test_ablation_at_imagenet_size_and_certainty():
    pixels, keep = 224 * 224, 1000
    r = int(bounds.ablation_radius(1.0, pixels, keep))
    ratio = [mpmath.binomial(pixels - q, keep) / mpmath.binomial(pixels, keep) for q in (r, r + 1)]
    assert ratio[0] > 0.5 >= ratio[1]

"""Bounds on the probability of a class under noise, and the radii that follow from them.

Clopper and Pearson (1934) for a fixed number of draws; alpha spent over looks (union bound); the
mixture confidence sequence (Robbins, 1970; Voracek, 2024) for any number. Radii of Cohen et al.
(2019, arXiv 1902.02918), Yang et al. (2020, arXiv 2002.08118), Levine and Feizi (2020, arXiv
1911.09272). `crossing_probability` computes exactly how often a rule errs.

Stage `certify` of the arrow. All is float64 on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import ROUND_FLOOR, Decimal
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betainc, betaincinv, betaln, ndtri, xlog1py, xlogy

SLACK = 1e-9
"""Relative slack taken off a radius before it is rounded down: far above the rounding errors of
the quantile functions (about 1e-12), far below what anybody prints."""


def clopper_pearson_lower(k: ArrayLike, n: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Returns the one-sided lower bound of a binomial probability: P(Bin(n, bound) >= k) = alpha.

    BetaInv(alpha; k, n - k + 1); 0 at k = 0; alpha^(1/n) at k = n. For every p, P(bound > p) is at
    most alpha.

    Args:
        k: successes, 0 <= k <= n.
        n: draws, >= 1, fixed beforehand.
        alpha: probability with which the bound may be too high, in (0, 1).
    """
    successes, draws = np.broadcast_arrays(np.asarray(k, float), np.asarray(n, float))
    at_least_one = np.maximum(successes, 1)
    bound = betaincinv(at_least_one, draws - at_least_one + 1, alpha)
    return np.where(successes > 0, bound, 0.0)


def clopper_pearson_upper(k: ArrayLike, n: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Returns the one-sided upper bound, 1 - lower(n - k, n, alpha); 1 at k = n."""
    return 1.0 - clopper_pearson_lower(np.asarray(n) - np.asarray(k), n, alpha)


def least_count(n: int, p: float, alpha: float) -> int:
    """Returns the least k with `clopper_pearson_lower`(k, n, alpha) >= p, n + 1 if there is none.

    That is the least k with P(Bin(n, p) >= k) <= alpha.
    """
    return _least(0, n + 1, lambda k: betainc(k, n - k + 1, p) <= alpha)


def _least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Returns the least k above `low` with holds(k), which stays true; `high` if there is none."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def binomial_test(k: int, n: int) -> float:
    """Returns the p-value of the exact two-sided test of p = 1/2; 1 at n = 0."""
    return min(1.0, 2.0 * float(bdtr(min(k, n - k), n, 0.5)))


def look_times(n: int) -> tuple[int, ...]:
    """Returns the cumulative looks 100, 300, 1000, 3000, ... below n/2; n/2; 3n/4; and n.

    All but n are multiples of 100. The series is usual; the two late looks are our choice: they
    spare the sure examples, which one look at 30,000 cannot prove for a large radius, the second
    half of the draws.
    """
    series = {time for k in range(2, 20) for time in (10**k, 3 * 10**k) if 2 * time < n}
    late = {100 * math.ceil(share * n / 100) for share in (0.5, 0.75)}
    return (*sorted(time for time in series | late if time < n), n)


def growing_times(n: int, step: int = 100, growth: float = 0.1) -> tuple[int, ...]:
    """Returns looks in multiples of `step` that grow by the share `growth`, ending at n.

    A confidence sequence holds at every n, so that these times cost draws alone (our choice).
    """
    times, value = [], step
    while value < n:
        times.append(value)
        value += step * max(1, math.ceil(value * growth / step))
    return (*times, n)


def spend_alpha(looks: int, alpha: float, early: float = 0.1) -> tuple[float, ...]:
    """Returns the share of alpha of each look; the shares sum to alpha (union bound).

    Args:
        looks: how many, >= 1; a single one gets all.
        alpha: probability with which any of the bounds may be wrong.
        early: share spent evenly on all but the last look (our choice: a tenth).
    """
    if looks == 1:
        return (alpha,)
    return (early * alpha / (looks - 1),) * (looks - 1) + ((1 - early) * alpha,)


def mixture_log(k: int, n: int, p: float) -> float:
    """Returns log M of the mixture martingale with Jeffreys' prior, which has mean 1 under p.

    M = B(k + 1/2, n - k + 1/2) / (pi p^k (1 - p)^(n - k)). By Ville's inequality M reaches 1/alpha
    at any n with probability at most alpha.
    """
    prior = betaln(k + 0.5, n - k + 0.5) - math.log(math.pi)
    return float(prior - xlogy(k, p) - xlog1py(n - k, -p))


@lru_cache(maxsize=65536)
def mixture_lower(k: int, n: int, alpha: float) -> float:
    """Returns inf{p : M(p) < 1/alpha}, a lower bound that holds at all n at once; 0 at k = 0."""
    if k == 0:
        return 0.0
    from scipy.optimize import brentq  # half a second, which no other rule needs

    level, low = -math.log(alpha), k / n
    while mixture_log(k, n, low) < level:
        low /= 2
    return float(brentq(lambda p: mixture_log(k, n, p) - level, low, k / n, xtol=1e-15))


def mixture_upper(k: int, n: int, alpha: float) -> float:
    """Returns the upper bound 1 - `mixture_lower`(n - k, n, alpha)."""
    return 1.0 - mixture_lower(n - k, n, alpha)


def mixture_least_count(n: int, p: float, alpha: float) -> int:
    """Returns the least k with k/n > p and M(p) >= 1/alpha; n + 1 where there is none."""
    level = -math.log(alpha)
    return _least(math.floor(n * p), n + 1, lambda k: mixture_log(k, n, p) >= level)


def gaussian_radius(p: float, sigma: float) -> float:
    """Returns the L2 radius sigma PHI^-1(p) of Gaussian noise (Cohen et al., 2019, theorem 1 with
    pB = 1 - pA); 0 at p <= 1/2."""
    return max(0.0, sigma * float(ndtri(p)))


def uniform_radius(p: float, half_width: float) -> float:
    """Returns the L1 radius 2 l (p - 1/2) of noise uniform in [-l, l] (Yang et al., 2020; Lee et
    al., 2019); 0 at p <= 1/2."""
    return max(0.0, 2.0 * half_width * (p - 0.5))


@lru_cache(maxsize=16)
def ablation_overlap(pixels: int, keep: int) -> NDArray[np.float64]:
    """Returns C(d - r, k) / C(d, k) for r = 0 ... d - k: the probability that a kept set of k of d
    pixels avoids r given ones. Product of the ratios (d - k - i) / (d - i)."""
    i = np.arange(pixels - keep)
    return np.concatenate(([1.0], np.cumprod((pixels - keep - i) / (pixels - i))))


def ablation_radius(p: float, pixels: int, keep: int) -> float:
    """Returns the L0 radius of keeping k of d pixels: the largest r with
    p - (1 - C(d - r, k) / C(d, k)) > 1/2 (Levine and Feizi, 2020); 0 at p <= 1/2.

    A margin of 1e-12 keeps rounding from adding a pixel.
    """
    certified = np.nonzero(p - (1.0 - ablation_overlap(pixels, keep)) > 0.5 + 1e-12)[0]
    return float(certified[-1]) if len(certified) else 0.0


def round_down(value: float, digits: int = 8) -> float:
    """Returns the largest number of so many significant digits that is not above value (1 - 1e-9).

    Never above the exact value, whose computed form may be off by rounding; 0 at value <= 0.

    Args:
        value: a radius, finite.
        digits: significant digits, 1 to 15.
    """
    if value <= 0:
        return 0.0
    exact = Decimal(value * (1 - SLACK))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), ROUND_FLOOR))


def crossing_probability(times: Sequence[int], counts: Sequence[int], p: float) -> float:
    """Returns the probability that the successes reach a boundary at one of the looks, exactly.

    Dynamic programming over (n, k): the law of k is carried from look to look by convolution with a
    binomial, and what has crossed is taken out. Errors are below 1e-11 (FFT, tails of 1e-16 cut).

    Args:
        times: cumulative draws at the looks, rising.
        counts: at each look, the least k that crosses.
        p: probability of a success.
    """
    from scipy.signal import fftconvolve  # a second that no training process should wait
    from scipy.stats import binom

    law, first, done, crossed = np.ones(1), 0, 0, 0.0
    for time, count in zip(times, counts, strict=True):
        steps = time - done
        low, high = (int(binom.ppf(q, steps, p)) for q in (1e-16, 1 - 1e-16))
        low, high = max(0, low - 2), min(steps, high + 2)
        law = fftconvolve(law, binom.pmf(np.arange(low, high + 1), steps, p)).clip(min=0.0)
        first, done = first + low, time
        cut = min(max(count - first, 0), len(law))
        crossed += float(law[cut:].sum())
        law = law[:cut]
        if not len(law):
            break
    return crossed


def invert_increasing(function: Callable[[float], float], value: float) -> float:
    """Returns the least p in [1/2, 1] with function(p) >= value, to 1e-15; 1 if there is none."""
    low, high = 0.5, 1.0
    while high - low > 1e-15:
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) >= value else (middle, high)
    return high

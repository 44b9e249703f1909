"""Bounds on the probability of a class under noise, and the radii that follow.

Clopper and Pearson (1934) for a fixed number of draws; alpha spent over looks (union bound); the
mixture confidence sequence (Robbins, 1970; Voracek, 2024) for any number. Radii of Cohen et al.
(2019, arXiv 1902.02918), Yang et al. (2020, arXiv 2002.08118), Levine and Feizi (2020, arXiv
1911.09272). Everything is float64 on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_FLOOR, Decimal
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincinv, betaln, ndtri, xlog1py, xlogy

SLACK = 1e-9
"""Relative slack subtracted from a radius before rounding down: far above the rounding errors of
the quantile functions (about 1e-12), far below any printed digit."""


def clopper_pearson_lower(k: ArrayLike, n: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Returns the one-sided lower bound on a binomial probability: P(Bin(n, bound) >= k) = alpha.

    BetaInv(alpha; k, n - k + 1); 0 at k = 0; alpha^(1/n) at k = n. For every p, P(bound > p) is at
    most alpha.

    Args:
        k: successes, 0 <= k <= n.
        n: draws, >= 1, fixed in advance.
        alpha: probability that the bound is too high, in (0, 1).
    """
    successes, draws = np.broadcast_arrays(np.asarray(k, float), np.asarray(n, float))
    at_least_one = np.maximum(successes, 1)
    bound = betaincinv(at_least_one, draws - at_least_one + 1, alpha)
    return np.where(successes > 0, bound, 0.0)


def clopper_pearson_upper(k: ArrayLike, n: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Returns the one-sided upper bound, 1 - lower(n - k, n, alpha); 1 at k = n."""
    return 1.0 - clopper_pearson_lower(np.asarray(n) - np.asarray(k), n, alpha)


def least_count(n: int, p: float, alpha: float) -> int:
    """Returns the smallest k with `clopper_pearson_lower`(k, n, alpha) >= p, that is with
    P(Bin(n, p) >= k) <= alpha; n + 1 if there is none."""
    return _least(0, n + 1, lambda k: betainc(k, n - k + 1, p) <= alpha)


def _least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Returns the smallest k > `low` with holds(k), which is monotone; `high` if there is none."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def look_times(n: int) -> tuple[int, ...]:
    """Returns the cumulative looks 100, 300, 1000, 3000, ... below n/2; n/2; 3n/4; and n.

    All but n are multiples of 100. The series is common; the two late looks are our choice: they
    save half of the draws on clear examples whose large radius a look at 30,000 cannot prove.
    """
    series = {time for k in range(2, 20) for time in (10**k, 3 * 10**k) if 2 * time < n}
    late = {100 * math.ceil(share * n / 100) for share in (0.5, 0.75)}
    return (*sorted(time for time in series | late if time < n), n)


def growing_times(n: int) -> tuple[int, ...]:
    """Returns looks at multiples of 100 that grow by a tenth, ending at n.

    A confidence sequence holds at every n, so these times only affect cost (our choice).
    """
    times, value = [], 100
    while value < n:
        times.append(value)
        value += 100 * max(1, math.ceil(value * 0.1 / 100))
    return (*times, n)


def spend_alpha(looks: int, alpha: float) -> tuple[float, ...]:
    """Returns the alpha of each look; they sum to `alpha` (union bound).

    A tenth is split evenly among all looks but the last (our choice).

    Args:
        looks: number of looks, >= 1; a single one gets all.
        alpha: probability that any bound is wrong.
    """
    if looks == 1:
        return (alpha,)
    return (0.1 * alpha / (looks - 1),) * (looks - 1) + (0.9 * alpha,)


def mixture_log(k: int, n: int, p: float) -> float:
    """Returns log M of the mixture martingale with Jeffreys' prior, of mean 1 under p.

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
    from scipy.optimize import brentq  # takes half a second to import

    level, low = -math.log(alpha), k / n
    while mixture_log(k, n, low) < level:
        low /= 2
    return float(brentq(lambda p: mixture_log(k, n, p) - level, low, k / n, xtol=1e-15))


def mixture_least_count(n: int, p: float, alpha: float) -> int:
    """Returns the smallest k with k/n > p and M(p) >= 1/alpha; n + 1 if there is none."""
    level = -math.log(alpha)
    return _least(math.floor(n * p), n + 1, lambda k: mixture_log(k, n, p) >= level)


def gaussian_radius(p: float, sigma: float) -> float:
    """Returns the L2 radius sigma PHI^-1(p) for Gaussian noise (Cohen et al., 2019, theorem 1 with
    pB = 1 - pA); 0 at p <= 1/2."""
    return max(0.0, sigma * float(ndtri(p)))


def uniform_radius(p: float, half_width: float) -> float:
    """Returns the L1 radius 2 l (p - 1/2) for noise uniform in [-l, l] (Yang et al., 2020; Lee et
    al., 2019); 0 at p <= 1/2."""
    return max(0.0, 2.0 * half_width * (p - 0.5))


@lru_cache(maxsize=16)
def ablation_overlap(pixels: int, keep: int) -> NDArray[np.float64]:
    """Returns C(d - r, k) / C(d, k) for r = 0 ... d - k: the probability that k pixels kept out of
    d avoid r given ones. Product of the ratios (d - k - i) / (d - i)."""
    i = np.arange(pixels - keep)
    return np.concatenate(([1.0], np.cumprod((pixels - keep - i) / (pixels - i))))


def ablation_radius(p: float, pixels: int, keep: int) -> float:
    """Returns the L0 radius for k of d pixels kept: the largest r with
    p - (1 - C(d - r, k) / C(d, k)) > 1/2 (Levine and Feizi, 2020); 0 at p <= 1/2.

    A margin of 1e-12 prevents rounding from adding a pixel.
    """
    certified = np.nonzero(p - (1.0 - ablation_overlap(pixels, keep)) > 0.5 + 1e-12)[0]
    return float(certified[-1]) if len(certified) else 0.0


def round_down(value: float, digits: int = 8) -> float:
    """Returns the largest number with that many significant digits that is <= value (1 - 1e-9).

    The slack absorbs rounding errors in `value`, so the result never exceeds the exact one; 0 at
    value <= 0.

    Args:
        value: a radius, finite.
        digits: significant digits, 1 to 15.
    """
    if value <= 0:
        return 0.0
    exact = Decimal(value * (1 - SLACK))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), ROUND_FLOOR))


def invert_increasing(function: Callable[[float], float], value: float) -> float:
    """Returns the smallest p in [1/2, 1] with function(p) >= value, to 1e-15, or 1 if none."""
    low, high = 0.5, 1.0
    while high - low > 1e-15:
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) >= value else (middle, high)
    return high

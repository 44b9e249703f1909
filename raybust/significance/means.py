"""Two means over the same images, such as the ACR: bootstrap interval (BCa) and permutation test.

Sources: Efron, JASA 82 (1987), for BCa; the permutations exchange the two networks on an image,
which changes the sign of the image's difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from raybust.numerics.bounds import clopper_pearson_upper
from raybust.significance.paired import Paired
from raybust.significance.shares import LEVEL, POWER

Floats = NDArray[np.float64]
RESAMPLES = 10_000
_AT_ONCE = 2**22
"""Numbers that are drawn at a time."""


def compare_means(
    a: Floats,
    b: Floats,
    margin: float,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    *,
    bound: float = 0.0,
) -> Paired:
    """Compares the means of A and B.

    The p-value is that of the permutations; the two one-sided tests of equivalence are paired t
    tests, and the differences that no image of the sample has are bounded as in `p_of_rare`.

    Args:
        a: (N,), value of A on each image.
        b: (N,), value of B.
        margin: of equivalence, in the unit of the values.
        level: at which `needed` images decide.
        resamples: of bootstrap and permutations; the smallest p-value is 1 / (resamples + 1).
        bound: largest value that an image may have; the largest of the sample if that is more.
    """
    differences = np.asarray(a, float) - np.asarray(b, float)
    total, mean = len(differences), float(differences.mean())
    largest = float(max(np.abs(a).max(), np.abs(b).max(), bound))
    error = float(differences.std(ddof=1)) / math.sqrt(total) if total > 1 else math.nan
    low, high = bca(differences, largest, resamples)
    within = p_within(mean, error, total - 1, margin)
    return Paired(
        a=float(np.mean(a)),
        b=float(np.mean(b)),
        low=low,
        high=high,
        p=permutation(differences, resamples),
        p_within=max(within, p_of_rare(mean, margin, largest, total)),
        margin=margin,
        images=total,
        needed=needed(mean, error * math.sqrt(total), level),
        test="permutations",
        checks={"paired t": p_of_zero(mean, error, total - 1)},
    )


def bca(values: Floats, largest: float, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Returns the 95 % interval of a mean by the bias-corrected and accelerated bootstrap.

    Where all values are equal, the bootstrap has no width: with confidence 97.5 %, by Clopper and
    Pearson, at most 1 - 0.025^(1/N) of the others differ, and by no more than the largest value
    (our choice).

    Args:
        values: (N,).
        largest: bound on the absolute value of any.
        resamples: number of bootstrap samples, from a fixed seed.
    """
    mean, total = float(values.mean()), len(values)
    if np.ptp(values) == 0:
        others = float(clopper_pearson_upper(0, total, LEVEL / 2))
        return (1 - others) * mean - others * largest, (1 - others) * mean + others * largest
    source = np.random.default_rng(0)
    parts = (source.integers(0, total, (rows, total)) for rows in _rows(resamples, total))
    drawn = np.concatenate([values[part].mean(1) for part in parts])
    tolerance = 1e-12 * max(abs(mean), float(np.ptp(values)))
    below = (drawn < mean - tolerance).mean() + 0.5 * (abs(drawn - mean) <= tolerance).mean()
    bias = float(ndtri(min(max(below, 0.5 / resamples), 1 - 0.5 / resamples)))
    away = values - mean  # the jackknife of a mean, up to a factor
    acceleration = float((away**3).sum() / (6 * (away**2).sum() ** 1.5))
    ends = []
    for share in (LEVEL / 2, 1 - LEVEL / 2):
        moved = bias + float(ndtri(share))
        ends.append(float(ndtr(bias + moved / (1 - acceleration * moved))))
    low, high = np.quantile(drawn, ends)
    return float(low), float(high)


def permutation(differences: Floats, resamples: int = RESAMPLES) -> float:
    """Returns the two-sided p-value of a mean difference of 0, if the signs are exchangeable.

    Args:
        differences: (N,).
        resamples: number of random sign changes, from a fixed seed; the observed signs are counted
            among them.
    """
    moving = differences[differences != 0]
    if not len(moving):
        return 1.0
    source, observed = np.random.default_rng(1), abs(float(moving.sum()))
    limit, reached = observed * (1 - 1e-12), 0
    for rows in _rows(resamples, len(moving)):
        signs = source.integers(0, 2, (rows, len(moving)), dtype=np.int8).astype(np.float32)
        sums = signs @ moving.astype(np.float32) * 2 - float(moving.sum())
        reached += int((np.abs(sums) >= limit * (1 - 1e-6)).sum())
    return (reached + 1) / (resamples + 1)


def _rows(resamples: int, total: int) -> Iterator[int]:
    """Yields how many resamples to draw at a time."""
    step = max(1, _AT_ONCE // total)
    for start in range(0, resamples, step):
        yield min(step, resamples - start)


def p_of_zero(mean: float, error: float, freedom: float) -> float:
    """Returns the two-sided p-value of a t test of a mean of 0; 1 without a known error."""
    return float(2 * student.sf(abs(mean) / error, freedom)) if error > 0 else 1.0


def p_within(mean: float, error: float, freedom: float, margin: float) -> float:
    """Returns the larger p-value of the two one-sided t tests of |mean| >= margin; without an error
    0 inside the margin, see `p_of_rare`."""
    if not error > 0:
        return 1.0 if math.isnan(error) or abs(mean) >= margin else 0.0
    return float(student.sf((margin - abs(mean)) / error, freedom))


def p_of_rare(mean: float, margin: float, largest: float, total: int) -> float:
    """Returns the probability that none of the images shows differences which would move a mean to
    the margin: of the largest size, on as small a share of all images as suffices.

    Args:
        mean: of the differences.
        margin: of equivalence.
        largest: bound on a difference.
        total: number of images.
    """
    share = (margin - abs(mean)) / largest if largest else 1.0
    return float((1 - min(max(share, 0.0), 1.0)) ** total)


def needed(mean: float, deviation: float, level: float = LEVEL) -> int | None:
    """Returns the number of differences with that mean and deviation at which a two-sided test
    finds it with probability `POWER`, by the normal approximation, and at least as many as any sign
    test needs; None without a difference or a deviation."""
    if not mean or math.isnan(deviation):
        return None
    sums = float(ndtri(1 - level / 2) + ndtri(POWER))
    return max(math.ceil(math.log2(2 / level)), math.ceil((sums * deviation / mean) ** 2))

"""Two groups of networks that differ by their seed alone, on the same images.

Both the seeds and the images are random. The variance of the difference is that over seeds plus
that over images, which also contains a share of the first; the degrees of freedom are those of the
seeds alone. Both make the test conservative (our choice). With one network on each side, training
noise is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import nct
from scipy.stats import t as student

from raybust.numerics.bounds import clopper_pearson_upper
from raybust.significance.means import Floats, needed, p_of_rare, p_of_zero, p_within
from raybust.significance.paired import Paired
from raybust.significance.shares import LEVEL, POWER

_RESAMPLES = 2000
_MOST_SEEDS = 200
_NORMAL = 1.959964
"""Half-width of a 95 % interval in standard errors."""


def compare_seeds(
    a: Floats,
    b: Floats,
    margin: float,
    *,
    paired: bool,
    level: float = LEVEL,
    resamples: int = _RESAMPLES,
    bound: float = 0.0,
) -> Paired:
    """Compares the means of two groups of networks by a t test over seeds and images.

    Args:
        a: (S, N), value of each network of A on each image; S >= 2.
        b: (T, N), likewise for B; T >= 2.
        margin: of equivalence, in the unit of the values.
        paired: whether networks s of A and B have the same seed; then S = T.
        level: at which `needed` seeds decide.
        resamples: of the hierarchical bootstrap, whose p-value is a check.
        bound: as in `compare_means`.
    """
    means_a, means_b, images = a.mean(1), b.mean(1), a.shape[1]
    of_seeds, one, freedom = _of_seeds(means_a, means_b, paired=paired)
    difference, per_image = float(means_a.mean() - means_b.mean()), a.mean(0) - b.mean(0)
    of_images = float(per_image.var(ddof=1)) / images
    error = math.sqrt(of_seeds + of_images)
    largest = float(max(np.abs(a).max(), np.abs(b).max(), bound))
    over = p_of_zero(difference, math.sqrt(of_seeds), freedom)
    half = float(student.isf(LEVEL / 2, freedom)) * error
    moving = int((per_image != 0).sum())
    others = float(clopper_pearson_upper(0, images, LEVEL / 2))  # as in `bca`
    return Paired(
        a=float(means_a.mean()),
        b=float(means_b.mean()),
        low=difference - max(half, others * (largest + difference)),
        high=difference + max(half, others * (largest - difference)),
        p=min(1.0, max(p_of_zero(difference, error, freedom), 2 * 0.5**moving)),
        p_within=max(
            p_within(difference, error, freedom, margin),
            p_of_rare(difference, margin, largest, images),
        ),
        margin=margin,
        images=images,
        seeds=(len(a), len(b)),
        needed=_needed(difference, one, of_images, level, 1 if paired else 2),
        test="t over seeds and images",
        checks={
            "paired t over seeds" if paired else "Welch's t over seeds": over,
            "hierarchical bootstrap": hierarchical(a, b, paired=paired, resamples=resamples),
        },
    )


def _of_seeds(a: Floats, b: Floats, *, paired: bool) -> tuple[float, float, float]:
    """Returns the variance of the difference of the means of two groups of values, that of one seed
    on each side, and the degrees of freedom."""
    if paired:
        moved = a - b
        one = float(moved.var(ddof=1))
        return one / len(moved), one, len(moved) - 1.0
    parts = [float(m.var(ddof=1)) / len(m) for m in (a, b)]
    one = float(a.var(ddof=1)) + float(b.var(ddof=1))
    return sum(parts), one, _welch(parts, [len(a), len(b)])


def seeds_interval(
    values: Sequence[float], over_images: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Returns a 95 % interval for the mean of a figure over seeds and images.

    As in `compare_seeds`, the variances over seeds and over images add up, with the degrees of
    freedom of the seeds.

    Args:
        values: of each seed, at least two.
        over_images: 95 % interval of each value over its images, which are those of all seeds.
    """
    count = len(values)
    widths = [(high - low) / 2 / _NORMAL for low, high in over_images]
    of_images = float(np.mean(np.square(widths)))
    error = math.sqrt(float(np.var(values, ddof=1)) / count + of_images)
    mean, half = float(np.mean(values)), float(student.isf(LEVEL / 2, count - 1)) * error
    return mean - half, mean + half


def _needed(
    difference: float, of_seed: float, of_images: float, level: float, groups: int
) -> int | None:
    """Returns the seeds on each side at which the t test finds a difference with probability
    `POWER`; None if no number of seeds does on as many images.

    Args:
        difference: the observed one.
        of_seed: variance of the difference of one seed on each side.
        of_images: variance of the mean over the images.
        level: of the test.
        groups: 1 if seeds are paired, else 2.
    """
    for count in range(2, _MOST_SEEDS + 1) if difference else ():
        error, freedom = math.sqrt(of_seed / count + of_images), groups * (count - 1)
        if not error > 0:
            return None
        limit = float(student.isf(level / 2, freedom))
        if float(nct.sf(limit, freedom, abs(difference) / error)) >= POWER:
            return count
    return None


def compare_values(a: Floats, b: Floats, margin: float, level: float = LEVEL) -> Paired:
    """Compares the means of two groups of single values, such as the best of several searches, by
    Welch's t. One value on a side decides nothing.

    Args:
        a: (S,).
        b: (T,).
        margin: of equivalence, in the unit of the values.
        level: at which `needed` values on each side decide.
    """
    difference, sizes = float(a.mean() - b.mean()), (len(a), len(b))
    low = high = math.nan
    p, within, count = 1.0, 1.0, None
    if min(sizes) > 1:
        variances = [float(part.var(ddof=1)) / len(part) for part in (a, b)]
        error, freedom = math.sqrt(sum(variances)), _welch(variances, list(sizes))
        half = float(student.isf(LEVEL / 2, freedom)) * error
        low, high = difference - half, difference + half
        p = p_of_zero(difference, error, freedom)
        if error > 0:  # equal values say nothing of others
            within = p_within(difference, error, freedom, margin)
        count = needed(difference, math.sqrt(float(a.var(ddof=1) + b.var(ddof=1))), level)
    return Paired(
        a=float(a.mean()), b=float(b.mean()), low=low, high=high, p=p, p_within=within,
        margin=margin, images=0, seeds=sizes, needed=count,
        test="Welch's t" if min(sizes) > 1 else "none: one value on a side", checks={},
    )  # fmt: skip


def _welch(variances: Sequence[float], sizes: Sequence[float]) -> float:
    """Returns the degrees of freedom of a sum of variances of means (Welch and Satterthwaite)."""
    total = sum(variances)
    if total == 0:
        return min(sizes) - 1
    return total**2 / sum(v**2 / (n - 1) for v, n in zip(variances, sizes, strict=True))


def hierarchical(a: Floats, b: Floats, *, paired: bool, resamples: int = _RESAMPLES) -> float:
    """Returns the two-sided p-value of no difference by resampling seeds, then images.

    The images are the same for all networks of a resample. With few seeds it finds too much: the
    variance over S resampled seeds is too small by (S - 1) / S.

    Args:
        a: (S, N).
        b: (T, N).
        paired: resample pairs of networks.
        resamples: from a fixed seed.
    """
    source, images = np.random.default_rng(2), a.shape[1]
    found = np.empty(resamples)
    for number in range(resamples):
        chosen = source.integers(0, len(a), len(a))
        other = chosen if paired else source.integers(0, len(b), len(b))
        weights = np.bincount(source.integers(0, images, images), minlength=images)
        per_image = a[chosen].mean(0) - b[other].mean(0)
        found[number] = per_image @ weights / images
    least = min((found <= 0).sum(), (found >= 0).sum())
    return min(1.0, 2 * (int(least) + 1) / (resamples + 1))

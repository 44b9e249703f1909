"""The difference of two certified-accuracy curves with a simultaneous band, by the bootstrap.

Images are resampled, and seeds where a side has several. The band holds at all radii together: it
is wider than intervals at single radii.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import t as student

from raybust.significance.means import Floats
from raybust.significance.shares import LEVEL

_RESAMPLES = 2000


@dataclass(frozen=True)
class Band:
    """A curve with a band that contains the true curve as a whole with probability 95 %.

    Attributes:
        radii: (R,) grid.
        difference: (R,), A minus B.
        low: (R,) lower end of the band.
        high: (R,) upper end.
    """

    radii: Floats
    difference: Floats
    low: Floats
    high: Floats


def difference_band(a: Floats, b: Floats, radii: Floats) -> Band:
    """Returns the difference of certified accuracy over the radius.

    The band is the curve plus and minus a multiple of its standard error, the multiple such that
    95 % of the bootstrap's curves stay inside at every radius (Kolmogorov's form, studentized).
    Where a side has several seeds, these are resampled too, and the band is widened as t is beyond
    the normal law at that many seeds (our choice).

    Args:
        a: (S, N) certified radii of the networks of A, negative where wrong.
        b: (T, N), likewise for B.
        radii: (R,) ascending grid.
    """
    curves = _reached(a, radii) - _reached(b, radii)
    images, middle = curves.shape[0], curves.mean(0)
    source = np.random.default_rng(3)
    weights = source.multinomial(images, np.full(images, 1 / images), _RESAMPLES)
    drawn = weights @ curves / images - middle
    fewest = min((len(part) for part in (a, b) if len(part) > 1), default=0)
    for part in (a, b):
        drawn = drawn + _seeds(part, radii, source)
    small = student.isf(LEVEL / 2, fewest - 1) / ndtri(1 - LEVEL / 2) if fewest else 1.0
    error = np.maximum(drawn.std(0), 0.5 / images)
    limit = float(np.quantile(np.abs(drawn / error).max(1), 1 - LEVEL)) * float(small)
    low, high = middle - limit * error, middle + limit * error
    return Band(radii, middle, np.maximum(low, -1), np.minimum(high, 1))


def _seeds(values: Floats, radii: Floats, source: np.random.Generator) -> Floats:
    """Returns resampled deviations of the mean curve over seeds (resamples, R); 0 for one seed."""
    count = len(values)
    if count == 1:
        return np.zeros((_RESAMPLES, len(radii)))
    curves = (values[:, :, None] >= radii).mean(1)
    chosen = source.integers(0, count, (_RESAMPLES, count))
    scale = math.sqrt(count / (count - 1))
    found: Floats = (curves[chosen].mean(1) - curves.mean(0)) * scale
    return found


def _reached(values: Floats, radii: Floats) -> Floats:
    """Returns (N, R), the share of networks whose radius reaches each grid point on each image."""
    found: Floats = (values[:, :, None] >= radii).mean(0)
    return found

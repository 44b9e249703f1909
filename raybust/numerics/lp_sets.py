"""The sets of (p, eps) of Siedel et al. (VISAPP 2024, arXiv:2305.05400; `v1/` those of its first
version, of May 2023), and the root mean square of a random point of an Lp ball.

In high dimension d almost all points of a ball have the same size in every norm (Barthe et al.,
2005), so noises of different norms can be matched by the root mean square (rms) of an entry. Sets
for image sizes that are not in the paper are matched in the same way.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

Row = tuple[float, float]
"""(p, eps): a norm in (0, inf] and its radius, or p = 0 and the share of entries replaced."""

Shape = tuple[int, int, int]
"""(C, H, W)."""

INF = math.inf
NORMS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 200.0, INF)
"""The nine norms, in the order of the transfer matrix."""

CIFAR_SHAPE: Shape = (3, 32, 32)
TINY_SHAPE: Shape = (3, 64, 64)

_CIFAR: dict[float, tuple[float, ...]] = {
    INF: (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.10, 0.12, 0.15),
    0.5: (25e3, 50e3, 75e3, 100e3, 150e3, 200e3, 250e3, 300e3, 350e3, 400e3),
    1.0: (12.5, 25.0, 37.5, 50.0, 75.0, 100.0, 125.0, 150.0, 175.0, 200.0),
    2.0: (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0),
    5.0: (0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6),
    10.0: (0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3),
    50.0: (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.10, 0.12, 0.15, 0.18),
    200.0: (0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.09, 0.11, 0.13, 0.15),
    0.0: (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.10, 0.12),
}
_TINY: dict[float, tuple[float, ...]] = {
    INF: (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3),
    0.5: (2e5, 4e5, 7e5, 1.2e6, 1.8e6, 2.5e6, 3.5e6, 5e6, 8e6, 1.2e7),
    1.0: (37.5, 75.0, 125.0, 200.0, 300.0, 400.0, 600.0, 800.0, 1100.0, 1500.0),
    2.0: (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0),
    5.0: (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5),
    10.0: (0.02, 0.04, 0.06, 0.1, 0.14, 0.18, 0.25, 0.35, 0.5, 0.7),
    50.0: (0.02, 0.03, 0.04, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25, 0.35),
    200.0: (0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3),
    0.0: (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3),
}
_PATCHED: tuple[Row, ...] = (
    (INF, 0.3),
    (0.5, 8e5),
    (1.0, 400.0),
    (2.0, 10.0),
    (5.0, 1.2),
    (10.0, 0.6),
    (50.0, 0.36),
    (200.0, 0.3),
    (0.0, 0.24),
)
_C2_NORMS = (INF, 2.0, 0.0)
_ICE_CIFAR: tuple[Row, ...] = (
    (INF, 0.01),
    (0.5, 25e3),
    (1.0, 25.0),
    (2.0, 0.5),
    (10.0, 0.03),
    (50.0, 0.02),
)
_ICE_TINY: tuple[Row, ...] = (
    (INF, 0.01),
    (0.5, 700e3),
    (1.0, 125.0),
    (2.0, 2.0),
    (10.0, 0.06),
    (50.0, 0.04),
)
_FIRST: dict[str, tuple[tuple[float, float, bool], ...]] = {
    "v1/C1": ((INF, 0.02, False), (2.0, 1.0, False), (0.0, 0.01, True), (0.0, 0.03, False)),
    "v1/C2": (
        (INF, 0.0, False),
        *((INF, eps, False) for eps in (0.01, 0.02)),
        *((0.5, eps, False) for eps in (50e3, 100e3)),
        *((1.0, eps, False) for eps in (25.0, 40.0)),
        *((2.0, eps, False) for eps in (0.5, 1.0)),
        (5.0, 0.2, False),
        *((10.0, eps, False) for eps in (0.06, 0.15)),
        *((50.0, eps, False) for eps in (0.05, 0.1)),
        *((0.0, eps, True) for eps in (0.01, 0.02)),
        *((0.0, eps, False) for eps in (0.02, 0.03, 0.06)),
    ),
}
"""p, eps, and whether impulses are 0 or 1, from the configurations beside the authors' results."""

LARGE_PATCH = (0.5, 1.0)
SMALL_PATCH = (0.2, 0.7)
"""Ranges of a patch's share of the image area, from the authors' code of 2024."""


@dataclass(frozen=True, kw_only=True)
class LpSet:
    """A set of noises, one of which is drawn uniformly for each image.

    Attributes:
        rows: the (p, eps).
        shape: (C, H, W) of the images these eps are for.
        scaled: whether eps is multiplied by U(0, 1), drawn for each image.
        patch: range of the share of the area that gets noise; None for the whole image.
        binary: for each row, whether impulses are 0 or 1, not uniform; empty if the set does not
            say.
    """

    rows: tuple[Row, ...]
    shape: Shape
    scaled: bool = False
    patch: tuple[float, float] | None = None
    binary: tuple[bool, ...] = ()

    def scaled_to(self, shape: Shape) -> LpSet:
        """Returns the set for another image shape: each eps changes so that the rms of an entry
        (see `rms`) does not; shares at p = 0 do not change."""
        old, new = math.prod(self.shape), math.prod(shape)
        rows = tuple(
            (p, eps if p == 0 else eps_of(p, rms(p, eps, old), new)) for p, eps in self.rows
        )
        return self if old == new else dataclasses.replace(self, rows=rows, shape=shape)


@functools.cache
def named(name: str, shape: Shape) -> LpSet:
    """Returns a set of the paper for an image shape.

    C1: nine norms, ten eps each. C2: the ten of p = inf, 2 and 0. C3: the five lowest of each norm.
    The `_patched` sets of 2024 have one large eps per norm, times U(0, 1), on a patch. iCE: the six
    barely visible noises of the metric of that name.

    v1/C1: four noises. v1/C2: no noise and 18 small ones, as trained with TrivialAugment; without
    it, the authors added a shift of all entries by +-0.05, which is left out here. Their eps belong
    to `law=laplace`: noise of the uniform law is larger for p > 2, see `lp_noise`.

    Images with 3 x 32 x 32 and 3 x 64 x 64 entries get the published values. Other shapes are
    scaled by rms from the nearer of the two (our choice), and so are the patched sets, published
    only for 3 x 64 x 64.

    Args:
        name: `C1`, `C2`, `C3`, `C1_patched`, `C2_patched`, `iCE`, `v1/C1` or `v1/C2`.
        shape: (C, H, W).
    """
    own, table, ice = CIFAR_SHAPE, _CIFAR, _ICE_CIFAR
    if math.prod(shape) ** 2 > math.prod(CIFAR_SHAPE) * math.prod(TINY_SHAPE):
        own, table, ice = TINY_SHAPE, _TINY, _ICE_TINY
    if name == "iCE":
        return LpSet(rows=ice, shape=own).scaled_to(shape)
    if name in _FIRST:
        first = _FIRST[name]
        rows = tuple((p, eps) for p, eps, _ in first)
        flags = tuple(binary for *_, binary in first)
        return LpSet(rows=rows, shape=CIFAR_SHAPE, binary=flags).scaled_to(shape)
    kind, _, patched = name.partition("_")
    if patched:
        rows = tuple(row for row in _PATCHED if kind == "C1" or row[0] in _C2_NORMS)
        whole = LpSet(rows=rows, shape=CIFAR_SHAPE, scaled=True, patch=LARGE_PATCH)
        return whole.scaled_to(shape)
    count = 5 if kind == "C3" else 10
    norms = _C2_NORMS if kind == "C2" else tuple(table)
    rows = tuple((p, eps) for p in norms for eps in table[p][:count])
    return LpSet(rows=rows, shape=own).scaled_to(shape)


def rms(p: float, eps: float, d: int) -> float:
    """Returns the root mean square of an entry of a random point of an Lp ball.

    eps (p/d)^(1/p) sqrt(Gamma(3/p) / Gamma(1/p)), for p = inf eps / sqrt(3): the limit of large d,
    within O(1/d). For p = 0 it depends on the image; sqrt(eps) / 2 is the rms of binary impulses on
    a gray one (our choice).

    Args:
        p: in [0, inf].
        eps: the radius.
        d: entries of an image.
    """
    if p == 0:
        return math.sqrt(eps) / 2
    if math.isinf(p):
        return eps * float((d / 3) ** 0.5) / math.sqrt(d)
    moment = math.lgamma(3 / p) - math.lgamma(1 / p)
    # In logarithms: p = 0.5 has radii of 10^8.
    size = eps * math.exp((0.5 - 1 / p) * math.log(d) + math.log(p) / p + moment / 2)
    return size / math.sqrt(d)


def eps_of(p: float, entry: float, d: int) -> float:
    """Returns the radius whose random points have a given rms: the inverse of `rms`.

    Args:
        p: in [0, inf].
        entry: the rms of an entry.
        d: entries of an image.
    """
    return 4 * entry**2 if p == 0 else entry / rms(p, 1.0, d)

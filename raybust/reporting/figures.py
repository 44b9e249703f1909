"""Numbers of certification logs: certified accuracy, ACR with its interval, and the n and alpha of
a log.

Certified accuracy is from Cohen et al. (2019), ACR from Zhai et al. (2020, arXiv 2001.02378).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from raybust.certification import BoundProtocol, Header, Protocol
from raybust.numerics.bounds import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    gaussian_radius,
)
from raybust.reporting.logs import Floats, Log

SAMPLES = (100, 1000, 10_000, 100_000, 1_000_000)
ALPHAS = (0.1, 0.05, 0.01, 0.005, 0.001, 0.0001)
SIGMAS = (0.12, 0.25, 0.5, 0.75, 1.0)
"""Candidate budgets of a log, and sigmas if the path does not name one (our choice)."""
_RESAMPLES = 2000
_FITS, _REPEATED, _CHANCE = 0.98, 3, 1e-8
"""Share of the radii on a ladder, rows that make a largest radius an atom, and the probability of
fitting by chance (our choices)."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The settings of a log.

    Attributes:
        n: draws per example.
        alpha: probability that a certificate is wrong.
        sigma: standard deviation of the noise.
        share: share of the radii that this budget can produce; 1 if read from the header.
        inferred: whether it was inferred from the radii.
        alphas: all alphas that explain the radii at this n, each with the share it explains; if
            there are several, alpha is not identifiable.
    """

    n: int
    alpha: float
    sigma: float
    share: float
    inferred: bool
    alphas: tuple[tuple[float, float], ...] = ()

    @property
    def identifiable(self) -> bool:
        """Whether only one alpha explains the radii."""
        return len(self.alphas) < 2

    def __str__(self) -> str:
        if not self.inferred:
            return f"n = {self.n:,}, alpha = {self.alpha:g}"
        if self.identifiable:
            return f"n = {self.n:,}, alpha = {self.alpha:g}, inferred"
        fits = ", ".join(f"{alpha:g} ({100 * share:.1f} %)" for alpha, share in self.alphas)
        return f"n = {self.n:,}, inferred, alpha not identifiable: radii fit {fits}"


@dataclass(frozen=True, kw_only=True)
class Acr:
    """Average certified radius with everything it depends on, always included in its text.

    Attributes:
        value: mean of radius * correct over all rows; NaN without rows.
        low: 2.5% point of the bootstrap over examples.
        high: 97.5% point.
        budget: n and alpha, None if unknown.
        examples: number of rows.
        skip: every skip-th example is included; None if unknown.
        targets: radii at which sampling stopped early; larger radii are understated.
        noise: the smoothing noise, or the bounds, and the part of the data, in words; "" where
            unknown.
        cost: of bounds, in words; "" for smoothing.
    """

    value: float
    low: float
    high: float
    budget: Budget | None
    examples: int
    skip: int | None
    targets: tuple[float, ...] = ()
    noise: str = ""
    cost: str = ""

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}] ({self.terms})"

    @property
    def terms(self) -> str:
        """The dependencies of the value, in words."""
        made = self.cost or (str(self.budget) if self.budget else "n and alpha unknown")
        skip = "skip unknown" if self.skip is None else f"skip {self.skip}"
        early = ""
        if self.targets:
            radii = ", ".join(f"{radius:g}" for radius in self.targets)
            made_only = "computed only" if self.cost else "drawn only"
            early = f"; {made_only} to decide {radii}, so the ACR is understated"
        noise = f"; {self.noise}" if self.noise else ""
        return f"{made}; {self.examples:,} examples, {skip}{noise}{early}"


def certified_accuracy(log: Log, radii: Sequence[float] | Floats) -> Floats:
    """Returns for each radius the share of all rows that are correct with at least that radius;
    abstentions count as wrong.

    Args:
        log: N rows; NaN without rows.
        radii: (R,) in the log's norm.
    """
    if not len(log):
        return np.full(len(radii), math.nan)
    certified = np.where(log.correct, log.radius, -1.0)
    shares: Floats = (certified[:, None] >= np.asarray(radii, float)).mean(0)
    return shares


def abstention(log: Log) -> float:
    """Returns the share of rows that abstain; NaN without rows."""
    return float((log.predict < 0).mean()) if len(log) else math.nan


def acr(log: Log) -> Acr:
    """Returns the average certified radius with a bootstrap interval over the examples, which does
    not depend on the order of the rows. Where all rows are equal, see `_ends_of_equal`."""
    order = np.argsort(log.idx, kind="stable")
    values = (log.radius * log.correct)[order]
    ends = [math.nan, math.nan]
    if len(values) and np.ptp(values) == 0:
        ends = _ends_of_equal(log, float(values[0]))
    elif len(values):
        generator = np.random.default_rng(0)
        means = [generator.choice(values, len(values)).mean() for _ in range(_RESAMPLES)]
        ends = np.quantile(means, [0.025, 0.975]).tolist()
    return Acr(
        value=float(values.mean()) if len(values) else math.nan,
        low=ends[0],
        high=ends[1],
        budget=budget(log),
        examples=len(log),
        skip=log.skip,
        targets=log.protocol.targets if log.protocol else (),
        noise=_noise(log.protocol) if log.protocol else "",
        cost=log.protocol.cost if isinstance(log.protocol, BoundProtocol) else "",
    )


def _ends_of_equal(log: Log, value: float) -> list[float]:
    """Returns the interval of a mean whose N rows are equal, where a bootstrap has no width: with
    confidence 97.5 % at most 1 - 0.025^(1/N) of the examples are others (Clopper and Pearson), and
    their radii are between 0 and the largest that the draws can prove (our choice)."""
    others = float(clopper_pearson_upper(0, len(log), 0.025))
    return [(1 - others) * value, value + others * (max(largest_radius(log), value) - value)]


def largest_radius(log: Log) -> float:
    """Returns the largest radius that a log can prove; NaN if its draws are not known."""
    made = budget(log)
    if log.protocol:
        return log.protocol.largest
    return gaussian_radius(made.alpha ** (1 / made.n), made.sigma) if made else math.nan


def _noise(protocol: Header) -> str:
    exact = "" if protocol.precision == "float32" else f", computed in {protocol.precision}"
    return f"{protocol.how}{exact}; {protocol.split} set"


def budget(log: Log) -> Budget | None:
    """Returns the n and alpha of a log: from its header, or those whose ladder of possible radii
    (Clopper-Pearson, Gaussian noise, fixed n) contains most of its rows.

    Ties go to the ladder with the smallest maximum, that is, the fewest draws. None if no ladder
    contains 98% of at least ten radii, or if any radii would lie on it: printed with three digits,
    those of a large n are too close to each other (see `_tells`). None for bounds, which draw
    nothing.
    """
    if isinstance(p := log.protocol, Protocol):
        return Budget(n=p.n, alpha=p.alpha, sigma=p.sigma, share=1.0, inferred=False)
    if log.protocol or log.norm != "l2" or int((log.predict >= 0).sum()) < 10:
        return None
    tried = [
        (share, -gaussian_radius(alpha ** (1 / n), sigma), n, alpha, sigma)
        for sigma in ((log.sigma,) if log.sigma else SIGMAS)
        for n in SAMPLES
        for alpha in ALPHAS
        if (share := float(on_ladder(log, n, alpha, sigma).mean())) >= _FITS
        and _tells(log, n, alpha, sigma)
    ]
    if not tried:
        return None
    share, _, n, alpha, sigma = max(tried)
    fits = sorted(
        ((one, part) for part, _, draws, one, noise in tried if (draws, noise) == (n, sigma)),
        reverse=True,
    )
    return Budget(n=n, alpha=alpha, sigma=sigma, share=share, inferred=True, alphas=tuple(fits))


def _tells(log: Log, n: int, alpha: float, sigma: float) -> bool:
    """Returns whether radii on a ladder are evidence for it.

    Where several rows have the largest radius, all their votes agreed: it must be the ladder's
    largest, and then is evidence enough. Otherwise each different radius that fits would do so by
    chance with the share of the real line around it that rounds to a step of the ladder: all must
    fit whose share is below 1/2, and the product of the shares be below 1e-8 (our choices).
    """
    found = log.predict >= 0
    radii, where, counts = np.unique(log.radius[found], return_index=True, return_counts=True)
    rounding = log.rounding[found][where] + 1e-9
    largest = gaussian_radius(alpha ** (1 / n), sigma)
    if counts[-1] >= _REPEATED:
        return bool(abs(radii[-1] - largest) <= 2 * rounding[-1])
    k = np.minimum(binom.isf(alpha, n, np.clip(ndtr(radii / sigma), 0.5, 1 - 1e-12)) + 1, n)
    step = (
        ndtri(clopper_pearson_lower(k, n, alpha)) - ndtri(clopper_pearson_lower(k - 1, n, alpha))
    ) * sigma
    fits = on_ladder(log, n, alpha, sigma)[where]
    chance = np.minimum(1.0, 3 * rounding / np.maximum(step, 1e-12))
    if not fits[chance < 1 / 2].all():
        return False
    return bool(np.log(np.where(fits, chance, 1.0)).sum() < math.log(_CHANCE))


def on_ladder(log: Log, n: int, alpha: float, sigma: float) -> NDArray[np.bool_]:
    """Returns for each row that does not abstain whether some count k of n gives its radius, to
    the printed digits: bool (M,)."""
    found = log.predict >= 0
    # Rounded to the nearest digit, or down, as in our own exports.
    low, high = (
        ndtr((log.radius[found] + sign * (log.rounding[found] + 1e-9)) / sigma) for sign in (-1, 2)
    )
    k = binom.isf(alpha, n, np.maximum(low, 0.5)) + 1  # the smallest with a bound >= low
    bound = clopper_pearson_lower(np.minimum(k, n), n, alpha)
    possible: NDArray[np.bool_] = (k <= n) & (bound <= high) & (bound >= low)
    return possible


def votes(log: Log) -> Floats | None:
    """Returns the share of draws that voted for each row's class, (N,): from the rows, or recovered
    from the radii of a Gaussian L2 log, then 1/2 on abstention. None if it is not known.

    Args:
        log: any log.
    """
    if len(log) and not np.isnan(log.share).any():
        return log.share
    made = budget(log)
    if made is None or log.norm != "l2":
        return None
    if isinstance(p := log.protocol, Protocol) and (p.noise, p.schedule) != ("gaussian", "fixed"):
        return None
    share = np.maximum(ndtr((log.radius - log.rounding) / made.sigma), 0.5)
    k = np.minimum(binom.isf(made.alpha, made.n, share) + 1, made.n)
    return np.where(log.predict >= 0, k / made.n, 0.5)

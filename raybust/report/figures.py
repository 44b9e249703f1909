"""Figures of certification logs: certified accuracy, ACR with its spread, and which n and alpha
made a log.

Certified accuracy and its high-probability version are of Cohen et al. (2019), ACR of Zhai et al.
(2020, arXiv 2001.02378). Stage `report` of the arrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binom

from raybust.certify import Protocol
from raybust.numerics.bounds import clopper_pearson_lower, gaussian_radius
from raybust.report.logs import Floats, Log

SAMPLES = (100, 1000, 10_000, 100_000, 1_000_000)
ALPHAS = (0.1, 0.05, 0.01, 0.005, 0.001, 0.0001)
SIGMAS = (0.12, 0.25, 0.5, 0.75, 1.0)
"""Budgets that a log is tried for, and the sigmas where the path does not tell (our choice)."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What made a log.

    Attributes:
        n: draws per example.
        alpha: probability with which a certificate may be wrong.
        sigma: of the noise.
        share: share of the radii that this budget can give; 1 where the header says it.
        inferred: whether it was inferred from the radii.
        alphas: every alpha that explains the radii at this n, with the share that it explains;
            where there are several, alpha is not identifiable.
    """

    n: int
    alpha: float
    sigma: float
    share: float
    inferred: bool
    alphas: tuple[tuple[float, float], ...] = ()

    @property
    def identifiable(self) -> bool:
        """Whether no other alpha explains the radii as well."""
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
    """Average certified radius with all that it depends on; its text never leaves that out.

    Attributes:
        value: mean of radius * correct over all rows; NaN for no rows.
        low: 2.5 % point of the bootstrap over examples.
        high: 97.5 % point.
        budget: n and alpha, None where they are unknown.
        examples: number of rows.
        skip: every how many-th example; None where unknown.
        targets: radii at which examples stopped being drawn; radii beyond them are understated.
        noise: the smoothing noise and the part of the data, in words; "" where unknown.
    """

    value: float
    low: float
    high: float
    budget: Budget | None
    examples: int
    skip: int | None
    targets: tuple[float, ...] = ()
    noise: str = ""

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}] ({self.terms})"

    @property
    def terms(self) -> str:
        """What the value depends on, in words."""
        made = str(self.budget) if self.budget else "n and alpha unknown"
        skip = "skip unknown" if self.skip is None else f"skip {self.skip}"
        early = ""
        if self.targets:
            radii = ", ".join(f"{radius:g}" for radius in self.targets)
            early = f"; drawn only to decide {radii}, so the ACR is understated"
        noise = f"; {self.noise}" if self.noise else ""
        return f"{made}; {self.examples:,} examples, {skip}{noise}{early}"


def certified_accuracy(log: Log, radii: Sequence[float] | Floats) -> Floats:
    """Returns the share of all rows that are correct with at least each radius; abstentions count
    as wrong.

    Args:
        log: N rows; for none the result is NaN.
        radii: (R,) in the log's norm.
    """
    if not len(log):
        return np.full(len(radii), math.nan)
    certified = np.where(log.correct, log.radius, -1.0)
    shares: Floats = (certified[:, None] >= np.asarray(radii, float)).mean(0)
    return shares


def assured_accuracy(log: Log, radii: Sequence[float], alpha: float, rho: float = 0.001) -> Floats:
    """Returns a lower bound of the true certified accuracy that holds with probability 1 - rho,
    given that each row is wrong with probability alpha at most.

    accuracy - alpha - sqrt(alpha (1 - alpha) ln(1/rho) / N) - ln(1/rho) / (3 N), at least 0 (Cohen
    et al., 2019, appendix).
    """
    spread = math.log(1 / rho) / max(len(log), 1)
    lost = alpha + math.sqrt(alpha * (1 - alpha) * spread) + spread / 3
    return np.maximum(certified_accuracy(log, radii) - lost, 0.0)


def abstention(log: Log) -> float:
    """Returns the share of rows that abstain; NaN for no rows."""
    return float((log.predict < 0).mean()) if len(log) else math.nan


def acr(log: Log, resamples: int = 2000, seed: int = 0) -> Acr:
    """Returns the average certified radius with a bootstrap interval over the examples."""
    values = log.radius * log.correct
    ends = [math.nan, math.nan]
    if len(values):
        generator = np.random.default_rng(seed)
        means = [generator.choice(values, len(values)).mean() for _ in range(resamples)]
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
    )


def _noise(protocol: Protocol) -> str:
    amount = (
        f"keep = {protocol.keep}" if protocol.noise == "ablation" else f"sigma = {protocol.sigma:g}"
    )
    return f"{protocol.noise} noise, {amount}, {protocol.norm}; {protocol.split} set"


def budget(log: Log) -> Budget | None:
    """Returns the n and alpha that made a log: of its header, else the one whose ladder of radii
    (Clopper-Pearson, Gaussian noise, fixed n) holds the most of its rows.

    Among equals the one with the lowest top rung: the fewest draws. None where no ladder holds 98 %
    of at least ten radii.
    """
    if log.protocol:
        p = log.protocol
        return Budget(n=p.n, alpha=p.alpha, sigma=p.sigma, share=1.0, inferred=False)
    if int((log.predict >= 0).sum()) < 10:
        return None
    tried = [
        (share, -gaussian_radius(alpha ** (1 / n), sigma), n, alpha, sigma)
        for sigma in ((log.sigma,) if log.sigma else SIGMAS)
        for n in SAMPLES
        for alpha in ALPHAS
        if (share := float(on_ladder(log, n, alpha, sigma).mean())) >= 0.98
    ]
    if not tried:
        return None
    share, _, n, alpha, sigma = max(tried)
    fits = sorted(
        ((one, held) for held, _, draws, one, noise in tried if (draws, noise) == (n, sigma)),
        reverse=True,
    )
    return Budget(n=n, alpha=alpha, sigma=sigma, share=share, inferred=True, alphas=tuple(fits))


def on_ladder(log: Log, n: int, alpha: float, sigma: float) -> NDArray[np.bool_]:
    """Returns for each row that does not abstain whether some count k of n gives its radius, to the
    digits that were printed: bool (M,)."""
    found = log.predict >= 0
    low, high = (
        ndtr((log.radius[found] + sign * (log.rounding[found] + 1e-9)) / sigma) for sign in (-1, 1)
    )
    k = (
        binom.isf(alpha, n, np.maximum(low, 0.5)) + 1
    )  # the least count with a bound of at least low
    bound = clopper_pearson_lower(np.minimum(k, n), n, alpha)
    held: NDArray[np.bool_] = (k <= n) & (bound <= high) & (bound >= low)
    return held


def votes(log: Log, made: Budget) -> Floats:
    """Returns the share of draws that voted for each row's class, recovered from its radius, (N,);
    1/2 on abstention, where it is not known.

    Args:
        log: a log of Gaussian noise with L2 radii.
        made: its n, alpha and sigma.
    """
    p = np.maximum(ndtr((log.radius - log.rounding) / made.sigma), 0.5)
    k = np.minimum(binom.isf(made.alpha, made.n, p) + 1, made.n)
    return np.where(log.predict >= 0, k / made.n, 0.5)

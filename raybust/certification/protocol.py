"""The protocol of randomized smoothing: everything that determines the rows of a log, stored as its
header.

The protocol, the network and the data reproduce the rows. The header has digests of what it cannot
contain: weights, images, labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from raybust import devices
from raybust.certification.header import Header
from raybust.certification.noise import BLOCK, NORMS, NoiseName, Norm, Smoothing
from raybust.certification.schedule import Schedule, ScheduleName
from raybust.config.assess import Certify
from raybust.errors import RequestError

_VALUES, _MOST = 3_000_000, 10_000
"""Default noisy images per forward pass on a GPU: of so many values together, but no more images
(our choice, not measured: 900 of CIFAR-10)."""


@dataclass(frozen=True, kw_only=True)
class Protocol(Header):
    """One protocol of randomized smoothing; see `Header` for the fields that all protocols have.

    Attributes:
        noise: smoothing distribution; see `Smoothing`.
        sigma: standard deviation per coordinate, pixels in [0, 1].
        keep: pixels that `ablation` keeps, 0 for other noise.
        n0: draws that choose the class.
        n: maximum draws that bound its probability.
        alpha: probability that a certificate is wrong.
        schedule: `fixed`, `looks` or `sequence`.
        seed: seed of the noise.
        batch: noisy images per forward pass, a multiple of 100.
        compile: whether the network is compiled with torch.compile.
    """

    KIND = "smoothing"
    NUMBERS = (
        "norm", "noise", "sigma", "keep", "split", "n0", "n", "alpha", "schedule", "targets",
        "precision", "compile",
    )  # fmt: skip

    noise: NoiseName = "gaussian"
    norm: Norm = "l2"
    sigma: float
    keep: int = 0
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    schedule: ScheduleName = "fixed"
    seed: int = 0
    batch: int = BLOCK
    compile: bool = False

    def __post_init__(self) -> None:
        if self.batch < BLOCK or self.batch % BLOCK:
            raise RequestError(f"certify.batch: got {self.batch}, expected a multiple of {BLOCK}")
        if self.n0 < 1:
            raise RequestError(f"certify.n0: got {self.n0}, expected >= 1")
        _ = self.smoothing, self.rule  # both validate themselves

    @property
    def amount(self) -> str:
        """How much noise, in words: its sigma, or the pixels that ablation keeps."""
        return f"keep = {self.keep}" if self.noise == "ablation" else f"sigma = {self.sigma:g}"

    @property
    def how(self) -> str:
        """The noise, in words."""
        return f"{self.noise} noise, {self.amount}, {self.norm}"

    @property
    def cost(self) -> str:
        """Draws and level, in words."""
        return f"n = {self.n:,}, alpha = {self.alpha:g}"

    @property
    def largest(self) -> float:
        """The radius of n equal votes."""
        last = len(self.rule.times) - 1
        return self.smoothing.radius(self.rule.lower(self.n, self.n, last))

    @property
    def stem(self) -> str:
        """Split, noise, norm, n and radii."""
        noise = f"keep{self.keep}" if self.noise == "ablation" else f"sigma{self.sigma:g}"
        parts = [self.split, self.noise, self.norm, noise, f"n{self.n}"]
        if self.targets:
            parts.append("r" + "-".join(f"{radius:g}" for radius in self.targets))
        return "_".join(parts)

    @cached_property
    def smoothing(self) -> Smoothing:
        """The smoothing distribution."""
        return Smoothing(
            noise=self.noise, norm=self.norm, sigma=self.sigma, keep=self.keep, shape=self.shape
        )

    @cached_property
    def rule(self) -> Schedule:
        """The schedule, with the targets as probabilities."""
        return Schedule(
            name=self.schedule,
            n=self.n,
            alpha=self.alpha,
            targets=tuple(self.smoothing.probability(radius) for radius in self.targets),
        )


def default_batch(shape: Sequence[int], device: str) -> int:
    """Returns the default number of noisy images per forward pass, a multiple of `BLOCK`: one block
    on a CPU, whose caches hold few images (measured); on a GPU more, the smaller they are.

    Args:
        shape: (C, H, W) of an image.
        device: device type.
    """
    if device == devices.CPU:
        return BLOCK
    return BLOCK * max(1, min(_MOST, _VALUES // math.prod(shape)) // BLOCK)


def make_protocol(
    config: Certify,
    *,
    sigma: float,
    shape: tuple[int, int, int],
    device: str,
    dataset: str,
) -> Protocol:
    """Returns the protocol for section `certify` of the configuration.

    Args:
        config: the section; values of None are filled in here.
        sigma: standard deviation of the noise unless `config.sigma` is set.
        shape: (C, H, W) of an image.
        device: device type.
        dataset: name of the dataset.

    Returns:
        The protocol, not yet bound to a network and images: see `Protocol.about`.

    Raises:
        RequestError: a norm the noise cannot certify, an n that certifies nothing, a precision
            the device does not support, a bound in place of smoothing.
    """
    if config.bound != "smoothing":
        raise RequestError(
            f"certify.bound: got {config.bound}, but this answers by randomized smoothing; set"
            " certify.bound=smoothing"
        )
    if config.precision == "tf32" and device == devices.CPU:
        raise RequestError(
            "certify.precision: got tf32, which needs a GPU; expected float32 or bf16 on a CPU"
        )
    targets = config.targets()
    schedule = config.schedule
    return Protocol(
        noise=config.noise,
        norm=config.norm or NORMS[config.noise][0],
        sigma=config.sigma or sigma,
        keep=config.keep if config.noise == "ablation" else 0,
        shape=shape,
        n0=config.n0,
        n=config.n,
        alpha=config.alpha,
        schedule=("looks" if targets else "fixed") if schedule == "auto" else schedule,
        targets=() if schedule == "fixed" else targets,
        seed=config.seed,
        batch=config.batch or default_batch(shape, device),
        dataset=dataset,
        split=config.split,
        skip=config.skip,
        examples=config.examples,
        precision=config.precision or devices.float32(device),
        compile=config.compile,
        device=device,
    )


def sigma_warning(sigma: float, trained: float | None) -> str | None:
    """Returns a warning with both sigmas if they differ, else None.

    Args:
        sigma: the network is certified at.
        trained: the network was trained at; None without noise.
    """
    if trained is not None and abs(sigma - trained) <= 1e-9 * sigma:
        return None
    known = "without noise" if trained is None else f"for sigma {trained!r}"
    return (
        f"certifying at sigma {sigma!r} a network trained {known}: certificates are valid, but "
        "smaller than those of a network trained for it"
    )

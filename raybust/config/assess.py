"""Sections for evaluating a network: certificates, attacks, corruptions.

Each holds the whole protocol of a result: apart from it, only the weights and the data affect the
numbers. `certify`, `evaluate` and `corruptions` may change after training.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from raybust.config.options import Section, option


def _cadence(every: float) -> list[str]:
    """Returns the problems with a measurement interval."""
    if every <= 1 or every == int(every):
        return []
    return [f"every: got {every}, expected whole epochs, or a fraction of the budget below 1"]


@dataclass(frozen=True, kw_only=True)
class FastCertify(Section):
    """The cheap per-epoch certificate, `certified_fast/*`: for search, never for publication."""

    every: float = option(
        0.05,
        "Interval in epochs, or as a fraction of the training budget if below 1; the last epoch is "
        "always certified. 0: never.",
        ge=0,
    )
    examples: int = option(200, "Validation images to certify.", ge=1)
    n0: int = option(100, "Noise samples that select the class.", ge=1)
    n: int = option(1000, "Noise samples that bound its probability.", ge=1)
    alpha: float = option(0.001, "Failure probability of a certificate.", gt=0, lt=0.5)
    radii: tuple[float, ...] = option(
        (0.0, 0.25, 0.5, 0.75, 1.0),
        "Radii reported as `certified_fast/accuracy_at/*`.",
        ge=0,
        unit="L2, pixels in [0, 1]",
    )
    moment: bool = option(
        False,
        "Also report `moment_acr`, an estimate from propagated covariances in one pass per image, "
        "for ranking trials; it certifies nothing.",
    )

    def problems(self) -> list[str]:
        """Adds checks beyond the field domains."""
        return super().problems() + _cadence(self.every)


@dataclass(frozen=True, kw_only=True)
class FastAttack(Section):
    """The cheap per-epoch attack, `attacked_fast/robust_accuracy`: PGD started at the image, for
    search, never for publication."""

    every: float = option(0, "Like `certified_fast.every`.", ge=0)
    examples: int = option(200, "Validation images to attack.", ge=1)
    norm: Literal["linf", "l2", "l1"] = option("linf", "Norm of the ball.")
    eps: float = option(8 / 255, "Radius of the ball.", gt=0, unit="pixels in [0, 1]")
    steps: int = option(10, "PGD steps, each of size 2.5 eps / steps.", ge=1)

    def problems(self) -> list[str]:
        """Adds checks beyond the field domains."""
        return super().problems() + _cadence(self.every)


@dataclass(frozen=True, kw_only=True)
class FastBounds(Section):
    """The deterministic per-epoch certificate in Linf, `certified_linf_fast/accuracy_EPS`: sound
    bounds of the network itself, without noise or alpha, on the whole validation part."""

    every: float = option(0, "Like `certified_fast.every`.", ge=0)
    examples: int | None = option(
        None, "Maximum number of validation images; default: all of them.", ge=1
    )
    eps: tuple[float, ...] = option(
        (8 / 255,), "Radii of the balls, Linf.", ge=0, le=1, unit="pixels in [0, 1]"
    )
    bound: Literal["ibp", "crown", "best"] = option(
        "ibp",
        "Intervals, backward linear bounds (which cost a pass per class more),"
        " or the better of both for each margin.",
    )

    def problems(self) -> list[str]:
        """Adds checks beyond the field domains."""
        found = super().problems() + _cadence(self.every)
        if not self.eps:
            found.append("eps: got [], expected at least one")
        if len({f"{one:g}" for one in self.eps}) < len(self.eps):
            found.append(f"eps: got {list(self.eps)}, expected radii whose names differ")
        return found


RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
RADII_LINF = (0.0, 2 / 255, 4 / 255, 8 / 255)
"""Default radii in tables."""
OF_NOISE = (
    "sigma", "n0", "n", "alpha", "batch", "seed", "schedule", "noise", "norm", "keep", "precision",
    "compile",
)  # fmt: skip
"""Fields of `Certify` that are about randomized smoothing alone."""


@dataclass(frozen=True, kw_only=True)
class Certify(Section):
    """The protocol of a certification log: randomized smoothing (Cohen et al., 2019), or sound
    bounds of the network in Linf."""

    bound: Literal["smoothing", "ibp", "crown", "best"] = option(
        "smoothing",
        "What proves the radii: `smoothing` by noise; or in Linf, for the network itself, without "
        "noise or alpha: `ibp` by intervals, `crown` by backward linear bounds (which cost a pass "
        "per class more), `best` by the better of both for each margin.",
    )
    sigma: float | None = option(
        None,
        "Standard deviation of the noise; default: the method's.",
        gt=0,
        unit="pixels in [0, 1]",
    )
    n0: int = option(100, "Noise samples that select the class.", ge=1)
    n: int = option(100_000, "Noise samples that bound its probability.", ge=1)
    alpha: float = option(0.001, "Failure probability of a certificate.", gt=0, lt=0.5)
    batch: int | None = option(
        None,
        "Noisy images per forward pass, a multiple of 100; part of the protocol. Default: 100 on a "
        "CPU; on a GPU as many as hold three million values, up to 10,000.",
        ge=1,
        unit="images",
    )
    split: Literal["test", "validation", "train"] = option("test", "Data split to certify.")
    examples: int | None = option(None, "Maximum number of examples; default: all.", ge=1)
    skip: int = option(1, "Take every skip-th example.", ge=1)
    seed: int = option(0, "Seed of the noise.", ge=0)
    intent: Literal["acr", "radii"] = option(
        "acr",
        "Purpose of the certificates: `acr` takes all n samples per example, or with a bound finds "
        "its radius to 2^-16; `radii` stops an example once each of `radii` is decided.",
    )
    radius: float | None = option(
        None,
        "The only radius of interest; cheapest, as an example stops once it is decided.",
        ge=0,
    )
    radii: tuple[float, ...] | None = option(
        None,
        "Radii in the table of certified accuracy; default: 0, 0.25, 0.5, 0.75, 1, and in linf 0,"
        " 2/255, 4/255, 8/255.",
        ge=0,
        unit="pixels in [0, 1], in `norm`",
    )
    schedule: Literal["auto", "fixed", "looks", "sequence"] = option(
        "auto",
        "When to test: `fixed` once, after n samples; `looks` at 100, 300, 1000 ..., with alpha "
        "spent over the looks; `sequence` by a confidence sequence (one radius). `auto`: `fixed` "
        "for `acr`, else `looks`.",
    )
    noise: Literal["gaussian", "uniform", "ablation"] = option(
        "gaussian", "Smoothing noise; `ablation` keeps `keep` pixels and grays out the rest."
    )
    norm: Literal["l2", "linf", "l1", "l0"] | None = option(
        None, "Norm of the radius: l2 or linf for gaussian, l1 for uniform, l0 for ablation noise."
    )
    keep: int = option(50, "Pixels kept by `ablation`.", ge=1, unit="pixels")
    precision: Literal["float32", "tf32", "bf16"] | None = option(
        None,
        "Arithmetic of the network, part of the certified function; tf32 needs a GPU, where it is"
        " the default; float32 on a CPU.",
    )
    compile: bool = option(False, "Whether to torch.compile the network.")

    def targets(self) -> tuple[float, ...]:
        """Returns the radii that decide when an example is done; empty for all n samples."""
        if self.radius is not None:
            return (self.radius,)
        if self.intent != "radii":
            return ()
        return self.columns("linf" if self.bound != "smoothing" else self.norm)

    def columns(self, norm: str | None) -> tuple[float, ...]:
        """Returns the radii in the table of certified accuracy.

        Args:
            norm: of the table; None for the one of the noise, which is not Linf.
        """
        if self.radii is not None:
            return self.radii
        return RADII_LINF if norm == "linf" else RADII

    def problems(self) -> list[str]:
        """Adds checks across fields."""
        found = super().problems()
        if self.batch is not None and self.batch % 100:
            found.append(f"batch: got {self.batch}, expected a multiple of 100")
        if self.schedule == "sequence" and self.radius is None:
            found.append("schedule: sequence decides one radius; give `radius`")
        if self.schedule == "looks" and not self.targets():
            found.append("schedule: looks needs a target; give `radius` or intent=radii")
        return found


ATTACKS = ("fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", "autoattack")
"""Allowed values in `evaluate.attacks`."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Section):
    """Empirical accuracy, clean and under attack: the protocol of an attack table."""

    split: Literal["test", "validation", "train"] = option("test", "Data split to evaluate.")
    batch: int = option(500, "Images per forward pass for clean accuracy.", ge=1, unit="images")
    examples: int | None = option(None, "Maximum number of examples; default: all.", ge=1)
    attacks: tuple[str, ...] = option(
        ("fgsm", "pgd", "apgd-ce", "apgd-t", "fab-t", "square"),
        f"Attacks in order: any of {', '.join(ATTACKS)} (pyautoattack's standard suite), or none.",
    )
    norm: Literal["linf", "l2", "l1"] = option("linf", "Norm of the attack ball.")
    eps: tuple[float, ...] = option(
        (2 / 255, 4 / 255, 8 / 255), "Attack radii.", gt=0, unit="pixels in [0, 1], in `norm`"
    )
    every: bool = option(
        False, "Whether every attack runs on every example, not only on those still unbroken."
    )
    pgd_steps: int = option(20, "Steps of `pgd`.", ge=1)
    steps: int = option(100, "Steps per run of the apgd attacks.", ge=1)
    restarts: int | None = option(None, "Runs of pgd and apgd; default: 1 (5 in l1).", ge=1)
    targets: int | None = option(
        None, "Target classes of apgd-t, and of fab-t up to 5; default: 9 (5 in l1).", ge=1
    )
    queries: int = option(5000, "Queries of `square`.", ge=1)
    rounds: int = option(
        3,
        "Maximum extra rounds of fab-t, apgd and square from new starts, on shards where fab-t or "
        "square broke images that apgd had not; they end once a round breaks nothing.",
        ge=0,
    )
    eot: int = option(
        1,
        "Passes of a random network that are averaged, in attacks and in what they are scored on: "
        "figures are then of the average, not of one pass.",
        ge=1,
    )
    sanity: bool = option(
        True, "Whether pgd also runs at the largest radius, which nothing must survive."
    )
    shard: int | None = option(
        None,
        "Examples attacked together, part of the protocol; 100 on a CPU, 500 on a GPU.",
        ge=1,
        unit="images",
    )
    seed: int = option(0, "Seed of the attacks.", ge=0)

    def problems(self) -> list[str]:
        """Adds checks across fields."""
        found = super().problems()
        if not set(self.attacks) <= set(ATTACKS) or len(set(self.attacks)) < len(self.attacks):
            allowed = ", ".join(ATTACKS)
            found.append(f"attacks: got {list(self.attacks)}, expected each once, from {allowed}")
        if not self.eps:
            found.append("eps: got [], expected at least one")
        near = [a for a, b in pairwise(sorted(self.eps)) if b - a <= _ALIKE]
        if near:
            found.append(f"eps: got {near[0]:g} twice, up to {_ALIKE:g}; expected each radius once")
        return found


_ALIKE = 1e-6
"""Radii that are nearer read alike: files and metrics are named after them."""
SETS = ("C1", "C2", "C3", "iCE")
"""Allowed values in `corruptions.sets`."""


@dataclass(frozen=True, kw_only=True)
class Corruptions(Section):
    """Accuracy under corruption (Siedel et al., 2024), which `raybust evaluate` measures instead of
    attacks if `sets`, `rows`, `folder` or `generated` is set."""

    sets: tuple[str, ...] = option((), f"Sets of Lp noises, from {', '.join(SETS)}.")
    rows: tuple[tuple[float, float], ...] = option(
        (), "Additional Lp noises (p, eps), for instance [[.inf, 0.02], [2, 1.0], [0, 0.01]]."
    )
    impulse: Literal["uniform", "binary"] = option(
        "uniform", "Pixel values for p = 0: uniform in [0, 1), or 0 and 1."
    )
    folder: str | None = option(
        None, "Folder of a published corrupted test set: CIFAR-10-C, CIFAR-100-C, ImageNet-C."
    )
    generated: bool = option(
        False, "Whether to generate corruptions on the fly (extra `corruptions`); not CIFAR-C."
    )
    names: tuple[str, ...] = option((), "Corruptions of `folder` or `generated`; empty: all.")
    split: Literal["test", "validation", "train"] = option("test", "Data split to corrupt.")
    examples: int | None = option(None, "Maximum number of examples; default: all.", ge=1)
    batch: int = option(500, "Images per forward pass.", ge=1, unit="images")
    seed: int = option(0, "Seed of noise and corruptions.", ge=0)

    @property
    def asked(self) -> bool:
        """Whether any corruption is set."""
        return bool(self.sets or self.rows or self.folder or self.generated)

    def problems(self) -> list[str]:
        """Adds checks across fields."""
        found = super().problems()
        if not set(self.sets) <= set(SETS):
            found.append(f"sets: got {list(self.sets)}, expected names from {', '.join(SETS)}")
        if self.names and not (self.folder or self.generated):
            found.append(
                f"names: got {list(self.names)}, which select from corruptions.folder or"
                " corruptions.generated; set one of them too"
            )
        for p, eps in self.rows:
            if not (p >= 0 and 0 <= eps < float("inf") and (p > 0 or eps <= 1)):
                found.append(
                    f"rows: got [{p}, {eps}], expected p >= 0 and a finite eps >= 0, at most 1 if"
                    " p = 0"
                )
        return found

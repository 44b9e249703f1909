"""Sections for what is done to a trained network: certificates, attacks, corruptions.

Each is the protocol of a result: what is not here does not change a number, but for the weights
and the data. All may be set again after training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raybust.config.options import Section, option


def _cadence(every: float) -> list[str]:
    """Returns what is wrong with the distance of two measurements."""
    if every <= 1 or every == int(every):
        return []
    return [f"every: got {every}, expected whole epochs, or a share of the budget below 1"]


@dataclass(frozen=True, kw_only=True)
class FastCertify(Section):
    """The cheap certificate of each epoch, `certified_fast/*`: for search, never for
    publication."""

    every: float = option(
        0.05,
        "Epochs between two of them, or a share of the training's budget where it is below 1; the "
        "last epoch always has one. 0: never.",
        ge=0,
    )
    examples: int = option(200, "Validation images certified.", ge=1)
    n0: int = option(100, "Noisy draws that choose the class.", ge=1)
    n: int = option(1000, "Noisy draws that bound its probability.", ge=1)
    alpha: float = option(0.001, "Probability with which a certificate may be wrong.", gt=0, lt=0.5)
    radii: tuple[float, ...] = option(
        (0.0, 0.25, 0.5, 0.75, 1.0),
        "Radii of `certified_fast/accuracy_at/*`.",
        ge=0,
        unit="L2, pixels in [0, 1]",
    )
    moment: bool = option(
        False,
        "Also `moment_acr`, an estimate from propagated covariances, one pass an image, to rank "
        "trials by; it certifies nothing.",
    )

    def problems(self) -> list[str]:
        """Rules beyond one field's domain."""
        return super().problems() + _cadence(self.every)


@dataclass(frozen=True, kw_only=True)
class FastAttack(Section):
    """The cheap attack of an epoch, `attacked_fast/robust_accuracy`: PGD from the image, for
    search, never for publication."""

    every: float = option(0, "As `certified_fast.every`.", ge=0)
    examples: int = option(200, "Validation images attacked.", ge=1)
    norm: Literal["linf", "l2", "l1"] = option("linf", "Norm of the ball.")
    eps: float = option(8 / 255, "Its radius.", gt=0, unit="norm's, pixels in [0, 1]")
    steps: int = option(10, "Steps, each of 2.5 eps / steps.", ge=1)

    def problems(self) -> list[str]:
        """Rules beyond one field's domain."""
        return super().problems() + _cadence(self.every)


@dataclass(frozen=True, kw_only=True)
class Certify(Section):
    """Certification by randomized smoothing (Cohen et al., 2019): the protocol of a log."""

    sigma: float | None = option(
        None,
        "Standard deviation of the noise; the method's own where not given.",
        gt=0,
        unit="pixels in [0, 1]",
    )
    n0: int = option(100, "Noisy draws that choose the class.", ge=1)
    n: int = option(100_000, "Noisy draws that bound its probability.", ge=1)
    alpha: float = option(0.001, "Probability with which a certificate may be wrong.", gt=0, lt=0.5)
    batch: int | None = option(
        None,
        "Noisy images per forward pass, a multiple of 100; part of the protocol. 100 on a CPU, "
        "1000 on a GPU where not given.",
        ge=1,
        unit="images",
    )
    split: Literal["test", "validation", "train"] = option("test", "Which part of the data.")
    examples: int | None = option(None, "At most so many examples; all where not given.", ge=1)
    skip: int = option(1, "Every skip-th example.", ge=1)
    seed: int = option(0, "Seed of the noise.", ge=0)
    intent: Literal["acr", "radii"] = option(
        "acr",
        "What the certificates are for: `acr` takes all n draws for every radius, `radii` stops an "
        "example when each of `radii` is decided.",
    )
    radius: float | None = option(
        None,
        "The one radius of interest, the cheapest: an example stops when it is decided.",
        ge=0,
    )
    radii: tuple[float, ...] = option(
        (0.0, 0.25, 0.5, 0.75, 1.0),
        "Radii of the table of certified accuracy.",
        ge=0,
        unit="norm's, pixels in [0, 1]",
    )
    schedule: Literal["auto", "fixed", "looks", "sequence"] = option(
        "auto",
        "When to look: once after n draws, at 100, 300, 1000 ... with alpha spent over the looks, "
        "or by a confidence sequence (one radius). `auto`: `fixed` for `acr`, else `looks`.",
    )
    noise: Literal["gaussian", "uniform", "ablation"] = option(
        "gaussian", "Smoothing noise; `ablation` keeps `keep` pixels and grays the others."
    )
    norm: Literal["l2", "linf", "l1", "l0"] | None = option(
        None, "Norm of the radius: l2 or linf of gaussian, l1 of uniform, l0 of ablation noise."
    )
    keep: int = option(50, "Pixels that `ablation` keeps.", ge=1, unit="pixels")
    precision: Literal["float32", "tf32", "bf16"] = option(
        "float32", "Arithmetic of the network, part of what is certified; tf32 on a GPU only."
    )
    compile: bool = option(False, "Whether torch.compile compiles the network.")

    def targets(self) -> tuple[float, ...]:
        """Returns the radii that an example is drawn for; empty where all n draws are wanted."""
        if self.radius is not None:
            return (self.radius,)
        return self.radii if self.intent == "radii" else ()

    def problems(self) -> list[str]:
        """Rules across fields, beside the fields' own."""
        found = super().problems()
        if self.batch is not None and self.batch % 100:
            found.append(f"batch: got {self.batch}, expected a multiple of 100")
        if self.schedule == "sequence" and self.radius is None:
            found.append("schedule: sequence decides one radius; give `radius`")
        if self.schedule == "looks" and not self.targets():
            found.append("schedule: looks needs something to decide; give `radius` or intent=radii")
        return found


ATTACKS = ("fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", "autoattack")
"""What `evaluate.attacks` may name."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Section):
    """Accuracy without a proof: clean, and under attacks; the protocol of a table of attacks."""

    split: Literal["test", "validation", "train"] = option("test", "Which part of the data.")
    batch: int = option(500, "Images per forward pass of clean accuracy.", ge=1, unit="images")
    examples: int | None = option(None, "At most so many examples; all where not given.", ge=1)
    attacks: tuple[str, ...] = option(
        ("fgsm", "pgd", "apgd-ce", "apgd-t", "fab-t", "square"),
        f"Attacks, in order: of {', '.join(ATTACKS)} (pyautoattack's standard suite); none: clean.",
    )
    norm: Literal["linf", "l2", "l1"] = option("linf", "Norm of the attacks' ball.")
    eps: tuple[float, ...] = option(
        (2 / 255, 4 / 255, 8 / 255), "Radii.", gt=0, unit="norm's, pixels in [0, 1]"
    )
    every: bool = option(
        False, "Whether every attack meets every example; else those that nothing broke before."
    )
    pgd_steps: int = option(20, "Steps of pgd.", ge=1)
    steps: int = option(100, "Steps of each run of the apgd attacks.", ge=1)
    restarts: int | None = option(None, "Runs of pgd and apgd; 1 (5 in l1) if not given.", ge=1)
    targets: int | None = option(
        None, "Classes of apgd-t, and of fab-t up to 5; 9 (5 in l1) if not given.", ge=1
    )
    queries: int = option(5000, "Queries of square.", ge=1)
    rounds: int = option(
        3,
        "Most further rounds of fab-t, apgd and square from other starts, on a shard of which "
        "fab-t or square broke images that apgd had not; they end when a round breaks nothing.",
        ge=0,
    )
    eot: int = option(1, "Forward passes averaged, for a network that draws at random.", ge=1)
    sanity: bool = option(
        True, "Whether pgd also takes the largest radius, at which nothing must survive."
    )
    shard: int = option(100, "Examples attacked together, part of the protocol.", ge=1)
    seed: int = option(0, "Seed of the attacks.", ge=0)

    def problems(self) -> list[str]:
        """Rules across fields, beside the fields' own."""
        found = super().problems()
        if not set(self.attacks) <= set(ATTACKS) or len(set(self.attacks)) < len(self.attacks):
            allowed = ", ".join(ATTACKS)
            found.append(f"attacks: got {list(self.attacks)}, expected each once of {allowed}")
        if not self.eps or (self.norm == "linf" and max(self.eps) > 1):
            found.append(f"eps: got {list(self.eps)}, expected one or more, <= 1 for linf")
        return found


SETS = ("C1", "C2", "C3", "iCE")
"""What `corruptions.sets` may name."""


@dataclass(frozen=True, kw_only=True)
class Corruptions(Section):
    """Accuracy under corruption (Siedel et al., 2024): `raybust evaluate` measures it in place of
    attacks where `sets`, `rows`, `folder` or `generated` is given."""

    sets: tuple[str, ...] = option((), f"Sets of Lp noises: of {', '.join(SETS)}.")
    rows: tuple[tuple[float, float], ...] = option(
        (), "Further Lp noises (p, eps), for instance [[.inf, 0.02], [2, 1.0], [0, 0.01]]."
    )
    impulse: Literal["uniform", "binary"] = option(
        "uniform", "Values of p = 0: uniform in [0, 1), or 0 and 1."
    )
    folder: str | None = option(
        None, "Folder of a published corrupted test set: CIFAR-10-C, CIFAR-100-C, ImageNet-C."
    )
    generated: bool = option(
        False, "Whether corruptions are made on the fly (extra `corruptions`); not CIFAR-C."
    )
    names: tuple[str, ...] = option((), "Corruptions of `folder` and `generated`; none: all.")
    split: Literal["test", "validation", "train"] = option("test", "Which part of the data.")
    examples: int | None = option(None, "At most so many examples; all where not given.", ge=1)
    batch: int = option(500, "Images per forward pass.", ge=1, unit="images")
    seed: int = option(0, "Seed of noise and corruptions.", ge=0)

    @property
    def asked(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.sets or self.rows or self.folder or self.generated)

    def problems(self) -> list[str]:
        """Rules across fields, beside the fields' own."""
        found = super().problems()
        if not set(self.sets) <= set(SETS):
            found.append(f"sets: got {list(self.sets)}, expected some of {', '.join(SETS)}")
        if self.names and not (self.folder or self.generated):
            found.append(
                f"names: got {list(self.names)}, which are corruptions of corruptions.folder or"
                " corruptions.generated; give one of these too"
            )
        for p, eps in self.rows:
            if not (p >= 0 and 0 <= eps < float("inf") and (p > 0 or eps <= 1)):
                found.append(
                    f"rows: got [{p}, {eps}], expected p >= 0 and a finite eps >= 0, for p = 0 a"
                    " share <= 1"
                )
        return found

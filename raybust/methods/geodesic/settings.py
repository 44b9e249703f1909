"""The settings of method `geodesic`, and what follows from them alone: constraints, networks to
load, images for the setup, epochs between rounds.

What a field's text calls the paper is Zhu et al. (2023), see `raybust.methods.geodesic`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raybust.config.options import option
from raybust.methods.base import Method
from raybust.methods.standard import Standard


@dataclass(frozen=True, kw_only=True)
class Settings(Method):
    """Fields of `Geodesic`.

    Settings for controls: pairing=random, pairing=kmixup, location=random, and for the latent
    space reconstructions alone: location=fixed at=0 penalty=0.
    """

    base: Method = field(default_factory=Standard)
    space: Literal["pixel", "feature_cost", "latent"] = option(
        "pixel",
        "Space for coupling and mixing images: pixels; pixels with feature distances as the cost, "
        "which is no geodesic; or autoencoder codes, decoded.",
    )
    embedding: str | None = option(
        None,
        "Run, checkpoint folder or weights file of the frozen network whose penultimate features "
        "`feature_cost` uses; defaults to the network's own features, at the cost of a pass.",
    )
    latent: int = option(128, "Dimension of the latent space.", ge=1)
    beta: float = option(
        0.0,
        "Weight of the divergence of codes from the normal distribution, against an image's squared"
        " error; makes the autoencoder variational, as in the paper. 0 for a plain one.",
        ge=0,
    )
    latent_epochs: int = option(
        20, "Epochs of autoencoder training, which precedes the first step.", ge=1
    )
    latent_images: int = option(10_000, "Maximum training images for the autoencoder.", ge=1)
    pairing: Literal["ot", "sinkhorn", "random", "kmixup"] = option(
        "ot",
        "How to pair: classes in a random cycle by optimal transport; by the projection of an "
        "entropic plan, as in the paper; the same classes at random; or halves of the batch.",
    )
    entropy: float = option(0.01, "Entropy of `sinkhorn`, in squared distances.", gt=0)
    location: Literal["grid", "ascent", "random", "fixed"] = option(
        "grid", "Location on a geodesic: worst of a grid, gradient ascent, uniform, or `at`."
    )
    points: int = option(5, "Grid points; each costs a forward pass.", ge=1)
    steps: int = option(
        3, "Ascent steps, of 1/4, 1/8, ...; each costs a pass and its gradient.", ge=1
    )
    at: float = option(0.5, "The location for `fixed`.", ge=0, le=1)
    label: Literal["soft", "nearest", "source"] = option(
        "soft", "Label of a synthetic image: mixed like the image, of the nearer end, or of x."
    )
    cap: float = option(
        0.5, "Largest distance from the end that gives the label, for all but soft.", gt=0, le=0.5
    )
    weight: float = option(1.0, "Weight of the synthetic images.", ge=0)
    synthetic: Literal["plain", "base"] = option(
        "plain",
        "Loss on synthetic images: cross entropy with the base's smoothing noise, or the base's, "
        "attack included (macer and covariance then use a soft label's top class for the radius).",
    )
    statistics: Literal["all", "base"] = option(
        "all",
        "Passes that update batch norm's running statistics: all, or only the base's, as certified;"
        " in training each pass uses its own batch statistics.",
    )
    penalty: float = option(0.1, "Weight of the variation along the geodesics.", ge=0)
    estimate: Literal["differences", "gradient", "printed"] = option(
        "differences",
        "Estimator of the variation: differences on a jittered grid; the slope at one uniform "
        "location, which needs a second derivative; or that slope without the label's motion.",
    )
    performance: Literal["loss", "probabilities"] = option(
        "loss",
        "Quantity to smooth: cross entropy to the mixed label, or the class probabilities, whose "
        "variation is at least 2 for a perfect classifier.",
    )
    segments: int = option(4, "Differences on the grid; costs one more pass than that.", ge=1)
    power: int = option(1, "Power of the slope: 1 total variation, 2 squared.", ge=1, le=2)
    warmup: float = option(0.05, "Fraction of the run that trains the base alone.", ge=0, lt=1)
    ramp: float = option(
        0.1, "Fraction of the run over which the penalty's weight rises from 0.", ge=0, le=1
    )
    refresh: int = option(
        0,
        "Epochs after which synthetic images are found anew and stored, from pairs of two classes "
        "drawn apart from the batches; 0 finds them in each step, in its batch.",
        ge=0,
    )
    copies: int = option(
        1, "Stored synthetic images per training image, each as heavy as a step's own.", ge=1
    )
    pair_images: int = option(
        128, "Maximum images of two classes together that a stored geodesic joins.", ge=2
    )
    searched: int | None = option(
        None, "Maximum images of a stored geodesic on which its location is searched.", ge=1
    )
    least: int = option(
        4,
        "Minimum images of a class in a batch; smaller classes are paired as in `kmixup`, across "
        "classes where possible, and counted in `geodesic/fallbacks`.",
        ge=1,
    )
    most: int | None = option(
        None, "Maximum images of a class used in a step; all by default.", ge=1
    )

    def problems(self) -> list[str]:
        """Adds constraints across fields."""
        found = super().problems()
        if self.estimate != "differences" and self.performance != "loss":
            got = repr(self.estimate)
            found.append(f"estimate: got {got}, expected 'differences' for the probabilities")
        if self.most is not None and self.most < self.least:
            found.append(f"most: got {self.most}, expected >= least, which is {self.least}")
        if self.embedding is not None and self.space != "feature_cost":
            found.append("embedding: got a network, expected none unless space is feature_cost")
        if self.refresh and not self.weight:
            found.append(f"refresh: got {self.refresh}, expected 0 where weight is 0")
        if self.refresh and self.base.round_epochs():
            found.append(
                f"refresh: got {self.refresh}, expected 0 on a base with rounds of its own"
            )
        if self.refresh and self.space == "feature_cost" and self.embedding is None:
            found.append(
                f"refresh: got {self.refresh}, expected 0 for feature_cost without an embedding"
            )
        distance = self.at if self.label == "source" else min(self.at, 1 - self.at)
        if self.location == "fixed" and self.label != "soft" and distance > self.cap:
            found.append(f"at: got {self.at:g}, {distance:g} from its label's end, expected <= cap")
        return found

    def embedded_by(self) -> str | None:
        """Returns `embedding`, else the base's network."""
        return self.embedding if self.embedding is not None else self.base.embedded_by()

    def setup_images(self) -> int:
        """Returns the larger of the autoencoder's and the base's image counts."""
        own = self.latent_images if self.space == "latent" else 0
        return max(own, self.base.setup_images())

    def round_epochs(self) -> int:
        """Returns `refresh`, else the base's."""
        return self.refresh or self.base.round_epochs()

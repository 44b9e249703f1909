"""Wasserstein-geodesic augmentation: Zhu, Qiu, Guha, Yang, Nguyen, Li and Zhao, "Interpolation for
Robust Learning: Data Augmentation on Wasserstein Geodesics" (ICML 2023, arXiv:2302.02092).

From the parts of the paper that we read: augment with the worst-case barycenter on the geodesic
between two subpopulations, with as many synthetic as real images, and make performance smooth along
it. Everything else is our choice; no default is a setting of the paper. Wraps any method.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.errors import RequestError, WorkError
from raybust.methods.base import Method, StepContext
from raybust.methods.standard import Standard
from raybust.numerics.attacks import attacked, untracked
from raybust.numerics.autoencoder import Autoencoder, train_autoencoder
from raybust.numerics.transport import (
    Curves,
    Paths,
    Space,
    between,
    climbed,
    coupled,
    decoded_accuracy,
    feature_cost,
    grid_of,
    jittered,
    latent_space,
    penultimate,
    pixel_space,
    reach,
    slope,
    variation,
    worst_of_grid,
)


class Prepared(NamedTuple):
    """Result of `setup`: number of classes, the base's prepared state, the latent autoencoder."""

    classes: int
    base: Any
    coder: Autoencoder | None = None


@dataclass(frozen=True, kw_only=True)
class Geodesic(Method):
    """loss = base(x, y) + weight CE(x_t, y_t) + penalty R, x_t = (1 - t) x + t x' on the geodesics
    between classes, t the worst location on each, R the mean over geodesics of the performance's
    variation along them. An optimal transport plan between two classes yields the pairs x, x'.

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

    def setup(self, network: nn.Module, images: Tensor, targets: Tensor) -> Prepared:
        """Returns the number of classes, the base's prepared state, and for the latent space an
        autoencoder trained on the images, seeded with torch's initial seed (the run's).

        Raises:
            RequestError: the network has no linear layer to take features from.
        """
        with attacked(network, fold=False), torch.no_grad():
            classes = network(images[:1]).shape[1]
            if self.space == "feature_cost" and self.embedding is None:
                try:
                    penultimate(network, images[:1])
                except ValueError as error:
                    raise RequestError(f"method.space: {error}; set method.embedding") from None
        coder = None
        if self.space == "latent":
            coder = train_autoencoder(
                images, size=self.latent, epochs=self.latent_epochs, seed=torch.initial_seed()
            )
        return Prepared(classes, self.base.setup(network, images, targets), coder)

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss above; see `Method.loss`. Only the base's loss during warm-up, if both
        weights are 0, or for a batch of one image.

        Metrics: `geodesic/fallbacks` (images of classes too small to pair, paired regardless of
        class or not at all), `geodesic/distance` (root mean square of x' - x); if computed,
        `geodesic/location`, `geodesic/synthetic`, `geodesic/variation`; and outside pixel space
        `geodesic/other_passes` (images through the embedding, the encoder or the decoder) and
        `geodesic/reconstruction_accuracy` (on some decoded codes of x, without noise).

        Raises:
            WorkError: images or features contain NaN or infinity.
        """
        inner = dataclasses.replace(context, prepared=context.prepared.base)
        penalty = self._penalty(context.progress)
        if context.progress < self.warmup or not (self.weight or penalty):
            _check_finite(images, images)
            return self.base.loss(network, images, targets, inner)
        probabilities = targets
        if targets.ndim == 1:
            probabilities = F.one_hot(targets, context.prepared.classes).to(images.dtype)
        space = self.spaced(network, images, context)
        _check_finite(images, space.cost)
        paths = self.paths(space.cost, probabilities.argmax(1), context)
        if not paths.pairs:
            return self.base.loss(network, images, targets, inner)
        curves = self.curves(images, probabilities, paths, context.generator, space)
        if self.space == "latent":
            key = "geodesic/reconstruction_accuracy"
            context.metrics[key] = decoded_accuracy(network, curves)
        t = None
        if self.weight:
            t = self.locate(network, curves, context.generator)[curves.pair]
            context.metrics["geodesic/location"] = t.mean()
        # Search first: its memory is freed before the base's graph is built.
        loss = self.base.loss(network, images, targets, inner)
        with untracked(network, self.statistics == "base"):
            if t is not None and self.synthetic == "base":
                separate = dataclasses.replace(inner, metrics={})
                labels = curves.labels(t, self.label)
                mixed = self.base.loss(network, curves.images(t), labels, separate)
                context.metrics["geodesic/synthetic"] = mixed.detach()
                loss, t = loss + self.weight * mixed, None
            return loss + self._added(network, curves, t, penalty, context)

    def spaced(self, network: nn.Module, images: Tensor, context: StepContext) -> Space:
        """Returns the space in which a batch is coupled and mixed; see `space`.

        Args:
            network: as in `loss`; restored afterwards.
            images: (B, C, H, W).
            context: passes through other networks are counted in its metrics.
        """
        if self.space == "pixel":
            return pixel_space(images)
        metrics, key = context.metrics, "geodesic/other_passes"

        def count(passes: int) -> None:
            metrics[key] = metrics.get(key, 0.0) + passes

        if self.space == "latent":
            return latent_space(context.prepared.coder, images, count)
        if context.embed is not None:
            count(len(images))
            return feature_cost(context.embed, images)
        with attacked(network):
            return feature_cost(partial(penultimate, network), images)

    def paths(self, cost: Tensor, labels: Tensor, context: StepContext) -> Paths:
        """Pairs the images of a batch with labels (B,) by the squared distances of the points
        `cost` (B, ...); logs the fallbacks in the context's metrics."""
        paths, fallbacks = coupled(
            cost, labels, self.pairing, context.generator,
            least=self.least, most=self.most, entropy=self.entropy,
        )  # fmt: skip
        context.metrics["geodesic/fallbacks"] = float(fallbacks)
        return paths

    def curves(
        self,
        images: Tensor,
        probabilities: Tensor,
        paths: Paths,
        generator: torch.Generator,
        space: Space | None = None,
    ) -> Curves:
        """Returns the paths as curves of images (B, C, H, W) with label probabilities (B, K), in
        pixel space by default, with noise of the base's sigma for each path."""
        noise: Tensor | float = 0.0
        sigma = self.base.noise()
        if sigma is not None:
            like = images[paths.source]
            noise = sigma * torch.empty_like(like).normal_(generator=generator)
        return between(space or pixel_space(images), probabilities, paths, noise)

    def locate(self, network: nn.Module, curves: Curves, generator: torch.Generator) -> Tensor:
        """Returns the location (pairs,) on each geodesic, detached: by the envelope theorem the
        gradient at the maximum does not need its derivative.

        Args:
            network: as in `loss`; restored afterwards.
            curves: of this batch.
            generator: draws random locations and ascent starts.
        """
        like = curves.start
        if self.location == "fixed":
            return like.new_full((curves.pairs,), self.at)
        if self.location == "grid":
            grid = grid_of(self.points, self.label, self.cap, like)
            return worst_of_grid(network, curves, grid, self.label)
        u = torch.rand(curves.pairs, generator=generator, dtype=like.dtype, device=like.device)
        if self.location == "random":
            return reach(u, self.label, self.cap)
        return climbed(network, curves, u, steps=self.steps, rule=self.label, cap=self.cap)

    def _penalty(self, progress: float) -> float:
        rise = (progress - self.warmup) / self.ramp if self.ramp else 1.0
        return self.penalty * min(1.0, max(0.0, rise))

    def _added(
        self,
        network: nn.Module,
        curves: Curves,
        t: Tensor | None,
        penalty: float,
        context: StepContext,
    ) -> Tensor:
        """Returns weight times the cross entropy at t (M,), if given, plus the penalty, both from a
        single forward pass."""
        metrics, count = context.metrics, len(curves.start)
        total = torch.zeros((), dtype=curves.start.dtype, device=curves.start.device)
        distance = (curves.end - curves.start).square().flatten(1).sum(1).mean().sqrt()
        metrics["geodesic/distance"] = distance
        grid = None
        inputs = [] if t is None else [curves.noisy(t)]
        if penalty and self.estimate == "differences":
            grid = jittered(self.segments, curves.start, context.generator)
            inputs += [curves.noisy(at) for at in grid]
        logits = list(network(torch.cat(inputs)).split(count)) if inputs else []
        if t is not None:
            mixed = F.cross_entropy(logits.pop(0), curves.labels(t, self.label))
            metrics["geodesic/synthetic"] = mixed.detach()
            total = total + self.weight * mixed
        if penalty:
            if grid is None:
                at = torch.rand((), generator=context.generator, device=total.device)
                moves = self.estimate == "gradient"
                rough = slope(network, curves, at.to(total), label=moves).abs() ** self.power
            else:
                at_grid = zip(logits, grid, strict=True)
                values = [curves.performance(u, at, self.performance) for u, at in at_grid]
                rough = variation(torch.stack(values), grid, self.power).sum(-1)
            metrics["geodesic/variation"] = rough.detach().mean()
            total = total + penalty * rough.mean()
        return total


def _check_finite(images: Tensor, points: Tensor) -> None:
    """Checks a batch and the points that are coupled, in one read from the device."""
    pixels, features = torch.stack([images.isfinite().all(), points.isfinite().all()]).tolist()
    if not pixels:
        raise WorkError("geodesic: got pixels that are NaN or infinite")
    if not features:
        raise WorkError("geodesic: got features that are NaN or infinite; lower train.lr")

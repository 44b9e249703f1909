"""Wasserstein-geodesic augmentation: Zhu, Qiu, Guha, Yang, Nguyen, Li and Zhao, "Interpolation for
Robust Learning: Data Augmentation on Wasserstein Geodesics" (ICML 2023, arXiv:2302.02092).

The paper's, as far as it was read: augment with the worst-case barycenter on the geodesic between
two subpopulations, as many synthetic images as real ones, and make the model's performance smooth
along it. All else is our choice, and no default is a setting of the paper. Wraps any method.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.errors import WorkError
from raybust.methods.base import Method, StepContext
from raybust.methods.standard import Standard
from raybust.numerics.attacks import attacked
from raybust.numerics.transport import (
    Curves,
    Paths,
    class_cycle,
    climb,
    halves,
    jittered,
    join,
    match,
    slope,
    variation,
)


class Prepared(NamedTuple):
    """What `setup` finds: the number of classes, and what the base prepared."""

    classes: int
    base: Any


@dataclass(frozen=True, kw_only=True)
class Geodesic(Method):
    """loss = base(x, y) + weight CE(x_t, y_t) + penalty R, x_t = (1 - t) x + t x' on the geodesics
    between classes, t the worst location of each, R the mean over geodesics of the variation of
    the performance along it. Pairs x, x' of an optimal transport plan between two classes.

    The controls are settings: pairing=random, pairing=kmixup, location=random.
    """

    base: Method = field(default_factory=Standard)
    pairing: Literal["ot", "random", "kmixup"] = option(
        "ot",
        "Who is paired: classes in a random cycle by optimal transport; the same classes at "
        "random; or halves of the batch by transport, whatever their class.",
    )
    location: Literal["grid", "ascent", "random", "fixed"] = option(
        "grid", "Where on a geodesic: the worst of a grid, gradient ascent, uniform, or `at`."
    )
    points: int = option(5, "Points of the grid; each costs a forward pass.", ge=1)
    steps: int = option(
        3, "Steps of the ascent, of 1/4, 1/8, ...; each costs a pass and its gradient.", ge=1
    )
    at: float = option(0.5, "The location of `fixed`.", ge=0, le=1)
    label: Literal["soft", "nearest", "source"] = option(
        "soft", "Label of a synthetic image: mixed as the image is, of the nearer end, or x's."
    )
    cap: float = option(
        0.5, "Largest distance from the end whose label is given, of all but soft.", gt=0, le=0.5
    )
    weight: float = option(1.0, "Weight of the synthetic images.", ge=0)
    synthetic: Literal["plain", "base"] = option(
        "plain",
        "Their loss: cross entropy, with the base's smoothing noise; or the base's own, attack "
        "included (macer and covariance then take a soft label's largest class for the radius).",
    )
    penalty: float = option(0.1, "Weight of the variation along the geodesics.", ge=0)
    estimate: Literal["differences", "gradient"] = option(
        "differences",
        "Of the variation: differences on a jittered grid, or the slope at one uniform location, "
        "a second derivative.",
    )
    performance: Literal["loss", "probabilities"] = option(
        "loss",
        "What is to be smooth: cross entropy to the mixed label, or the classes' probabilities, "
        "whose variation is 2 or more for a perfect classifier.",
    )
    segments: int = option(4, "Differences on the grid; costs one pass more than that.", ge=1)
    power: int = option(1, "Of the slope: 1 total variation, 2 squared.", ge=1, le=2)
    warmup: float = option(0.05, "Share of the run with the base alone.", ge=0, lt=1)
    ramp: float = option(
        0.1, "Share of the run over which the penalty's weight rises from 0.", ge=0, le=1
    )
    least: int = option(
        4,
        "Images that a class must have in a batch; those of smaller classes are paired as in "
        "`kmixup`, with another class where possible, and counted in `geodesic/fallbacks`.",
        ge=1,
    )
    most: int | None = option(
        None, "Images of a class that take part in a step, at most; all where not given.", ge=1
    )

    def problems(self) -> list[str]:
        """Rules across fields, beside the fields' own."""
        found = super().problems()
        if self.estimate == "gradient" and self.performance != "loss":
            found.append("estimate: got 'gradient', expected 'differences' for the probabilities")
        if self.most is not None and self.most < self.least:
            found.append(f"most: got {self.most}, expected >= least, which is {self.least}")
        away = self.at if self.label == "source" else min(self.at, 1 - self.at)
        if self.location == "fixed" and self.label != "soft" and away > self.cap:
            found.append(f"at: got {self.at:g}, {away:g} from its label's end, expected <= cap")
        return found

    @property
    def balanced_classes(self) -> int:  # type: ignore[override]
        """The base's."""
        return self.base.balanced_classes

    def front(self) -> nn.Module | None:
        """The base's front module."""
        return self.base.front()

    def noise(self) -> float | None:
        """The base's sigma."""
        return self.base.noise()

    def setup(self, network: nn.Module, images: Tensor, targets: Tensor) -> Prepared:
        """Returns the number of classes and what the base prepares."""
        with attacked(network, fold=False), torch.no_grad():
            classes = network(images[:1]).shape[1]
        return Prepared(classes, self.base.setup(network, images, targets))

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss above; see `Method.loss`. The base's alone during the warm-up, where
        both weights are 0, and where a batch has one image.

        Metrics: `geodesic/fallbacks` (images that are paired without their class, or not at all,
        because it is too small), `geodesic/distance` (root mean square of x' - x), and where they
        are computed `geodesic/location`, `geodesic/synthetic`, `geodesic/variation`.

        Raises:
            WorkError: an image is NaN or infinite.
        """
        inner = dataclasses.replace(context, prepared=context.prepared.base)
        penalty = self._penalty(context.progress)
        if context.progress < self.warmup or not (self.weight or penalty):
            return self.base.loss(network, images, targets, inner)
        probabilities = targets
        if targets.ndim == 1:
            probabilities = F.one_hot(targets, context.prepared.classes).to(images.dtype)
        paths = self.paths(images, probabilities.argmax(1), context)
        if not paths.pairs:
            return self.base.loss(network, images, targets, inner)
        curves = self.curves(images, probabilities, paths, context.generator)
        t = None
        if self.weight:
            t = self.locate(network, curves, context.generator)[curves.pair]
            context.metrics["geodesic/location"] = t.mean()
        # The search comes first: what it needs is freed before the base's graph is built.
        loss = self.base.loss(network, images, targets, inner)
        if t is not None and self.synthetic == "base":
            apart = dataclasses.replace(inner, metrics={})
            mixed = self.base.loss(network, curves.images(t), curves.labels(t, self.label), apart)
            context.metrics["geodesic/synthetic"] = mixed.detach()
            loss, t = loss + self.weight * mixed, None
        return loss + self._added(network, curves, t, penalty, context)

    def paths(self, images: Tensor, labels: Tensor, context: StepContext) -> Paths:
        """Returns who goes to whom in a batch.

        Args:
            images: (B, C, H, W), where the cost is measured: squared distances of pixels.
            labels: int64 (B,).
            context: its generator is the source of randomness; its metrics get the fallbacks.
        """
        if not images.isfinite().all():
            raise WorkError("geodesic: got images with NaN or infinite pixels, expected [0, 1]")
        generator, every = context.generator, torch.arange(len(images))
        if self.pairing == "kmixup":
            groups, rest = match(images, halves(every, generator)), every[:0]
        else:
            groups, rest = class_cycle(labels, generator, least=self.least, most=self.most)
            small = halves(rest, generator)
            if self.pairing == "ot":
                groups = match(images, groups) + match(images, small, labels)
            else:
                groups = groups + small
        context.metrics["geodesic/fallbacks"] = float(len(rest))
        return join(groups, images.device)

    def curves(
        self, images: Tensor, probabilities: Tensor, paths: Paths, generator: torch.Generator
    ) -> Curves:
        """Returns both ends of the paths, and noise of the base's sigma for each path.

        Args:
            images: (B, C, H, W).
            probabilities: (B, K).
            paths: of this batch.
            generator: of the noise.
        """
        start, sigma = images[paths.source], self.base.noise()
        noise: Tensor | float = 0.0
        if sigma is not None:
            noise = sigma * torch.empty_like(start).normal_(generator=generator)
        return Curves(
            start,
            images[paths.partner],
            probabilities[paths.source],
            probabilities[paths.partner],
            paths.pair,
            paths.pairs,
            noise,
        )

    def reach(self, u: Tensor) -> Tensor:
        """Returns the location of u in [0, 1] among those that the label rule allows: all of [0, 1]
        for `soft`, [0, cap] for `source`, [0, cap] and [1 - cap, 1] for `nearest`."""
        if self.label == "source":
            return self.cap * u
        if self.label == "nearest":
            return torch.where(u <= 0.5, 2 * self.cap * u, 1 - 2 * self.cap * (1 - u))
        return u

    def locate(self, network: nn.Module, curves: Curves, generator: torch.Generator) -> Tensor:
        """Returns the location (pairs,) on each geodesic, a constant: by the envelope theorem the
        gradient at the maximum needs no more.

        The worst location is that of the mean cross entropy over the geodesic's images, in eval
        mode, under noise but never under attack. A grid is of the middles of its cells, or for
        `source` of their ends, since a fixed label's loss is the largest at the cap.

        Args:
            network: as in `loss`; it is as it was afterwards.
            curves: of this batch.
            generator: of a random location, and of where an ascent starts.
        """
        like: dict[str, Any] = {"dtype": curves.start.dtype, "device": curves.start.device}
        if self.location == "fixed":
            return torch.full((curves.pairs,), self.at, **like)
        if self.location == "grid":
            shift = 1.0 if self.label == "source" else 0.5
            cells = (torch.arange(self.points, **like) + shift) / self.points
            grid = self.reach(cells)
            with attacked(network), torch.no_grad():
                losses = torch.stack([self._losses(network, curves, t) for t in grid])
            return grid[losses.argmax(0)]
        u = torch.rand(curves.pairs, generator=generator, **like)
        if self.location == "ascent":
            with attacked(network):
                u = climb(lambda u: self._losses(network, curves, self.reach(u)), u, self.steps)
        return self.reach(u)

    def _losses(self, network: nn.Module, curves: Curves, t: Tensor) -> Tensor:
        """Returns the mean cross entropy (pairs,) at one location, or at one of each geodesic."""
        at = t[curves.pair] if t.ndim else t.expand(len(curves.pair))
        logits = network(curves.noisy(at))
        losses = F.cross_entropy(logits, curves.labels(at, self.label), reduction="none")
        return curves.means(losses[:, None])[:, 0]

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
        """Returns weight times the cross entropy at t (M,), where it is given, plus the penalty; a
        single forward pass for both."""
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
                rough = slope(network, curves, at.to(total)).abs() ** self.power
            else:
                at_grid = zip(logits, grid, strict=True)
                values = [self._performance(u, curves, at) for u, at in at_grid]
                rough = variation(torch.stack(values), grid, self.power).sum(-1)
            metrics["geodesic/variation"] = rough.detach().mean()
            total = total + penalty * rough.mean()
        return total

    def _performance(self, logits: Tensor, curves: Curves, at: Tensor) -> Tensor:
        """Returns what is to be smooth, the mean over each geodesic, (pairs, D)."""
        if self.performance == "probabilities":
            return curves.means(logits.softmax(1))
        return curves.means(F.cross_entropy(logits, curves.labels(at), reduction="none")[:, None])

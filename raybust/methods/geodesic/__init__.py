"""Wasserstein-geodesic augmentation: Zhu, Qiu, Guha, Yang, Nguyen, Li and Zhao, "Interpolation for
Robust Learning: Data Augmentation on Wasserstein Geodesics" (ICML 2023, arXiv:2302.02092).

Augment with the worst-case barycenter on the geodesic between two classes, with as many synthetic
as real images, and make performance smooth along it. We read the running text of the paper's body;
docs/methods.md says what it prints and where it contradicts itself. No default is its setting. Its
tables, algorithms and appendix we have not read. Wraps any method.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.errors import RequestError
from raybust.methods.base import Round, StepContext
from raybust.methods.geodesic.batch import Prepared, check_finite, counter, probabilities_of
from raybust.methods.geodesic.rounds import begun
from raybust.methods.geodesic.settings import Settings
from raybust.numerics.attacks import attacked, untracked
from raybust.numerics.autoencoder import train_autoencoder
from raybust.numerics.transport import (
    Curves,
    Paths,
    Space,
    Stored,
    along,
    between,
    climbed,
    coupled,
    decoded_accuracy,
    decoding,
    feature_cost,
    grid_of,
    latent_space,
    penultimate,
    pixel_space,
    reach,
    worst_of_grid,
)


@dataclass(frozen=True, kw_only=True)
class Geodesic(Settings):
    """loss = base(x, y) + weight CE(x_t, y_t) + penalty R, x_t = (1 - t) x + t x' on the geodesics
    between classes, t the worst location on each, R the mean over geodesics of the performance's
    variation along them. An optimal transport plan between two classes yields the pairs x, x'.
    """

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
                images, size=self.latent, beta=self.beta, epochs=self.latent_epochs,
                seed=torch.initial_seed(),
            )  # fmt: skip
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
        inner, penalty = self.inner(context), self._penalty(context.progress)
        if context.progress < self.warmup or not (self.weight or penalty):
            check_finite(images, images)
            return self.base.loss(network, images, targets, inner)
        if self.refresh:
            return self._stored_loss(network, images, targets, context)
        probabilities = probabilities_of(targets, images, context)
        space = self.spaced(network, images, context)
        check_finite(images, space.cost)
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
                labels = curves.labels(t, self.label)
                mixed = self._synthetic(network, curves.images(t), labels, context)
                loss, t = loss + self.weight * mixed, None
            return loss + self._added(network, curves, t, penalty, context)

    def _stored_loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss with images and geodesics of the current round."""
        check_finite(images, images)
        stored: Stored = context.stored
        draw, penalty = context.generator, self._penalty(context.progress)
        loss = self.base.loss(network, images, targets, self.inner(context))
        with untracked(network, self.statistics == "base"):
            if self.weight:
                synthetic, labels = stored.drawn(self.copies * len(images), draw)
                mixed = self._synthetic(network, synthetic, labels, context)
                loss = loss + self.copies * self.weight * mixed
            if penalty:
                curves = stored.whole(len(images), draw)
                if self.space == "latent":
                    decode = decoding(context.prepared.coder, counter(context))
                    curves = curves._replace(decode=decode)
                noise = self.noise_like((len(curves.start), *images.shape[1:]), images, draw)
                curves = curves._replace(noise=noise)
                loss = loss + self._added(network, curves, None, penalty, context)
        return loss

    def inner(self, context: StepContext) -> StepContext:
        """Returns the context with the base's prepared and stored state."""
        stored = None if self.refresh else context.stored
        return dataclasses.replace(context, prepared=context.prepared.base, stored=stored)

    def store(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Tensor,
        context: StepContext,
        found: Tensor | None = None,
    ) -> Round:
        """Pairs all images by two classes each; finds the location on each geodesic, (G,), and
        stores the synthetic images there. See `Method.store`.

        Metrics, once a round: `geodesic/location` and `geodesic/distance`; for the latent space
        `geodesic/reconstruction_accuracy`; outside pixel space `geodesic/round_passes` (images
        through the embedding, the encoder or the decoder)."""
        if not self.refresh:
            return super().store(network, images, targets, context, found)
        return begun(self, network, (images, targets), context, found)

    def spaced(self, network: nn.Module, images: Tensor, context: StepContext) -> Space:
        """Returns the space in which a batch is coupled and mixed; see `space`.

        Args:
            network: as in `loss`; restored afterwards.
            images: (B, C, H, W).
            context: passes through other networks are counted in its metrics.
        """
        if self.space == "pixel":
            return pixel_space(images)
        count = counter(context)
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
        noise = self.noise_like(images[paths.source].shape, images, generator)
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

    def noise_like(
        self, shape: torch.Size | tuple[int, ...], like: Tensor, generator: torch.Generator
    ) -> Tensor | float:
        """Returns noise of the base's sigma, 0 without one."""
        sigma = self.base.noise()
        return 0.0 if sigma is None else sigma * like.new_empty(shape).normal_(generator=generator)

    def _synthetic(
        self, network: nn.Module, images: Tensor, labels: Tensor, context: StepContext
    ) -> Tensor:
        """Returns and logs the loss of synthetic images without noise."""
        if self.synthetic == "base":
            separate = dataclasses.replace(self.inner(context), metrics={})
            mixed = self.base.loss(network, images, labels, separate)
        else:
            noise = self.noise_like(images.shape, images, context.generator)
            mixed = F.cross_entropy(network(images + noise), labels)
        context.metrics["geodesic/synthetic"] = mixed.detach()
        return mixed

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
        metrics = context.metrics
        metrics["geodesic/distance"] = curves.distance()
        mixed, rough = along(
            network, curves, t, context.generator, rule=self.label,
            estimate=self.estimate if penalty else None, performance=self.performance,
            segments=self.segments, power=self.power,
        )  # fmt: skip
        total = torch.zeros((), dtype=curves.start.dtype, device=curves.start.device)
        if mixed is not None:
            metrics["geodesic/synthetic"] = mixed.detach()
            total = total + self.weight * mixed
        if rough is not None:
            metrics["geodesic/variation"] = rough.detach().mean()
            total = total + penalty * rough.mean()
        return total

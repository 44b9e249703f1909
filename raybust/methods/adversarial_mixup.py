"""Adversarially optimized mixup: Bunk, Chattopadhyay, Manjunath and Chandrasekaran (2021,
arXiv:2103.11589). PGD searches the space between two images, their mixing ratio included.

No code was released and only the abstract and introduction were available: ratio search, label
rules and defaults are our reconstruction. With a fixed ratio, equal starts and no clipping, both
endpoints take the same steps, so perturbing them equals perturbing the mixed image.

Notation: pairs (x_i, y_i), (x_j, y_j); xt = lam (x_i + d_i) + (1 - lam) (x_j + d_j).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import StepContext
from raybust.methods.mixup import blend, column, pairing, probabilities
from raybust.methods.pgd import STEP, Pgd, accuracy
from raybust.numerics.attacks import Network, attacked
from raybust.numerics.attacks.ascent import loss_gradient
from raybust.numerics.balls import Threat

_EPSILON = 1e-12

Labels = Literal["projection", "distance_ratio", "ratio"]


class Pair(NamedTuple):
    """Images x_i and x_j, (B, C, H, W), with targets y_i and y_j, (B,) or (B, K)."""

    images: Tensor
    targets: Tensor
    partners: Tensor
    partner_targets: Tensor

    def label(self, ratio: Tensor, logits: Tensor) -> Tensor:
        """Returns yt = lam y_i + (1 - lam) y_j, (B, K), for ratios (B,); logits define K."""
        first, second = self.ends(logits)
        return blend(first, second, ratio)

    def ends(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns y_i and y_j as probabilities (B, K)."""
        classes, dtype = logits.shape[1], logits.dtype
        return (
            probabilities(self.targets, classes, dtype),
            probabilities(self.partner_targets, classes, dtype),
        )


class Mixed(NamedTuple):
    """Result of the search: mixtures xt (B, C, H, W) and their ratios lam (B,)."""

    images: Tensor
    ratio: Tensor


@dataclass(frozen=True, kw_only=True)
class AdversarialMixup(Pgd):
    """Cross entropy on the worst mixtures: loss = CE(network(xt*), yt*), xt* ~ argmax over d_i, d_j
    in the ball and lam in its interval of KL(lam y_i + (1 - lam) y_j || p(xt)), yt* the label at
    the position of xt* between the two images.
    """

    eps: float = option(8 / 255, "Radius of the ball.", ge=0, unit="pixels in [0, 1], in `norm`")
    alpha: float = option(1.0, "Parameter of the initial ratio's Beta distribution.", gt=0)
    interval: float = option(
        0.1, "Maximum change of the ratio; 0 keeps it fixed, 1 allows the whole segment.", ge=0,
        le=1,
    )  # fmt: skip
    ratio_step: float | None = option(
        None, "Step size of the ratio; defaults to 2.5 interval / steps.", gt=0
    )
    endpoints: Literal["both", "mixed"] = option(
        "both", "Whether to perturb both images or the mixed one."
    )
    labels: Literal["projection", "distance_ratio", "ratio"] = option(
        "projection",
        "Label by the projection onto the segment, by distances to its ends, or by the ratio.",
    )
    mix_share: float = option(
        1.0, "Weight of the mixtures' loss; plain PGD's loss gets the remainder.", gt=0, le=1
    )
    best: bool = option(
        False, "Keep the worst of all iterates, which costs one more pass, instead of the last."
    )

    def problems(self) -> list[str]:
        """Adds constraints across fields."""
        found = super().problems()
        if self.start == "n_fgsm":
            found.append("start: got 'n_fgsm', expected another start: the search uses PGD steps")
        return found

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the mixtures' cross entropy, weighted with plain PGD's by `mix_share`; see
        `Method.loss`."""
        ratio, order = pairing(images, self.alpha, context.generator)
        pair = Pair(images, targets, images[order], targets[order])
        labels = context.sharp(targets)
        sharp = Pair(images, labels, images[order], labels[order])
        with attacked(network, statistics=self.statistics):
            found = self._search(network, sharp, ratio, context)
        logits = network(found.images)
        label = pair.label(position(found, pair, self.labels), logits)
        loss = F.cross_entropy(logits, label)
        if self.mix_share < 1:
            plain = super().loss(network, images, targets, context)
            loss = self.mix_share * loss + (1 - self.mix_share) * plain
        context.metrics["train/attacked_accuracy"] = accuracy(logits, label)
        return loss

    def _search(self, network: Network, pair: Pair, ratio: Tensor, context: StepContext) -> Mixed:
        """Runs the search with the current schedule and returns the mixtures."""
        threat, steps, step = self.plan(pair.images, context.progress)
        centers = _centers(pair, ratio, 1 if self.endpoints == "mixed" else 2)
        return search(
            network,
            pair,
            ratio,
            threat,
            starts=[self.first(images, threat, context.generator) for images in centers],
            steps=steps,
            step=step,
            interval=self.interval,
            ratio_step=self.ratio_step or STEP * self.interval / steps,
            best=self.best,
        )


def search(
    network: Network,
    pair: Pair,
    ratio: Tensor,
    threat: Threat,
    *,
    starts: list[Tensor],
    steps: int,
    step: float,
    interval: float = 0.0,
    ratio_step: float = 0.0,
    best: bool = False,
) -> Mixed:
    """Maximizes the divergence KL(yt || p(xt)) jointly over perturbations and ratio: one backward
    pass per step, sign steps for the ratio, steepest ascent in the norm for the perturbations.

    Args:
        network: see `Network`; freeze it with `attacked`.
        pair: images in [0, 1], and targets.
        ratio: initial lam, (B,), in [0, 1].
        threat: the allowed perturbations.
        starts: initial perturbations, of both images (two) or of the mixed one (one).
        steps: number of gradient steps.
        step: step size in the norm, pixels in [0, 1].
        interval: the ratio stays in [lam - interval, lam + interval] and [0, 1].
        ratio_step: step size of the ratio.
        best: whether to return the iterate with the largest divergence instead of the last.
    """
    low, high = (ratio - interval).clamp(0, 1), (ratio + interval).clamp(0, 1)
    deltas = list(starts)
    worst, largest = Mixed(pair.images, ratio), torch.full_like(ratio, -torch.inf)
    for number in range(steps + 1):
        current = Mixed(_point(pair, deltas, ratio), ratio)
        last = number == steps
        if last and not best:
            return current
        gradient, (logits, values) = loss_gradient(
            network,
            current.images,
            ratio,
            lambda logits, lam: divergence(logits, lam, pair),
            forward_only=last,
        )
        worst, largest = _worse(current, values, worst, largest)
        if last:
            break
        difference = pair.images - pair.partners
        if len(deltas) == 2:
            difference = difference + deltas[0] - deltas[1]
        slope = ratio_slope(gradient, difference, logits, ratio, pair)
        ratio = torch.clamp(ratio + ratio_step * slope.sign(), low, high)
        centers = _centers(pair, ratio, len(deltas))
        directions = [threat.steepest(gradient, images) for images in centers]
        moved = [d.add(up, alpha=step) for d, up in zip(deltas, directions, strict=True)]
        deltas = [threat.project(d, x, exact=False) for d, x in zip(moved, centers, strict=True)]
    return worst


def _worse(current: Mixed, values: Tensor, worst: Mixed, largest: Tensor) -> tuple[Mixed, Tensor]:
    """Returns, per example, the mixture with the larger divergence, and that divergence."""
    larger = values > largest
    images = torch.where(column(larger, current.images), current.images, worst.images)
    ratio = torch.where(larger, current.ratio, worst.ratio)
    return Mixed(images, ratio), torch.where(larger, values, largest)


def _centers(pair: Pair, ratio: Tensor, count: int) -> list[Tensor]:
    """Returns the images to perturb: both images of the pair, or their mixture."""
    if count == 1:
        return [blend(pair.images, pair.partners, ratio)]
    return [pair.images, pair.partners]


def divergence(logits: Tensor, ratio: Tensor, pair: Pair) -> Tensor:
    """Returns KL(yt || softmax(z)), (B,), for logits z (B, K) and labels yt at the ratios (B,).

    Cross entropy minus the label's entropy: without that term the ratio, which changes the label,
    would drift to 1/2 regardless of the network.
    """
    label = pair.label(ratio, logits)
    cross = F.cross_entropy(logits, label, reduction="none")
    return cross + torch.xlogy(label, label).sum(1)


def ratio_slope(
    gradient: Tensor, difference: Tensor, logits: Tensor, ratio: Tensor, pair: Pair
) -> Tensor:
    """Returns dKL/dlam = <g, a - b> + sum_c (y_i - y_j)_c (ln yt_c - ln p_c), (B,).

    For two hard labels the sum is CE_i - CE_j + ln(lam / (1 - lam)) if they differ, else 0.

    Args:
        gradient: g, of the divergence with respect to xt, (B, C, H, W).
        difference: a - b, of the perturbed images, (B, C, H, W).
        logits: of xt, (B, K).
        ratio: lam, (B,).
        pair: provides the targets.
    """
    first, second = pair.ends(logits)
    log_label = pair.label(ratio, logits).clamp(min=torch.finfo(logits.dtype).tiny).log()
    moved = (first - second) * (log_label - logits.log_softmax(1))
    return (gradient * difference).flatten(1).sum(1) + moved.sum(1)


def position(found: Mixed, pair: Pair, rule: Labels) -> Tensor:
    """Returns each mixture's position between its images: t (B,) in [0, 1], 1 at x_i, no gradient.

    Without perturbation t = lam. `projection`: <xt - x_j, x_i - x_j> / ||x_i - x_j||^2, clipped.
    `distance_ratio`: ||xt - x_j|| / (||xt - x_i|| + ||xt - x_j||), which displacements off the
    segment pull to 1/2. `ratio`: lam. If x_i = x_j, every rule gives lam.

    Args:
        found: mixtures and their ratios.
        pair: the images.
        rule: see above.
    """
    if rule == "ratio":
        return found.ratio
    segment = (pair.images - pair.partners).flatten(1)
    offset = (found.images.detach() - pair.partners).flatten(1)
    length = segment.square().sum(1)
    if rule == "projection":
        t = ((offset * segment).sum(1) / length.clamp(min=_EPSILON)).clamp(0, 1)
    else:
        to_first, to_second = (segment - offset).norm(dim=1), offset.norm(dim=1)
        t = to_second / (to_first + to_second).clamp(min=_EPSILON)
    return torch.where(length > _EPSILON, t, found.ratio)


def _point(pair: Pair, deltas: list[Tensor], ratio: Tensor) -> Tensor:
    """Returns xt; perturbing both images equally adds exactly that perturbation."""
    delta = blend(deltas[0], deltas[-1], ratio)
    return (blend(pair.images, pair.partners, ratio) + delta).clamp(0, 1)

"""Adversarially optimized mixup: Bunk, Chattopadhyay, Manjunath and Chandrasekaran (2021,
arXiv:2103.11589). PGD searches the space between two images, their mixing ratio included.

No code was released, and no more than abstract and introduction could be read: ratio search, label
rules and defaults are our reconstruction. With a fixed ratio, equal starts and no box at work, both
endpoints take the same steps, so that perturbing them is perturbing the mixed image.

Legend: pairs (x_i, y_i), (x_j, y_j); xt = lam (x_i + d_i) + (1 - lam) (x_j + d_j).
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

_SAME = 1e-12

Labels = Literal["projection", "distance_ratio", "ratio"]


class Pair(NamedTuple):
    """Images x_i and x_j, (B, C, H, W), with targets y_i and y_j, (B,) or (B, K)."""

    images: Tensor
    targets: Tensor
    partners: Tensor
    partner_targets: Tensor

    def label(self, ratio: Tensor, logits: Tensor) -> Tensor:
        """Returns yt = lam y_i + (1 - lam) y_j, (B, K), for ratios (B,); K is the logits'."""
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
    """What the search found: xt (B, C, H, W), and its ratio lam (B,)."""

    images: Tensor
    ratio: Tensor


@dataclass(frozen=True, kw_only=True)
class AdversarialMixup(Pgd):
    """Cross entropy on the worst mixtures: loss = CE(network(xt*), yt*), xt* ~ argmax over d_i, d_j
    in the ball and lam in its interval of KL(lam y_i + (1 - lam) y_j || p(xt)), yt* the label of
    where xt* lies between the two images.
    """

    eps: float = option(8 / 255, "Radius of the ball.", ge=0, unit="norm's, pixels in [0, 1]")
    alpha: float = option(1.0, "Parameter of the Beta distribution of the first ratio.", gt=0)
    interval: float = option(
        0.1, "How far the search may move the ratio; 0 keeps it, 1 is the whole segment.", ge=0,
        le=1,
    )  # fmt: skip
    ratio_step: float | None = option(
        None, "Length of the ratio's step; 2.5 interval / steps where not given.", gt=0
    )
    endpoints: Literal["both", "mixed"] = option(
        "both", "What is perturbed: both images, or the mixed one."
    )
    labels: Literal["projection", "distance_ratio", "ratio"] = option(
        "projection",
        "Label by the projection onto the segment, by distances to its ends, or by the ratio.",
    )
    mix_share: float = option(
        1.0, "Weight of the mixtures' loss; the rest is that of plain PGD's images.", gt=0, le=1
    )
    best: bool = option(
        False, "Whether the worst of all iterates is kept, at a pass more; else the last one."
    )

    def problems(self) -> list[str]:
        """Rules across fields, beside the fields' own."""
        found = super().problems()
        if self.start == "n_fgsm":
            found.append("start: got 'n_fgsm', expected another: the search takes PGD's steps")
        return found

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the cross entropy of the mixtures, plus plain PGD's by share; see
        `Method.loss`."""
        ratio, order = pairing(images, self.alpha, context.generator)
        pair = Pair(images, targets, images[order], targets[order])
        with attacked(network, statistics=self.statistics):
            found = self._search(network, pair, ratio, context)
        logits = network(found.images)
        label = pair.label(position(found, pair, self.labels), logits)
        loss = F.cross_entropy(logits, label)
        if self.mix_share < 1:
            plain = super().loss(network, images, targets, context)
            loss = self.mix_share * loss + (1 - self.mix_share) * plain
        context.metrics["train/attacked_accuracy"] = accuracy(logits, label)
        return loss

    def _search(self, network: Network, pair: Pair, ratio: Tensor, context: StepContext) -> Mixed:
        """Returns the mixtures after the search of this moment of the run."""
        threat, steps, step = self.plan(pair.images, context.progress)
        around = _centers(pair, ratio, 1 if self.endpoints == "mixed" else 2)
        return search(
            network,
            pair,
            ratio,
            threat,
            starts=[self._start(images, threat, context.generator) for images in around],
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
    """Ascends the divergence KL(yt || p(xt)) in perturbations and ratio at once: one backward pass
    a step, signs for the ratio, steepest steps of the norm for the perturbations.

    Args:
        network: see `Network`; freeze it with `attacked`.
        pair: the images, in [0, 1], and targets.
        ratio: lam at the start, (B,), in [0, 1].
        threat: the perturbations that are allowed.
        starts: the first perturbation of both images (two), or of the mixed one (one).
        steps: gradient steps.
        step: their length in the norm, pixels in [0, 1].
        interval: the ratio stays in [lam - interval, lam + interval] and [0, 1].
        ratio_step: length of the ratio's step.
        best: whether the result is the iterate of the largest divergence, not the last one.
    """
    low, high = (ratio - interval).clamp(0, 1), (ratio + interval).clamp(0, 1)
    deltas = list(starts)
    kept, most = Mixed(pair.images, ratio), torch.full_like(ratio, -torch.inf)
    for number in range(steps + 1):
        now = Mixed(_point(pair, deltas, ratio), ratio)
        last = number == steps
        if last and not best:
            return now
        gradient, (logits, values) = loss_gradient(
            network,
            now.images,
            ratio,
            lambda logits, lam: divergence(logits, lam, pair),
            forward_only=last,
        )
        kept, most = _worse(now, values, kept, most)
        if last:
            break
        apart = pair.images - pair.partners
        if len(deltas) == 2:
            apart = apart + deltas[0] - deltas[1]
        slope = ratio_slope(gradient, apart, logits, ratio, pair)
        ratio = torch.clamp(ratio + ratio_step * slope.sign(), low, high)
        around = _centers(pair, ratio, len(deltas))
        steps_up = [threat.steepest(gradient, images) for images in around]
        moved = [d.add(up, alpha=step) for d, up in zip(deltas, steps_up, strict=True)]
        deltas = [threat.project(d, x, exact=False) for d, x in zip(moved, around, strict=True)]
    return kept


def _worse(now: Mixed, values: Tensor, kept: Mixed, most: Tensor) -> tuple[Mixed, Tensor]:
    """Returns of each example the mixture of the larger divergence, and that."""
    better = values > most
    images = torch.where(column(better, now.images), now.images, kept.images)
    ratio = torch.where(better, now.ratio, kept.ratio)
    return Mixed(images, ratio), torch.where(better, values, most)


def _centers(pair: Pair, ratio: Tensor, count: int) -> list[Tensor]:
    """Returns the images that are perturbed: both of the pair, or the one mixed of them."""
    if count == 1:
        return [blend(pair.images, pair.partners, ratio)]
    return [pair.images, pair.partners]


def divergence(logits: Tensor, ratio: Tensor, pair: Pair) -> Tensor:
    """Returns KL(yt || softmax(z)), (B,), of logits z (B, K) and yt the label at the ratios (B,).

    Cross entropy less the label's entropy: the ratio, which moves the label, would otherwise be
    driven to 1/2 whatever the network says.
    """
    label = pair.label(ratio, logits)
    cross = F.cross_entropy(logits, label, reduction="none")
    return cross + torch.xlogy(label, label).sum(1)


def ratio_slope(
    gradient: Tensor, apart: Tensor, logits: Tensor, ratio: Tensor, pair: Pair
) -> Tensor:
    """Returns dKL/dlam = <g, a - b> + sum_c (y_i - y_j)_c (ln yt_c - ln p_c), (B,).

    For two labels the sum is CE_i - CE_j + ln(lam / (1 - lam)) if they differ and 0 if not.

    Args:
        gradient: g, of the divergence for xt, (B, C, H, W).
        apart: a - b, the perturbed images' difference, (B, C, H, W).
        logits: of xt, (B, K).
        ratio: lam, (B,).
        pair: for the targets.
    """
    first, second = pair.ends(logits)
    log_label = pair.label(ratio, logits).clamp(min=torch.finfo(logits.dtype).tiny).log()
    moved = (first - second) * (log_label - logits.log_softmax(1))
    return (gradient * apart).flatten(1).sum(1) + moved.sum(1)


def position(found: Mixed, pair: Pair, rule: Labels) -> Tensor:
    """Returns where mixtures lie between their images: t (B,) in [0, 1], 1 at x_i, no gradient.

    Without perturbation t = lam. `projection`: <xt - x_j, x_i - x_j> / ||x_i - x_j||^2, clipped.
    `distance_ratio`: ||xt - x_j|| / (||xt - x_i|| + ||xt - x_j||), which a displacement off the
    segment pulls to 1/2. `ratio`: lam. Where x_i = x_j it is lam by every rule.

    Args:
        found: mixtures and their ratios.
        pair: the images.
        rule: see above.
    """
    if rule == "ratio":
        return found.ratio
    apart = (pair.images - pair.partners).flatten(1)
    onward = (found.images.detach() - pair.partners).flatten(1)
    length = apart.square().sum(1)
    if rule == "projection":
        share = ((onward * apart).sum(1) / length.clamp(min=_SAME)).clamp(0, 1)
    else:
        to_first, to_second = (apart - onward).norm(dim=1), onward.norm(dim=1)
        share = to_second / (to_first + to_second).clamp(min=_SAME)
    return torch.where(length > _SAME, share, found.ratio)


def _point(pair: Pair, deltas: list[Tensor], ratio: Tensor) -> Tensor:
    """Returns xt; equal perturbations of both images are that perturbation, to the last bit."""
    delta = blend(deltas[0], deltas[-1], ratio)
    return (blend(pair.images, pair.partners, ratio) + delta).clamp(0, 1)

"""Targeted FAB: the nearest image that the network assigns to another class, at any radius.

Croce and Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack"
(ICML 2020, arXiv:1907.02044), in the targeted form of AutoAttack (arXiv:2003.01690). Each step goes
to the linearized boundary between label and target, biased toward the image, and back toward the
image once the network is fooled. It has no step size and is invariant to the scale of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raybust.numerics.attacks.abreast import ended, plan
from raybust.numerics.attacks.ascent import Network, at_least_one, finite
from raybust.numerics.attacks.outcome import Outcome
from raybust.numerics.balls.hyperplane import to_hyperplane
from raybust.numerics.balls.source import Source, select, split
from raybust.numerics.balls.threat import Norm, Threat

_BIAS = 0.1
"""Maximum weight of the image's own projection in a step (alpha_max)."""

_OVERSHOOT = 1.05
_BACK = 0.9
_LEAST = 1e-8
_CROWDED = 0.25


@dataclass(eq=False)
class Nearest:
    """The nearest images that fooled the network, for B examples.

    Attributes:
        images: (B, C, H, W); the example itself if none did.
        distance: (B,), in the norm of the threat; inf if none did.
        step: int64 (B,), the step that found it; -1 if none did.
    """

    images: Tensor
    distance: Tensor
    step: Tensor

    @classmethod
    def begin(cls, images: Tensor) -> Nearest:
        """Returns the initial state for images (B, C, H, W)."""
        far = images.new_full((len(images),), torch.inf)
        return cls(images.detach().clone(), far, torch.full_like(far, -1, dtype=torch.int64))

    def take(self, rows: Tensor, other: Nearest, *, beyond: float = 0.0) -> None:
        """Merges the nearer results of another search on the examples `rows`, where the distance so
        far is beyond a radius."""
        known = self.distance[rows]
        self._put(rows, (other.distance < known) & (known > beyond), other)

    def _put(self, rows: Tensor, which: Tensor, other: Nearest) -> None:
        """Writes the rows `which`, bool (R,), of another result; reads nothing from the device."""
        column = which.reshape(-1, *[1] * (self.images.ndim - 1))
        self.images[rows] = torch.where(column, other.images, self.images[rows])
        self.distance[rows] = torch.where(which, other.distance, self.distance[rows])
        self.step[rows] = torch.where(which, other.step, self.step[rows])

    def select(self, rows: Tensor | slice) -> Nearest:
        """Returns the results of some examples."""
        return Nearest(self.images[rows], self.distance[rows], self.step[rows])

    def see(self, rows: Tensor, points: Tensor, sizes: Tensor, fooled: Tensor, step: int) -> None:
        """Records points (R, C, H, W) of the examples `rows` that fooled and are nearer."""
        better = fooled & (sizes < self.distance[rows])
        steps = torch.full_like(self.step[rows], step)
        self._put(rows, better, Nearest(points, sizes.to(self.distance.dtype), steps))

    def within(self, threat: Threat, clean: Tensor) -> Outcome:
        """Converts to the outcome of an attack in one ball; images outside are projected onto it
        and do not count as fooled.

        Args:
            threat: the ball.
            clean: the examples, (B, C, H, W).
        """
        found = Outcome.begin(clean)
        found.fooled = self.distance <= threat.eps
        found.step = torch.where(found.fooled, self.step, found.step)
        inside = clean + threat.project(self.images - clean, clean)
        found.images = torch.where(found.fooled.reshape(-1, 1, 1, 1), self.images, inside)
        return found


def fab_targeted(
    network: Network,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    source: Source,
    *,
    steps: int = 100,
    targets: int = 9,
    random_start: bool = False,
) -> Nearest:
    """Searches for the nearest image of another class; an example is done once it is in the ball.

    Runs go side by side where the batch has room for them; every run has draws of its own.

    Args:
        network: images (B, C, H, W) in [0, 1] to logits (B, K).
        images: (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        threat: the norm, and the radius at which an example is done.
        source: randomness of the starts, one generator or one per example.
        steps: steps per run, >= 1.
        targets: classes to try, likeliest wrong class first, capped at K - 1.
        random_start: False starts at the images, True at a random point of the ball.

    Raises:
        RequestError: fewer than one step or target.
    """
    at_least_one(steps=steps, targets=targets)
    with torch.no_grad():
        logits = network(images)
    ranked = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
    nearest = Nearest.begin(images)
    runs, first = min(targets, logits.shape[1] - 1), 0
    sources = split(source, runs)
    while first < runs and len(rows := (nearest.distance > threat.eps).nonzero().flatten()):
        at, number = plan(rows, images, first, runs)
        abreast = len(at) // len(rows)
        start = images[at]
        if random_start:
            start = start + threat.sample(start, select(sources, at * runs + number))
        found = _run(network, images[at], labels[at], ranked[at, number], threat,
                     start=start, steps=steps, abreast=abreast)  # fmt: skip
        for run in range(abreast):
            nearest.take(rows, found.select(slice(run, None, abreast)), beyond=threat.eps)
        first += abreast
    return nearest


def _run(
    network: Network,
    images: Tensor,
    labels: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    start: Tensor,
    steps: int,
    abreast: int,
) -> Nearest:
    """Runs once on every example, `abreast` of which share an image; see `ended`."""
    nearest = Nearest.begin(images)
    rows = torch.arange(len(images), device=images.device)
    points = start
    gaps, slopes, _ = _boundary(network, points, labels, targets)
    for step in range(1, steps + 1):
        clean, truth, target = images[rows], labels[rows], targets[rows]
        moved = _step(points, clean, gaps, slopes, threat.norm)
        gaps, slopes, fooled = _boundary(network, moved, truth, target)
        nearest.see(rows, moved, threat.size(moved - clean), fooled, step)
        points = moved
        at = fooled.nonzero().flatten()
        if len(at):
            back = clean[at] + _BACK * (moved[at] - clean[at])
            points[at] = back
            gaps[at], slopes[at], _ = _boundary(network, back, truth[at], target[at])
        done = ended(nearest.distance <= threat.eps, abreast)[rows]
        share = float(done.float().mean())
        if share == 1:
            break
        if share > _CROWDED:
            left = (~done).nonzero().flatten()
            rows, points, gaps, slopes = (part[left] for part in (rows, points, gaps, slopes))
    return nearest


def _boundary(
    network: Network, points: Tensor, labels: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns z_target - z_label at each point, its gradient, and whether the network is fooled."""
    with torch.enable_grad():
        leaf = points.detach().requires_grad_()
        logits = network(leaf)
        true, target = (logits.gather(1, at[:, None])[:, 0] for at in (labels, targets))
        gaps = target - true
        (slopes,) = torch.autograd.grad(gaps.sum(), leaf)
        slopes = finite(slopes)
    return gaps.detach(), slopes, logits.argmax(1) != labels


def _step(points: Tensor, clean: Tensor, gaps: Tensor, slopes: Tensor, norm: Norm) -> Tensor:
    """Returns the points after a step: beyond the hyperplane, between the projections of the point
    and of the image, closer to the image's the shorter it is."""
    excess = gaps + (slopes * (clean - points)).flatten(1).sum(1)
    here = to_hyperplane(points, slopes, gaps, norm)
    there = to_hyperplane(clean, slopes, excess, norm)
    threat = Threat(norm, 0.0)
    near, far = (threat.size(step).clamp(min=_LEAST) for step in (here, there))
    weight = (near / (near + far)).clamp(max=_BIAS).reshape(-1, 1, 1, 1)
    moved = (points + _OVERSHOOT * here) * (1 - weight) + (clean + _OVERSHOOT * there) * weight
    return moved.clamp(0, 1)

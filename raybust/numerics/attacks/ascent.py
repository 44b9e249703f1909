"""FGSM, N-FGSM and PGD: steepest ascent in the norm of a threat model.

Goodfellow et al. (2015, arXiv:1412.6572), de Jorge et al. (2022, arXiv:2202.01181), Madry et al.
(2018, arXiv:1706.06083). `ascend` is the bare loop for training: no bookkeeping, no device
synchronization. `pgd` is the attack for evaluation: best iterate, first success, restarts; examples
that are done leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raybust.errors import RequestError
from raybust.numerics.attacks.losses import Loss, cross_entropy
from raybust.numerics.attacks.outcome import Outcome, flat, read
from raybust.numerics.balls.source import Source, normal, select
from raybust.numerics.balls.threat import Threat

Network = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) in [0, 1] to logits (B, K)."""

_STEP = 2.5
_CROWDED = 0.25
_HUGE = 1e12
"""What an infinite gradient becomes: its square still sums up in float32."""


def ascend(
    network: Network,
    images: Tensor,
    threat: Threat,
    objective: Callable[[Tensor], Tensor],
    *,
    start: Tensor,
    steps: int,
    step: float,
) -> Tensor:
    """Returns the last iterate of projected steepest ascent, as images.

    delta <- project(delta + step * steepest(gradient)), with the cheap projection for L2 with the
    box.

    Args:
        network: see `Network`; freeze it with `attacked`.
        images: (B, C, H, W) in [0, 1].
        threat: allowed perturbations.
        objective: logits (B, K) to a scalar, a sum over the batch.
        start: initial perturbation, (B, C, H, W), allowed.
        steps: gradient steps.
        step: their length in the norm, pixels in [0, 1].
    """
    delta = start
    for _ in range(steps):
        gradient = gradient_at(network, images + delta, objective)
        move = threat.steepest(gradient, images)
        delta = threat.project(delta.add(move, alpha=step), images, exact=False)
    return images + delta


def n_fgsm(
    network: Network,
    images: Tensor,
    threat: Threat,
    objective: Callable[[Tensor], Tensor],
    source: Source,
) -> Tensor:
    """Returns the images of N-FGSM: noise of radius 2 eps, then a step of eps; clipped to the box
    but not, as its authors found necessary, to the ball.

    Args:
        network: see `Network`.
        images: (B, C, H, W) in [0, 1].
        threat: norm, eps and box.
        objective: logits (B, K) to a scalar, a sum over the batch.
        source: source of randomness.
    """
    start = threat.scaled(2.0).sample(images, source)
    gradient = gradient_at(network, images + start, objective)
    move = threat.steepest(gradient, images)
    return images + threat.clip(start.add(move, alpha=threat.eps), images)


def pgd(
    network: Network,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    source: Source,
    *,
    steps: int = 20,
    step: float | None = None,
    restarts: int = 1,
    loss: Loss = cross_entropy,
    center: bool = False,
) -> Outcome:
    """Attacks a batch; an example is done when an iterate fools the network.

    An L1 step has the width that the ball can fill up to the box, every second step one coordinate
    less: on a linear network only the optimum is a fixed point of both.

    Args:
        network: see `Network`.
        images: (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        threat: allowed perturbations.
        source: randomness of the starts, one generator or one per example.
        steps: gradient steps per run, >= 1.
        step: their length in the norm; by default 2.5 eps / steps, for L1 from eps down to 0.
        restarts: runs, each from a new uniform start.
        loss: loss to maximize.
        center: whether to start at the image; FGSM is one step of eps from there.

    Raises:
        RequestError: fewer than one step or restart.
    """
    at_least_one(steps=steps, restarts=restarts)
    outcome = Outcome.begin(images)
    for _ in range(restarts):
        rows = outcome.open
        if not len(rows):
            break
        own = select(source, rows)
        delta = torch.zeros_like(images[rows]) if center else threat.sample(images[rows], own)
        _run(network, images, labels, threat, outcome, rows=rows, delta=delta, source=own,
             steps=steps, step=step, loss=loss)  # fmt: skip
    return outcome


def fgsm(
    network: Network,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    source: Source,
) -> Outcome:
    """Attacks a batch with one step of length eps from the images; see `pgd`."""
    return pgd(network, images, labels, threat, source, steps=1, step=threat.eps, center=True)


def at_least_one(**counts: int) -> None:
    """Rejects counts below one, by name.

    Raises:
        RequestError: names the first one.
    """
    for name, value in counts.items():
        if value < 1:
            raise RequestError(f"{name}: got {value}, expected >= 1")


def _run(
    network: Network,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    outcome: Outcome,
    *,
    rows: Tensor,
    delta: Tensor,
    source: Source,
    steps: int,
    step: float | None,
    loss: Loss,
) -> None:
    """Runs PGD once from `delta` on the examples `rows`; updates the outcome."""
    clean, truth = images[rows], labels[rows]
    for number in range(steps + 1):
        point = clean + delta
        last = number == steps
        gradient, (logits, losses) = loss_gradient(network, point, truth, loss, forward_only=last)
        done = outcome.see(rows, point, logits, truth, step=number, loss=losses)
        share_done, zeros = read(logits, done, gradient)
        if last or share_done == 1:
            return
        if share_done > _CROWDED:
            left = (~done).nonzero().flatten()
            rows, clean, truth, delta = rows[left], clean[left], truth[left], delta[left]
            gradient, source = gradient[left], select(source, left)
        if zeros:
            gradient = without_zeros(gradient, source)
        share, length = None, _STEP * threat.eps / steps
        if threat.norm == "l1":
            width = threat.filled(gradient, clean) - number % 2
            share = width.clamp(min=1) / gradient[0].numel()
            length = threat.eps * (1 - number / steps)
        move = threat.steepest(gradient, share=share)
        delta = threat.project(delta.add(move, alpha=length if step is None else step), clean)


def loss_gradient(
    network: Network, point: Tensor, labels: Tensor, loss: Loss, *, forward_only: bool = False
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Returns the gradient of the loss at the points (B, C, H, W), the logits (B, K) and the losses
    (B,), all detached. `forward_only` skips the backward pass and returns a gradient of zeros."""
    if forward_only:
        with torch.no_grad():
            logits = network(point)
            return torch.zeros_like(point), (logits, loss(logits, labels))
    seen: list[Tensor] = []

    def objective(logits: Tensor) -> Tensor:
        losses = loss(logits, labels)
        seen.extend((logits.detach(), losses.detach()))
        return losses.sum()

    gradient = gradient_at(network, point, objective)
    return gradient, (seen[0], seen[1])


def without_zeros(gradient: Tensor, source: Source) -> Tensor:
    """Replaces gradients that are 0 everywhere by random ones: a flat loss must not end an
    attack."""
    rows = flat(gradient).nonzero().flatten()
    if len(rows):
        gradient = gradient.clone()
        gradient[rows] = normal(gradient[rows], select(source, rows))
    return gradient


def gradient_at(network: Network, point: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the gradient of an objective of the logits at images (B, C, H, W); arguments as in
    `ascend`."""
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(network(point)), point)
    return finite(gradient)


def finite(gradient: Tensor) -> Tensor:
    """Replaces NaN by 0 and clamps infinities: a pixel without a derivative must not freeze the
    others."""
    return gradient.nan_to_num(0.0, _HUGE, -_HUGE)

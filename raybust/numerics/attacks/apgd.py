"""APGD: projected gradient ascent with momentum and an adaptive step size.

Croce and Hein (2020, arXiv:2003.01690, algorithm 1) for Linf and L2; Croce and Hein (2021,
arXiv:2103.01208) for L1, where the step is sparse, its width follows the sparsity of the best
point, and the radius shrinks from 3 eps over 2 eps to eps. The constants are theirs; the minimum
width of an L1 step, what the ball can fill, is our choice, see `pgd`. Fooled examples leave the
batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from raybust.numerics.attacks.abreast import ended, plan
from raybust.numerics.attacks.ascent import Network, at_least_one, loss_gradient, without_zeros
from raybust.numerics.attacks.losses import Loss, check_classes, cross_entropy, targeted_dlr
from raybust.numerics.attacks.outcome import Outcome, read
from raybust.numerics.balls.source import Source, normal, select, split
from raybust.numerics.balls.threat import Threat

_MOMENTUM = 0.75
_RISING = 0.75
_FIRST, _SHORTER, _LEAST = 0.22, 0.03, 0.06
_L1_CHECK, _L1_THINNER, _L1_SHRUNK = 0.04, 1.5, 0.95
_L1_REDUCE, _L1_SMALLEST = 1.5, 0.1
_L1_RADII = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
_CROWDED = 0.25


def apgd(
    network: Network,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    source: Source,
    *,
    loss: Loss = cross_entropy,
    steps: int = 100,
    restarts: int = 1,
) -> Outcome:
    """Attacks a batch; an example is done when an iterate fools the network.

    Args:
        network: images (B, C, H, W) in [0, 1] to logits (B, K).
        images: (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        threat: allowed perturbations.
        source: randomness of the starts, one generator or one per example.
        loss: loss to maximize: `cross_entropy`, `dlr`, `margin`.
        steps: gradient steps per run, >= 1.
        restarts: runs, each from a new start.

    Raises:
        RequestError: fewer than one step or restart.
    """
    at_least_one(steps=steps, restarts=restarts)
    outcome = Outcome.begin(images)
    for _ in range(restarts):
        rows = outcome.open
        if not len(rows):
            break
        found = _attack(network, images[rows], labels[rows], threat, select(source, rows),
                        loss=loss, steps=steps)  # fmt: skip
        outcome.merge(rows, found)
    return outcome


def apgd_targeted(
    network: Network,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    source: Source,
    *,
    steps: int = 100,
    targets: int = 9,
    restarts: int = 1,
) -> Outcome:
    """Attacks a batch with targeted DLR, starting with the likeliest wrong class; see `apgd`.

    Runs go side by side where the batch has room for them; every run has draws of its own.

    Args:
        network: images (B, C, H, W) in [0, 1] to logits (B, K), K >= 4.
        images: (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        threat: allowed perturbations.
        source: randomness of the starts, one generator or one per example.
        steps: gradient steps per run, >= 1.
        targets: classes to try, capped at K - 1.
        restarts: runs per class, each from a new start.

    Raises:
        RequestError: fewer than four classes, one step, one target or one restart.
    """
    at_least_one(steps=steps, targets=targets, restarts=restarts)
    with torch.no_grad():
        logits = network(images)
    check_classes(logits, 4, "targeted APGD")
    ranked = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
    outcome = Outcome.begin(images)
    classes = min(targets, logits.shape[1] - 1)
    runs, first = classes * restarts, 0
    sources = split(source, runs)
    while first < runs and len(rows := outcome.open):
        at, number = plan(rows, images, first, runs)
        abreast, own = len(at) // len(rows), select(sources, at * runs + number)
        found = _attack(network, images[at], labels[at], threat, own, steps=steps,
                        targets=ranked[at, number % classes], abreast=abreast)  # fmt: skip
        for run in range(abreast):
            outcome.merge(rows, found.select(slice(run, None, abreast)))
        first += abreast
    return outcome


def _attack(
    network: Network,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    source: Source,
    *,
    steps: int,
    loss: Loss = cross_entropy,
    targets: Tensor | None = None,
    abreast: int = 1,
) -> Outcome:
    """Runs once on every example, `abreast` of which share an image; for L1 over shrinking radii,
    of which the last one counts."""
    if threat.norm != "l1":
        state = _State.begin(images, labels, targets, threat.sample(images, source), source)
        return _run(network, state, threat, loss, steps, abreast=abreast)
    start = normal(images, source)
    done = 0
    for number, (factor, portion) in enumerate(_L1_RADII):
        last = number == len(_L1_RADII) - 1
        length = steps - done if last else min(math.ceil(portion * steps), steps - 1 - done)
        done += length
        wide = threat.scaled(factor)
        start = wide.project(start, images)
        state = _State.begin(images, labels, targets, start, source)
        state.support = _support(start)
        state.share = state.support / _L1_THINNER
        found = _run(network, state, wide, loss, length, abreast=abreast, until_fooled=last)
        start = found.images - images
    return found


@dataclass(eq=False)
class _State:
    """The state of a run on R examples; all tensors have R rows."""

    rows: Tensor
    images: Tensor
    labels: Tensor
    targets: Tensor
    delta: Tensor
    previous: Tensor
    gradient: Tensor
    best_delta: Tensor
    best_gradient: Tensor
    best: Tensor
    loss: Tensor
    step: Tensor
    rises: Tensor
    best_at_check: Tensor
    reduced: Tensor
    share: Tensor
    support: Tensor
    source: Source
    targeted: bool

    @classmethod
    def begin(
        cls, images: Tensor, labels: Tensor, targets: Tensor | None, delta: Tensor, source: Source
    ) -> _State:
        count, zeros = len(images), images.new_zeros(len(images))
        return cls(
            rows=torch.arange(count, device=images.device),
            images=images, labels=labels, targets=labels if targets is None else targets,
            delta=delta, previous=delta, gradient=torch.zeros_like(delta),
            best_delta=delta, best_gradient=torch.zeros_like(delta),
            best=zeros - torch.inf, loss=zeros - torch.inf, step=zeros, rises=zeros,
            best_at_check=zeros - torch.inf,
            reduced=torch.ones(count, dtype=torch.bool, device=images.device),
            share=zeros + 1.0, support=zeros + 1.0, source=source,
            targeted=targets is not None,
        )  # fmt: skip

    def keep(self, rows: Tensor) -> None:
        """Drops all examples except `rows`."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                setattr(self, field.name, value[rows])
        self.source = select(self.source, rows)

    def rewind(self, which: Tensor) -> None:
        """Returns the examples in `which`, bool (R,), to their best points."""
        column = which.reshape(-1, *[1] * (self.delta.ndim - 1))
        self.delta = torch.where(column, self.best_delta, self.delta)
        self.gradient = torch.where(column, self.best_gradient, self.gradient)


def _run(
    network: Network,
    state: _State,
    threat: Threat,
    loss: Loss,
    steps: int,
    *,
    abreast: int = 1,
    until_fooled: bool = True,
) -> Outcome:
    """Ascends from `state.delta`; the outcome has the best points, or the first that fooled.

    Args:
        network: see `apgd`.
        state: initial state.
        threat: threat of this run.
        loss: loss to maximize, unless the state has targets.
        steps: gradient steps.
        abreast: runs that share an image, next to each other; see `ended`.
        until_fooled: False only searches for the best points and keeps all examples.
    """
    outcome = Outcome.begin(state.images)
    full = threat.eps * (1.0 if threat.norm == "l1" else 2.0)
    state.step = torch.full_like(state.best, full)
    checks = _checkpoints(steps, threat.norm)
    check, before = next(checks), 0
    for number in range(steps + 1):
        if number:
            _move(state, threat, number)
        done, share = _look(network, state, outcome, loss=loss, number=number, abreast=abreast,
                            last=number == steps, until_fooled=until_fooled)  # fmt: skip
        if number == steps or share == 1:
            break
        if share > _CROWDED:
            state.keep((~done).nonzero().flatten())
        if number == check:
            if threat.norm == "l1":
                _adapt_l1(state, full)
            else:
                _adapt(state, check - before)
            check, before = next(checks), check
    return outcome


def _look(
    network: Network,
    state: _State,
    outcome: Outcome,
    *,
    loss: Loss,
    number: int,
    abreast: int,
    last: bool,
    until_fooled: bool,
) -> tuple[Tensor, float]:
    """Evaluates the current points; returns which examples are done, bool (R,), and their share."""
    point = state.images + state.delta
    measure = partial(targeted_dlr, targets=state.targets) if state.targeted else loss
    gradient, (logits, losses) = loss_gradient(
        network, point, state.labels, measure, forward_only=last
    )
    labels = state.labels if until_fooled else logits.argmax(1)
    outcome.see(state.rows, point, logits, labels, step=number, loss=losses)
    done = ended(outcome.fooled, abreast)[state.rows]
    share, zeros = read(logits, done, gradient)
    state.gradient = without_zeros(gradient, state.source) if zeros else gradient
    state.rises = state.rises + (losses > state.loss)
    state.loss = losses
    better = losses > state.best
    column = better.reshape(-1, *[1] * (point.ndim - 1))
    state.best = torch.where(better, losses, state.best)
    state.best_delta = torch.where(column, state.delta, state.best_delta)
    state.best_gradient = torch.where(column, state.gradient, state.best_gradient)
    if number == 0:
        state.rises, state.best_at_check = torch.zeros_like(state.rises), state.best
    return done, share


def _move(state: _State, threat: Threat, number: int) -> None:
    """Takes step `number`, with momentum from the second on, except for L1."""
    length = state.step.reshape(-1, *[1] * (state.delta.ndim - 1))
    if threat.norm == "l1":
        fills = (threat.filled(state.gradient, state.images) - number % 2).clamp(min=1)
        share = torch.maximum(state.share, fills / state.gradient[0].numel())
        ahead = threat.steepest(state.gradient, share=share)
    else:
        ahead = threat.steepest(state.gradient)
    moved = threat.project(state.delta + length * ahead, state.images)
    if number > 1 and threat.norm != "l1":
        drift = (1 - _MOMENTUM) * (state.delta - state.previous)
        mixed = state.delta + _MOMENTUM * (moved - state.delta) + drift
        moved = threat.project(mixed, state.images)
    state.previous, state.delta = state.delta, moved


def _checkpoints(steps: int, norm: str) -> Iterator[int]:
    """Yields the step numbers after which step sizes are adapted, endlessly."""
    gap = max(int((_L1_CHECK if norm == "l1" else _FIRST) * steps), 1)
    at = 0
    while True:
        at += gap
        yield at
        if norm != "l1":
            gap = max(gap - max(int(_SHORTER * steps), 1), max(int(_LEAST * steps), 1))


def _adapt(state: _State, window: int) -> None:
    """Halves the step and rewinds if too few of the last `window` steps rose, or if nothing has
    improved since a check without reduction."""
    stalls = state.rises <= _RISING * window
    stuck = ~state.reduced & (state.best_at_check >= state.best)
    reduce = stalls | stuck
    state.step = torch.where(reduce, state.step / 2, state.step)
    state.rewind(reduce)
    state.reduced, state.best_at_check = reduce, state.best
    state.rises = torch.zeros_like(state.rises)


def _adapt_l1(state: _State, full: float) -> None:
    """Sets the width of the step from the support of the best point; resets the step size if the
    support shrank, else reduces it."""
    support = _support(state.best_delta)
    shrank = support < _L1_SHRUNK * state.support
    reduced = (state.step / _L1_REDUCE).clamp(min=_L1_SMALLEST * full)
    state.step = torch.where(shrank, torch.full_like(state.step, full), reduced)
    state.share, state.support = support / _L1_THINNER, support
    state.rewind(shrank)


def _support(delta: Tensor) -> Tensor:
    """Returns the share of coordinates that each perturbation changes: (R,)."""
    return (delta != 0).flatten(1).to(delta.dtype).mean(1)

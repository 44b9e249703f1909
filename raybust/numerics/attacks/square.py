"""Square: random search over square windows, from logits without gradients.

Andriushchenko et al. (2020, arXiv:1912.00049) for Linf and L2, Croce and Hein (2021,
arXiv:2103.01208) for L1. If it beats gradients, gradients are masked. Each example draws its
windows from its own generator.

Few queries raise the loss, so several are tried at once, as if none of them did. What follows the
first that does is thrown away: the search is that of one query at a time, in fewer passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from raybust.numerics.attacks.abreast import room
from raybust.numerics.attacks.ascent import Network, at_least_one
from raybust.numerics.attacks.losses import margin
from raybust.numerics.attacks.outcome import Outcome, read
from raybust.numerics.balls.source import Source, select, uniform
from raybust.numerics.balls.threat import Norm, Threat

_AREA = 0.8
_HALVINGS = tuple(count / 5000 for count in (10, 50, 200, 500, 1000, 2000, 4000))
"""Shares of the queries after which the window area is halved, as in AutoAttack."""
_DRAWN_AHEAD = 100
_FEW, _MANY = 0.25, 0.5
"""Shares of examples whose loss rose, between which the number of queries at once stays."""
_FADE = {"l2": 2, "l1": 4}
_TINY = 1e-12


@torch.no_grad()
def square(
    network: Network,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    source: Source,
    *,
    queries: int = 5000,
) -> Outcome:
    """Attacks a batch; an example is done when a query fools the network.

    Args:
        network: images (B, C, H, W) in [0, 1] to logits (B, K).
        images: (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        threat: allowed perturbations.
        source: source of randomness, one generator or one per example.
        queries: maximum forward passes per example, >= 1; those thrown away do not count.

    Raises:
        RequestError: fewer than one query.
    """
    at_least_one(queries=queries)
    search = _Search(network, images, labels, threat, source)
    for first, count, side in _stretches(queries, images, threat):
        if not search.narrow():
            break
        search.advance(first, count, side)
    return search.outcome


def _stretches(queries: int, images: Tensor, threat: Threat) -> Iterator[tuple[int, int, int]]:
    """Yields (first query, number of queries, window side) of the runs of queries after the start
    that share a side and a table of draws."""

    def shared(number: int) -> tuple[int, int]:
        return _side(number / queries, images, threat), (number - 1) // _DRAWN_AHEAD

    for (side, _), group in groupby(range(1, queries), shared):
        numbers = list(group)
        yield numbers[0], len(numbers), side


class _Search:
    """The state of the search: of each open example the best perturbation and its loss."""

    def __init__(
        self, network: Network, images: Tensor, labels: Tensor, threat: Threat, source: Source
    ) -> None:
        self.network, self.threat, self.source = network, threat, source
        self.outcome = Outcome.begin(images)
        self.rows = torch.arange(len(images), device=images.device)
        self.clean, self.truth = images, labels
        start = _stripes if threat.norm == "linf" else _tiles
        self.propose = _square if threat.norm == "linf" else _bump
        self.delta = start(images, threat, source)
        self.most = room(images)
        self.at_once = 1
        self.table = torch.empty(0)
        points = images + self.delta
        logits = network(points)
        self.best = margin(logits, labels)
        self.done = self.outcome.see(self.rows, points, logits, labels, step=0, loss=self.best)
        read(logits, self.done)

    def narrow(self) -> bool:
        """Drops the examples that are done; returns whether any is left."""
        left = (~self.done).nonzero().flatten()
        if len(left) < len(self.rows):
            self.source = select(self.source, left)
            for name in ("rows", "clean", "truth", "delta", "best", "done"):
                setattr(self, name, getattr(self, name)[left])
            if len(self.table):
                self.table = self.table[left]
        return len(left) > 0

    def advance(self, first: int, count: int, side: int) -> None:
        """Spends a stretch of queries: every open example goes through it at its own pace."""
        start = (first - 1) % _DRAWN_AHEAD
        if start == 0:
            like = self.clean.new_empty(len(self.rows), _DRAWN_AHEAD, _draws(self.clean))
            self.table = uniform(like, self.source)
        table = self.table[:, start : start + count]
        used = torch.zeros_like(self.rows)
        while len(live := ((used < count) & ~self.done).nonzero().flatten()):
            left = count - int(used[live].min())
            number = max(min(self.at_once, self.most // len(live), left), 1)
            ahead = used[live, None] + torch.arange(number, device=live.device)
            draws = table[live[:, None], ahead.clamp(max=count - 1)]
            used[live] = self._try(live, ahead, draws, valid=ahead < count, side=side, first=first)

    def _try(
        self, live: Tensor, ahead: Tensor, draws: Tensor, *, valid: Tensor, side: int, first: int
    ) -> Tensor:
        """Tries some queries of each live example on its present perturbation, and keeps the first
        that raises its loss; returns how many queries of the stretch it has used then."""
        number = ahead.shape[1]
        clean, truth = (x[live].repeat_interleave(number, 0) for x in (self.clean, self.truth))
        delta = self.delta[live].repeat_interleave(number, 0)
        proposals = self.propose(delta, clean, self.threat, draws.flatten(0, 1), side)
        points = clean + proposals
        logits = self.network(points)
        loss = margin(logits, truth)
        better = (loss > self.best[live].repeat_interleave(number)) | (logits.argmax(1) != truth)
        better = better.reshape(valid.shape) & valid
        raised, which = better.any(1), better.long().argmax(1)
        picked = torch.arange(len(live), device=live.device) * number + which
        self.done[live] = self.outcome.see(
            self.rows[live], points[picked], logits[picked], self.truth[live],
            step=first + ahead.gather(1, which[:, None])[:, 0], loss=loss[picked],
        )  # fmt: skip
        column = raised.reshape(-1, 1, 1, 1)
        self.delta[live] = torch.where(column, proposals[picked], self.delta[live])
        self.best[live] = torch.where(raised, loss[picked], self.best[live])
        share, _ = read(logits, raised)
        if share < _FEW:
            self.at_once = min(2 * self.at_once, _DRAWN_AHEAD)
        elif share > _MANY:
            self.at_once = max(self.at_once // 2, 1)
        return ahead[:, 0] + torch.where(raised, which + 1, valid.sum(1))


def _draws(images: Tensor) -> int:
    """Returns the uniform draws per query: two windows, an orientation, a sign per channel."""
    return 5 + images.shape[1]


def _side(done: float, images: Tensor, threat: Threat) -> int:
    """Returns the side of the window in pixels after a share of the queries."""
    area = _AREA / 2 ** sum(done > share for share in _HALVINGS)
    height, width = images.shape[2:]
    side = max(round(math.sqrt(area * height * width)), 1)
    if threat.norm != "linf":
        side = max(side, 3) | 1
    return min(side, height, width)


def _stripes(images: Tensor, threat: Threat, source: Source) -> Tensor:
    """Returns vertical stripes of +-eps, the start for Linf."""
    signs = _signs(uniform(images[:, :, :1], source))
    return threat.clip((threat.eps * signs).expand_as(images), images)


def _square(delta: Tensor, images: Tensor, threat: Threat, draws: Tensor, side: int) -> Tensor:
    """Returns the perturbation with one window set to +-eps, a sign per channel."""
    index = _window(draws[:, :2], images, side)
    signs = _signs(draws[:, 5:, None]).expand(-1, -1, side * side)
    pixels = images.flatten(2).gather(2, index)
    values = (pixels + threat.eps * signs).clamp(0.0, 1.0) - pixels if threat.box else (
        threat.eps * signs)  # fmt: skip
    return delta.flatten(2).scatter(2, index, values).reshape(images.shape)


def _tiles(images: Tensor, threat: Threat, source: Source) -> Tensor:
    """Returns a grid of bumps with random signs, the start for L2 and L1."""
    count, channels, height, width = images.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    draws = uniform(images.new_empty(count, down * across, channels + 1), source)
    turned = (draws[:, :, :1, None, None] > 0.5).expand(-1, -1, channels, side, side)
    shape = _shape(side, threat.norm, images.dtype, images.device)
    tiles = torch.where(turned, shape.T, shape) * _signs(draws[:, :, 1:, None, None])
    grid = tiles.reshape(count, down, across, channels, side, side)
    delta = torch.zeros_like(images)
    top, left = (height - side * down) // 2, (width - side * across) // 2
    delta[:, :, top : top + side * down, left : left + side * across] = grid.permute(
        0, 3, 1, 4, 2, 5
    ).reshape(count, channels, side * down, side * across)
    return _fill(delta, images, threat)


def _bump(delta: Tensor, images: Tensor, threat: Threat, draws: Tensor, side: int) -> Tensor:
    """Returns the perturbation with a bump added to a first window and the mass of a second one
    moved there."""
    order = 2 if threat.norm == "l2" else 1
    channels = images.shape[1]
    first, second = (_window(draws[:, at : at + 2], images, side) for at in (0, 2))
    flat = delta.flatten(2)
    old = flat.gather(2, first)
    emptied = flat.scatter(2, second, 0.0).scatter(2, first, 0.0)
    shape = _shape(side, threat.norm, images.dtype, images.device)
    turned = (draws[:, 4] > 0.5)[:, None, None, None]
    bump = torch.where(turned, shape.T, shape).flatten(2) * _signs(draws[:, 5:, None])
    bump = bump + old / (_mass(old, order) + _TINY) ** (1 / order)
    moved = (_mass(flat, order) - _mass(emptied, order)).clamp(min=0.0)
    spare = (threat.eps**order - _mass(flat, order).sum(1, keepdim=True)).clamp(min=0.0)
    allowed = spare / channels + moved
    if order == 1:
        allowed = allowed * channels
    bump = bump / (_mass(bump, order) + _TINY) ** (1 / order) * allowed ** (1 / order)
    return _fill(emptied.scatter(2, first, bump).reshape(images.shape), images, threat)


def _fill(delta: Tensor, images: Tensor, threat: Threat) -> Tensor:
    """Scales the perturbation to the radius and clips it, or projects it (L1)."""
    if threat.norm == "l1":
        return threat.project(delta, images)
    norms = threat.size(delta).reshape(-1, 1, 1, 1)
    return threat.project(delta * (2 * threat.eps / (norms + _TINY)), images, exact=False)


def _mass(values: Tensor, order: int) -> Tensor:
    """Returns the sum of |values|^order over the last axis, keeping it."""
    return (values.square() if order == 2 else values.abs()).sum(-1, keepdim=True)


def _window(corner: Tensor, images: Tensor, side: int) -> Tensor:
    """Returns the flat indices (R, C, side^2) of windows at random corners, given draws (R, 2)."""
    channels, height, width = images.shape[1:]
    top = (corner[:, 0] * (height - side + 1)).long()
    left = (corner[:, 1] * (width - side + 1)).long()
    step = torch.arange(side, device=images.device)
    lines = (top[:, None] + step)[:, :, None] * width
    flat = (lines + (left[:, None] + step)[:, None, :]).flatten(1)
    return flat[:, None].expand(-1, channels, -1)


def _signs(draws: Tensor) -> Tensor:
    return torch.where(draws < 0.5, -1.0, 1.0).to(draws.dtype)


@lru_cache(maxsize=64)
def _shape(side: int, norm: Norm, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns the (side, side) bump of norm 1: two pyramids of opposite signs, one above the
    other, that decay with power 2 (L2) or 4 (L1) of the distance from their centers."""
    halves = [sign * _pyramid(rows, side, _FADE[norm])
              for rows, sign in ((side // 2, 1.0), (side - side // 2, -1.0)) if rows]  # fmt: skip
    shape = torch.cat(halves).to(device, dtype)
    return shape / (shape.norm() if norm == "l2" else shape.abs().sum())


def _pyramid(rows: int, columns: int, power: int) -> Tensor:
    """Returns nested rectangles (rows, columns) around the center, each adding 1 / k^power."""
    heights = torch.zeros(rows, columns)
    top, left = rows // 2, columns // 2
    for ring in range(max(rows // 2 + 1, columns // 2 + 1)):
        size = 2 * ring + 1
        above, before = max(top - ring, 0), max(left - ring, 0)
        heights[above : top - ring + size, before : left - ring + size] += 1 / (ring + 1) ** power
    return heights / (heights.norm() if power == 2 else heights.sum())

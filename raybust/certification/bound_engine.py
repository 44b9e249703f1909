"""Certifies examples by sound bounds of the network, and proves that finished rows are of it.

The radius of an example is found by halving [0, 1]: the largest one tried for which the margin's
lower bound is above 0. A proof for a ball holds for all smaller ones, so this is sound even where
the bounds are not monotone in the radius.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from raybust import devices, identity
from raybust.certification.bound_log import BoundName, BoundProtocol, BoundRow
from raybust.certification.guards import check_images, check_logits, check_mode
from raybust.disk.rowlog import OtherProtocolError
from raybust.errors import RequestError, WorkError
from raybust.numerics.relaxation import certified_margin, trace

ROWS, SECONDS = 4, 1.0
"""Finished rows that are recomputed: the two with the least margins, the first and the last, then
others at random within so many seconds (our choice)."""

Recompute = Callable[[list[int]], Sequence[BoundRow]]
"""Example indices to certificates."""


def check_bounds(network: nn.Module, shape: Sequence[int], bound: BoundName) -> None:
    """Rejects a network that the bounds cannot handle.

    Args:
        network: in eval mode.
        shape: (C, H, W) of an image.
        bound: how its margins are bounded.

    Raises:
        RequestError: names the step that has no rule.
    """
    check_mode(network)
    images = identity.fixed_images(shape)
    own = next(network.parameters(), next(network.buffers(), images))
    images = images[:1].to(own.device)
    top = torch.zeros(1, dtype=torch.int64, device=own.device)
    with devices.arithmetic(own.device):
        _margins(_traced(network), network, images, top, eps=0.0, bound=bound)


def bound_examples(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    indices: Sequence[int] | Tensor,
    protocol: BoundProtocol,
) -> Iterator[BoundRow]:
    """Yields the certificates of a shard.

    Args:
        network: (B, C, H, W) in [0, 1] to logits (B, K), in eval mode, on the images' device.
        images: float (N, C, H, W) in [0, 1].
        labels: int (N,).
        indices: (N,) index of each example in its dataset.
        protocol: all other settings.

    Raises:
        RequestError: train mode, a step without a rule, images outside [0, 1], a device type other
            than the protocol's.
        WorkError: NaN outputs. Rows yielded before are valid.
    """
    if images.device.type != protocol.device:
        raise RequestError(
            f"device: got {images.device.type}, but the protocol is for {protocol.device}, whose"
            " arithmetic differs"
        )
    check_images(images, protocol.shape)
    check_mode(network)
    graph, places = _traced(network), torch.arange(len(images), device=images.device)
    numbers = [int(index) for index in indices]
    for part in torch.split(places, protocol.batch):
        began = time.perf_counter()
        with devices.arithmetic(images.device):
            tops = _classes(network, images[part], [numbers[place] for place in part.tolist()])
            radii, margins = _radii(graph, network, images[part], tops, protocol)
        found = zip(tops.tolist(), radii.tolist(), margins.tolist(), strict=True)
        seconds = (time.perf_counter() - began) / len(part)
        for place, (top, radius, margin) in zip(part.tolist(), found, strict=True):
            yield BoundRow(
                idx=numbers[place],
                label=int(labels[place]),
                predict=top,
                radius=radius,
                time=seconds,
                margin=margin,
            )


@torch.no_grad()
def _classes(network: nn.Module, images: Tensor, numbers: Sequence[int]) -> Tensor:
    """Returns the network's classes (B,)."""
    logits = network(images)
    check_logits(logits.nan_to_num(), len(images))
    wrong = logits.isnan().any(1).nonzero().flatten().tolist()
    if wrong:
        raise WorkError(
            f"example {numbers[wrong[0]]}: the network's outputs are NaN; earlier rows are kept"
        )
    tops: Tensor = logits.argmax(1)
    return tops


def _radii(
    graph: fx.Graph, network: nn.Module, images: Tensor, tops: Tensor, protocol: BoundProtocol
) -> tuple[Tensor, Tensor]:
    """Returns the largest radius tried that is proven for each image, and its margin, (B,)."""
    radii = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    margins = torch.zeros_like(radii)
    for tried in protocol.targets or [0.5**step for step in range(1, protocol.steps + 1)]:
        eps = torch.full_like(radii, tried) if protocol.targets else radii + tried
        low = _margins(graph, network, images, tops, eps=eps, bound=protocol.bound)
        proven = low > 0
        radii, margins = eps.where(proven, radii), low.double().where(proven, margins)
    return radii, margins


def _margins(
    graph: fx.Graph,
    network: nn.Module,
    images: Tensor,
    tops: Tensor,
    *,
    eps: float | Tensor,
    bound: BoundName,
) -> Tensor:
    try:
        return certified_margin(graph, network, images, tops, eps=eps, bound=bound)
    except ValueError as error:
        raise _without_bounds(bound, error) from None


def _traced(network: nn.Module) -> fx.Graph:
    try:
        return trace(network)
    except ValueError as error:
        raise _without_bounds("bounds", error) from None


def _without_bounds(bound: str, error: ValueError) -> RequestError:
    return RequestError(
        f"certify.bound: {bound} cannot certify this network: {error}; certify.bound=smoothing can"
    )


def check_bound_rows(
    rows: Sequence[BoundRow], protocol: BoundProtocol, path: Path, recompute: Recompute
) -> None:
    """Recomputes a few finished rows.

    Args:
        rows: finished rows of a log, in order.
        protocol: the log's.
        path: the log's, for the message.
        recompute: computes certificates.

    Raises:
        OtherProtocolError: the current network gives other ones.
    """
    doubtful = sorted(rows, key=lambda row: row.margin)[:2]
    always = {row.idx: row for row in (*doubtful, rows[0], rows[-1])}
    mean = sum(row.time for row in rows) / len(rows)
    others = [row for row in rows if row.idx not in always]
    count = min(len(others), ROWS + int(SECONDS / max(mean, 0.01)))
    chosen = [*always.values(), *random.SystemRandom().sample(others, count)]
    for old, new in zip(chosen, recompute([row.idx for row in chosen]), strict=True):
        if not old.agrees(new, protocol):
            raise OtherProtocolError(
                [f"another function (example {old.idx} has another certificate when recomputed)"],
                path,
            )

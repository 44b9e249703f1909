"""Rounds of method `geodesic`: synthetic images that are found once and stored for several epochs.

Only the locations depend on the network. They are what a checkpoint keeps; couplings and images
follow from them, the round's generator and the training images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raybust.methods.base import Round, StepContext
from raybust.methods.geodesic.batch import check_finite, probabilities_of
from raybust.numerics.transport import (
    Curves,
    Group,
    Stored,
    decoded_accuracy,
    gathered,
    on_host_with,
    opposite,
    solved,
    stacked,
)

if TYPE_CHECKING:
    from raybust.methods.geodesic import Geodesic

Examples = tuple[Tensor, Tensor]
"""Images (N, C, H, W) and labels, int64 (N,)."""
_PASSES = "geodesic/other_passes"
_BLOCK = 512
"""Sources whose locations a round searches at once."""


def begun(
    method: Geodesic,
    network: nn.Module,
    examples: Examples,
    context: StepContext,
    found: Tensor | None,
) -> Round:
    """Returns a round over all examples; see `Geodesic.store`."""
    draw, known = on_host_with(context.generator, examples[1])
    classes = torch.zeros_like(known) if method.pairing == "kmixup" else known
    groups = opposite(classes, method.pair_images // 2, method.copies, draw)
    return stored(method, network, examples, groups, context=context, found=found)


def stored(
    method: Geodesic,
    network: nn.Module,
    examples: Examples,
    groups: list[Group],
    *,
    context: StepContext,
    found: Tensor | None = None,
) -> Round:
    """Returns a round of given problems.

    Args:
        method: its settings.
        network: images to logits; restored afterwards.
        examples: images and labels.
        groups: positions of the examples, on the CPU.
        context: as in `Method.store`; receives the metrics unless the locations are known.
        found: locations (G,), if known.
    """
    images, targets = examples
    probabilities = probabilities_of(targets, images, context)
    number = max(1, _BLOCK // max(len(a) for a, _ in groups))
    places, made, labels, distances = [], [], [], []
    kept: list[Curves] = []
    for first in range(0, len(groups), number):
        at, block = gathered(groups[first : first + number])
        at = at.to(images.device)
        space = method.spaced(network, images[at], context)
        check_finite(images[at], space.cost)
        paths = solved(space.cost, block, targets[at], method.pairing, entropy=method.entropy)
        curves = method.curves(images[at], probabilities[at], paths, context.generator, space)
        if found is None:
            t = method.locate(network, curves.first(method.searched), context.generator)
        else:
            t = found[first : first + number].to(images)
        where = t[curves.pair]
        with torch.no_grad():
            made.append(curves.images(where))
        labels.append(curves.labels(where, method.label))
        places.append(t)
        distances.append(curves.distance())
        if method.penalty:
            kept.append(curves._replace(noise=0.0))
    if found is None:
        context.metrics["geodesic/location"] = torch.cat(places).mean()
        context.metrics["geodesic/distance"] = torch.stack(distances).mean()
        if method.space == "latent":
            accuracy = decoded_accuracy(network, curves)
            context.metrics["geodesic/reconstruction_accuracy"] = accuracy
        if _PASSES in context.metrics:
            context.metrics["geodesic/round_passes"] = context.metrics.pop(_PASSES)
    counts = tuple(len(a) for a, _ in groups)
    whole = stacked(kept) if kept else None
    return Round(torch.cat(places), Stored(torch.cat(made), torch.cat(labels), whole, counts))

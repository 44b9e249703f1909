"""What a network does along the geodesics of a batch: cross entropy at one location, variation of
its performance over all of them, from one forward pass.

One pass, because two before one backward pass move batch norm's statistics twice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from raybust.numerics.transport.curves import Curves, jittered, slope
from raybust.numerics.transport.interpolation import variation


def along(
    network: Callable[[Tensor], Tensor],
    curves: Curves,
    t: Tensor | None,
    generator: torch.Generator,
    *,
    rule: str = "soft",
    estimate: str | None = None,
    performance: str = "loss",
    segments: int = 4,
    power: int = 1,
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the mean cross entropy at t, a scalar, and the variation (pairs,) of the performance
    on each geodesic.

    Args:
        network: images to logits.
        curves: curves of this batch.
        t: location (M,) of each path; None for no cross entropy.
        generator: draws the grid, or the location of the slope.
        rule: label rule of the cross entropy, see `Curves.labels`.
        estimate: `differences` on a jittered grid; `gradient`, the slope at one uniform location;
            `printed`, that slope without the label's motion; None for no variation.
        performance: quantity of the differences, see `Curves.performance`.
        segments: number of differences.
        power: 1 for the total variation, 2 for the squared one.
    """
    grid = None
    inputs = [] if t is None else [curves.noisy(t)]
    if estimate == "differences":
        grid = jittered(segments, curves.start, generator)
        inputs += [curves.noisy(at) for at in grid]
    outputs = network(torch.cat(inputs)) if inputs else None
    logits = [] if outputs is None else list(torch.split(outputs, len(curves.start)))
    mixed = rough = None
    if t is not None:
        mixed = F.cross_entropy(logits.pop(0), curves.labels(t, rule))
    if grid is not None:
        at_grid = zip(logits, grid, strict=True)
        values = torch.stack([curves.performance(u, at, performance) for u, at in at_grid])
        rough = variation(values, grid, power).sum(-1)
    elif estimate is not None:
        like = curves.source
        at = torch.rand((), generator=generator, device=like.device).to(like)
        rough = slope(network, curves, at, label=estimate == "gradient").abs() ** power
    return mixed, rough

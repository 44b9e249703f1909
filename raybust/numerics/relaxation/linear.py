"""Backward linear bounds over a tape of boxes (CROWN: Zhang et al., 2018, arXiv:1811.00866).

`substitute` walks from an output to the input, or to where it is told to stop, and takes the
smallest value over the box there. `tightened` bounds every feature of a box so.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raybust.numerics.relaxation.box import Box, between
from raybust.numerics.relaxation.steps import Step, dot, room

_VALUES = 2**22
"""Coefficients of `tightened` at a time (our choice)."""
_DOUBLE = 2.0**-52


def substitute(box: Box, rows: Tensor, passes: Callable[[Step], bool]) -> Tensor:
    """Returns lower bounds (J, B) of rows @ features, in float64 if the box is widened.

    Args:
        box: the features.
        rows: (J, B, ...), coefficients of the box's features.
        passes: whether to walk back through a step, or to use the box of its output.
    """
    waiting: dict[Box, Tensor] = {box: rows}
    total = rows.new_zeros(rows.shape[:2])
    while waiting:
        at = max(waiting, key=lambda one: one.number)
        rows = waiting.pop(at)
        if at.step is None or not passes(at.step):
            total = total + _smallest(at, rows)
            continue
        parts, constant = at.step.backward(rows, at.sources)
        total = total + constant
        for source, part in zip(at.sources, parts, strict=True):
            if source not in waiting:
                waiting[source] = part
                continue
            waiting[source] = waiting[source] + part
            if source.unit:
                total = total - 2 * source.unit * room(waiting[source], source.extent, source)
    return total


def _smallest(box: Box, rows: Tensor) -> Tensor:
    """Returns the smallest value of rows @ features over a box."""
    low = dot(rows, box.center, box) - dot(rows.abs(), box.radius, box)
    if not box.setting.widen:
        return low
    return low - 4 * box.shape.numel() * _DOUBLE * room(rows, box.extent, box)


def tightened(box: Box) -> Box:
    """Returns a box intersected with the linear bounds of each of its features, at one backward
    pass per feature and side.

    Args:
        box: on its tape, the first box whose features are not yet bounded so.
    """
    count, images = box.shape.numel(), len(box.center)
    every = torch.eye(count, dtype=box.center.dtype, device=box.center.device)
    lower, upper = [], []
    for part in torch.split(every, max(1, _VALUES // (count * images))):
        rows = part.reshape(len(part), 1, *box.shape).expand(-1, images, *box.shape)
        lower.append(substitute(box, rows, _always))
        upper.append(-substitute(box, -rows, _always))
    shape = box.center.shape
    found = [torch.cat(side).T.reshape(shape) for side in (lower, upper)]
    if box.setting.widen:  # from float64, outward
        wider = [8 * box.unit * side.abs() for side in found]
        found = [(found[0] - wider[0]).to(box.center), (found[1] + wider[1]).to(box.center)]
    ends = box.ends
    low, high = torch.maximum(found[0], ends[0]), torch.minimum(found[1], ends[1])
    return between(low, high, box.setting, box.step, box.sources)


def _always(step: Step) -> bool:
    return True

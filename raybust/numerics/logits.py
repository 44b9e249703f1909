"""Whether two passes gave the same logits up to rounding.

A share of the largest logit would hide any change behind a class masked by -1e9, or behind an
offset of all classes. So the largest logit of each image is subtracted, which changes no class, and
each class is compared with its own spread over the images.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT32 = 2.0**-23
"""Spacing of float32 relative to its value."""

_CONSTANT = 0.01
"""Weight of a class's distance to the top beside its spread: a constant class has none."""
_ROUNDING = 16.0
"""Rounding errors of a logit, in spacings of its value (both our choice)."""


def logit_change(
    logits: Tensor, others: Tensor, share: float, spacing: float = FLOAT32
) -> tuple[float, float]:
    """Returns the change of a logit relative to its image's largest, and the allowed change: of the
    entry where their ratio is largest. NaN if an output is. Compares on the CPU.

    Args:
        logits: (B, K), B >= 1.
        others: (B, K), of the same images.
        share: allowed change as a share of a class's spread.
        spacing: of the arithmetic, relative to a value.
    """
    one, two = (part.cpu().double() for part in (logits, others))
    tops = one.amax(1, keepdim=True)
    first, second = one - tops, two - two.amax(1, keepdim=True)
    changes = torch.where(first == second, 0.0, (first - second).abs())
    spread = (first - first.mean(0)).abs() if len(first) > 1 else first.abs()
    scale = spread.nan_to_num(0.0).amax(0) + _CONSTANT * first.abs().amax(0)
    size = torch.maximum(one.abs().amax(0), tops.abs().amax())
    allowed = (share * scale + _ROUNDING * spacing * size).clamp(min=1e-30).expand_as(changes)
    worst = (changes / allowed).argmax()
    return float(changes.flatten()[worst]), float(allowed.flatten()[worst])

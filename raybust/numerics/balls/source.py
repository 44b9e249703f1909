"""Random draws for a batch, from one generator or from one for each example.

Training draws a batch from the generator of the step. Evaluation keys a generator by (seed,
example), so that an example's draws do not depend on the batch that it is in. Part of numerics:
tensors in, tensors out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Source = torch.Generator | Sequence[torch.Generator]
"""One generator on the tensors' device, or B generators on any device."""


def uniform(like: Tensor, source: Source) -> Tensor:
    """Returns draws from [0, 1) of the shape, dtype, device and layout of `like`, (B, ...)."""
    return _draw(torch.rand, like, source)


def normal(like: Tensor, source: Source) -> Tensor:
    """Returns draws from N(0, 1) of the shape, dtype, device and layout of `like`, (B, ...)."""
    return _draw(torch.randn, like, source)


def select(source: Source, rows: Tensor) -> Source:
    """Returns the source of the examples `rows` (int64, any number) of a batch."""
    if isinstance(source, torch.Generator):
        return source
    return [source[row] for row in rows.tolist()]


def _draw(draw: Callable[..., Tensor], like: Tensor, source: Source) -> Tensor:
    """Draws in the order of the indices, whatever the layout of `like` in memory."""
    if isinstance(source, torch.Generator):
        drawn = draw(like.shape, generator=source, device=like.device, dtype=like.dtype)
    else:
        assert len(source) == len(like), "one generator for each example"
        parts = [
            draw(like.shape[1:], generator=one, device=one.device, dtype=like.dtype)
            for one in source
        ]
        drawn = torch.stack(parts).to(like.device) if parts else torch.empty_like(like)
    return drawn if like.is_contiguous() else torch.empty_like(like).copy_(drawn)

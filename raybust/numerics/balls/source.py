"""Random draws for a batch, from one generator or one per example.

Training draws a batch from the generator of the step. Evaluation keys a generator by (seed,
example), so an example's draws do not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Source = torch.Generator | Sequence[torch.Generator]
"""One generator on the tensors' device, or B generators on any device."""


def uniform(like: Tensor, source: Source) -> Tensor:
    """Draws from U[0, 1) with the shape, dtype, device and layout of `like`, (B, ...)."""
    return _draw(torch.rand, like, source)


def normal(like: Tensor, source: Source) -> Tensor:
    """Draws from N(0, 1) with the shape, dtype, device and layout of `like`, (B, ...)."""
    return _draw(torch.randn, like, source)


def select(source: Source, rows: Tensor) -> Source:
    """Returns the source for the examples `rows` (int64, any number) of a batch."""
    if isinstance(source, torch.Generator):
        return source
    return [source[row] for row in rows.tolist()]


def split(source: Source, count: int) -> Source:
    """Returns sources for `count` independent runs on each example: the one generator, or
    B * count, example by example."""
    if isinstance(source, torch.Generator):
        return source
    made = []
    for one in source:
        seeds = torch.randint(2**63 - 1, (count,), generator=one, device=one.device)
        made += [torch.Generator(one.device).manual_seed(seed) for seed in seeds.tolist()]
    return made


def _draw(draw: Callable[..., Tensor], like: Tensor, source: Source) -> Tensor:
    """Draws in index order, whatever the memory layout of `like`."""
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

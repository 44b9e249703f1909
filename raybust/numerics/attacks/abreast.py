"""Runs of one attack on the same examples, side by side in one batch.

A small batch takes almost as long as a larger one, so runs toward several classes go side by side
as if one followed the other: a run ends once it or an earlier run of its example has succeeded, and
what later runs found counts for nothing. The search is that of one run after the other, in fewer
passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_IMAGES, _PIXELS = 256, 2**20
"""Most images and pixels of a batch; the attacked batch may have more (our choice)."""


def room(images: Tensor) -> int:
    """Returns how many images like these (B, C, H, W) go into one batch, at least B."""
    return max(len(images), min(_IMAGES, _PIXELS // images[0].numel()))


def plan(rows: Tensor, images: Tensor, first: int, runs: int) -> tuple[Tensor, Tensor]:
    """Returns the examples and the numbers, both int64 (R * A,), of the next A runs on R examples,
    example by example; A is at least 1.

    Args:
        rows: int64 (R,), the examples, R >= 1.
        images: (B, C, H, W), all examples.
        first: number of the next run.
        runs: number of all runs, more than `first`.
    """
    abreast = min(max(room(images) // len(rows), 1), runs - first)
    numbers = torch.arange(first, first + abreast, device=rows.device)
    return rows.repeat_interleave(abreast), numbers.repeat(len(rows))


def ended(success: Tensor, abreast: int) -> Tensor:
    """Returns which runs succeeded or come after one of their example that did: bool (R * A,).

    Args:
        success: bool (R * A,), example by example.
        abreast: A, the runs of an example.
    """
    return (success.reshape(-1, abreast).cumsum(1) > 0).flatten()

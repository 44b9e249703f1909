"""What an attack found, example by example, and the search that it was found in.

An evaluation asks of each example whether anything in the ball fools the network, so the first
success counts, and examples that are done leave the batch. Part of numerics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raybust.errors import WorkError


@dataclass(eq=False)
class Outcome:
    """Results of an attack on B examples.

    Attributes:
        images: (B, C, H, W): the first image that fooled the network; else the one of the largest
            loss that was seen.
        fooled: bool (B,).
        step: int64 (B,): gradient steps or queries in the run that fooled the network, 0 for its
            start; -1 where none did.
        loss: (B,): the largest loss seen, -inf before anything was.
    """

    images: Tensor
    fooled: Tensor
    step: Tensor
    loss: Tensor

    @classmethod
    def begin(cls, images: Tensor) -> Outcome:
        """Returns the outcome of an attack on images (B, C, H, W) that has seen nothing yet."""
        count, device = len(images), images.device
        return cls(
            images.detach().clone(),
            torch.zeros(count, dtype=torch.bool, device=device),
            torch.full((count,), -1, dtype=torch.int64, device=device),
            torch.full((count,), -torch.inf, dtype=images.dtype, device=device),
        )

    @property
    def open(self) -> Tensor:
        """Rows that are not fooled yet, int64."""
        return (~self.fooled).nonzero().flatten()

    def see(
        self,
        rows: Tensor,
        points: Tensor,
        logits: Tensor,
        labels: Tensor,
        *,
        step: int,
        loss: Tensor,
    ) -> Tensor:
        """Notes what the network said of some points; returns which of their examples are fooled
        by now: bool (R,).

        Args:
            rows: int64 (R,), the examples.
            points: (R, C, H, W), one for each, in the ball.
            logits: (R, K) of the points.
            labels: int64 (R,).
            step: steps of this run up to now.
            loss: (R,) of the points.

        Raises:
            WorkError: the logits are NaN.
        """
        if bool(logits.isnan().any()):
            raise WorkError("the network's outputs are NaN on images in the ball")
        before = self.fooled[rows]
        fooled = (logits.argmax(1) != labels) & ~before
        better = (loss > self.loss[rows]) & ~before
        kept = rows[fooled | better]
        if len(kept):
            self.images[kept] = points[fooled | better]
            self.loss[kept] = loss[fooled | better]
        first = rows[fooled]
        self.fooled[first] = True
        self.step[first] = step
        return fooled | before

    def merge(self, rows: Tensor, other: Outcome) -> None:
        """Takes over the outcome of a further attack on the examples `rows` where it is worse."""
        worse = (other.fooled & ~self.fooled[rows]) | (
            ~self.fooled[rows] & (other.loss > self.loss[rows])
        )
        at = rows[worse]
        self.images[at], self.loss[at] = other.images[worse], other.loss[worse]
        self.step[at], self.fooled[at] = other.step[worse], other.fooled[worse]

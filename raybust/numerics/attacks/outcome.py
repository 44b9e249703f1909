"""The result of an attack, per example.

Evaluation asks whether anything in the ball fools the network, so the first success counts and
examples that are done leave the batch.
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
        images: (B, C, H, W): the first image that fooled the network, else that of largest loss.
        fooled: bool (B,).
        step: int64 (B,): gradient steps or queries before the network was fooled in that run, 0 at
            its start; -1 if it was not fooled.
        loss: (B,): largest loss so far, initially -inf.
    """

    images: Tensor
    fooled: Tensor
    step: Tensor
    loss: Tensor

    @classmethod
    def begin(cls, images: Tensor) -> Outcome:
        """Returns the initial outcome of an attack on images (B, C, H, W)."""
        count, device = len(images), images.device
        return cls(
            images.detach().clone(),
            torch.zeros(count, dtype=torch.bool, device=device),
            torch.full((count,), -1, dtype=torch.int64, device=device),
            torch.full((count,), -torch.inf, dtype=images.dtype, device=device),
        )

    @property
    def open(self) -> Tensor:
        """Rows not fooled yet, int64."""
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
        """Records the network's outputs at some points; returns which of their examples are fooled
        so far: bool (R,).

        Args:
            rows: int64 (R,), the examples.
            points: (R, C, H, W), one per example, in the ball.
            logits: (R, K) at the points.
            labels: int64 (R,).
            step: steps of this run so far.
            loss: (R,) at the points.

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
        """Merges the outcome of another attack on the examples `rows` where it is worse."""
        worse = (other.fooled & ~self.fooled[rows]) | (
            ~self.fooled[rows] & (other.loss > self.loss[rows])
        )
        at = rows[worse]
        self.images[at], self.loss[at] = other.images[worse], other.loss[worse]
        self.step[at], self.fooled[at] = other.step[worse], other.fooled[worse]

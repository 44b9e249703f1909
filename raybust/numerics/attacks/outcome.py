"""The result of an attack, per example.

Evaluation asks whether anything in the ball fools the network, so the first success counts and
examples that are done leave the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raybust.errors import WorkError


def read(logits: Tensor, done: Tensor, gradient: Tensor | None = None) -> tuple[float, bool]:
    """Returns the share of examples that are done, 1 for all, and whether an example's gradient is
    0 everywhere: the one read of an attack step from the device.

    Args:
        logits: (R, K) at the current points.
        done: bool (R,).
        gradient: (R, C, H, W).

    Raises:
        WorkError: the logits are NaN.
    """
    parts = [logits.isnan().any().float(), done.float().mean()]
    if gradient is not None:
        parts.append(flat(gradient).any().float())
    nan, share, *zero = torch.stack(parts).tolist()
    if nan:
        raise WorkError("the network's outputs are NaN on images in the ball")
    return share, any(zero)


def flat(gradient: Tensor) -> Tensor:
    """Returns which gradients (R, C, H, W) are 0 everywhere, bool (R,)."""
    return gradient.abs().amax(tuple(range(1, gradient.ndim))) == 0


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
        step: int | Tensor,
        loss: Tensor,
    ) -> Tensor:
        """Records the network's outputs at some points; returns which of their examples are fooled
        so far: bool (R,). Reads nothing from the device.

        Args:
            rows: int64 (R,), the examples.
            points: (R, C, H, W), one per example, in the ball.
            logits: (R, K) at the points.
            labels: int64 (R,).
            step: steps of this run so far, of all examples or (R,).
            loss: (R,) at the points.
        """
        before = self.fooled[rows]
        fooled = (logits.argmax(1) != labels) & ~before
        kept = fooled | ((loss > self.loss[rows]) & ~before)
        column = kept.reshape(-1, *[1] * (points.ndim - 1))
        self.images[rows] = torch.where(column, points, self.images[rows])
        self.loss[rows] = torch.where(kept, loss, self.loss[rows])
        self.step[rows] = torch.where(fooled, step, self.step[rows])
        self.fooled[rows] = fooled | before
        return fooled | before

    def select(self, rows: Tensor | slice) -> Outcome:
        """Returns the results of some examples."""
        return Outcome(self.images[rows], self.fooled[rows], self.step[rows], self.loss[rows])

    def merge(self, rows: Tensor, other: Outcome) -> None:
        """Merges the outcome of another attack on the examples `rows` where it is worse. Reads
        nothing from the device."""
        before = self.fooled[rows]
        worse = ~before & (other.fooled | (other.loss > self.loss[rows]))
        column = worse.reshape(-1, *[1] * (self.images.ndim - 1))
        self.images[rows] = torch.where(column, other.images, self.images[rows])
        self.loss[rows] = torch.where(worse, other.loss, self.loss[rows])
        self.step[rows] = torch.where(worse, other.step, self.step[rows])
        self.fooled[rows] = before | other.fooled

"""Several networks as one: the mean of their logits, as in Horvath, Mueller, Fischer and Vechev,
"Boosting Randomized Smoothing with Variance Reduced Classifiers" (ICLR 2022, arXiv:2106.06946)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of several networks' logits. A pass is one pass through each."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        """Joins networks from images (B, C, H, W) to logits (B, K); at least one."""
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the mean logits (B, K) of images (B, C, H, W)."""
        first, *others = self.members
        total: Tensor = first(images)
        for member in others:
            total = total + member(images)
        return total / len(self.members)

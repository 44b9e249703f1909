"""The layer in front of every network: images in [0, 1] in, normalized images out.

Radii, eps and sigma are in units of pixels in [0, 1] everywhere in raybust, so the normalization
belongs to the network (Cohen, Rosenfeld and Kolter, 2019, arXiv:1902.02918, do the same) and is
saved with its weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(images - mean) / std per channel; `mean` and `std` are buffers of shape (C, 1, 1)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Keeps the statistics of the data.

        Args:
            mean: mean of each channel of images in [0, 1].
            std: standard deviation of each channel, > 0.
        """
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Returns normalized images (B, C, H, W) of images (B, C, H, W) in [0, 1]."""
        return (images - self.mean) / self.std


class Normalized(nn.Sequential):
    """A `normalize` layer and a `network`, in that order."""

    normalize: Normalize
    network: nn.Module
    notes: tuple[str, ...] = ()
    """What was adapted when the network was built."""

    def __init__(self, normalize: Normalize, network: nn.Module) -> None:
        """Joins them.

        Args:
            normalize: the layer for images in [0, 1].
            network: from normalized images (B, C, H, W) to logits (B, K).
        """
        super().__init__(OrderedDict(normalize=normalize, network=network))

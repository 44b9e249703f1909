"""The normalization layer that precedes every network and takes images in [0, 1].

All radii, eps and sigma in raybust are in units of pixels in [0, 1], so normalization is part of
the network, as in Cohen, Rosenfeld and Kolter (2019, arXiv:1902.02918), and saved with its weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Computes (images - mean) / std per channel; both are buffers of shape (C, 1, 1)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Stores the statistics of the data.

        Args:
            mean: per-channel mean of images in [0, 1].
            std: per-channel standard deviation, > 0.
        """
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    @property
    def constants(self) -> str:
        """Mean and standard deviation in words."""
        mean, std = (
            ", ".join(f"{value:.4g}" for value in part.flatten().tolist())
            for part in (self.mean, self.std)
        )
        return f"mean {mean}, std {std}"

    def forward(self, images: Tensor) -> Tensor:
        """Normalizes images (B, C, H, W) in [0, 1]."""
        return (images - self.mean) / self.std


class Normalized(nn.Sequential):
    """A `normalize` layer followed by a `network`."""

    normalize: Normalize
    network: nn.Module
    notes: tuple[str, ...] = ()
    """Adaptations made when the network was built."""

    def __init__(self, normalize: Normalize, network: nn.Module) -> None:
        """Chains the two modules.

        Args:
            normalize: normalization layer for images in [0, 1].
            network: maps normalized images (B, C, H, W) to logits (B, K).
        """
        super().__init__(OrderedDict(normalize=normalize, network=network))

"""The moving average of a network's weights, `train.ema`."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Updates the moving average of floating-point weights and buffers; copies all others."""
    means, values = average.state_dict().values(), network.state_dict().values()
    for mean, value in zip(means, values, strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)

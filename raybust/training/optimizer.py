"""Optimizer, learning-rate schedule and precision from the settings `train.*`.

Schedules are functions of the completed fraction of the run, so resuming needs no scheduler
state.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from raybust import devices
from raybust.config.schema import Train

_ONE_CYCLE_RISE, _ONE_CYCLE_START = 0.3, 25.0
_WARMUP_START = 0.01


def schedule(train: Train, progress: float) -> float:
    """Returns the learning-rate factor at a point of the run.

    `cosine`: (1 + cos(pi t)) / 2. `step`: gamma per milestone passed. `one_cycle`: from 1/25 up to
    1 over 30 % of the run, then down to 0, both as half cosines (Smith, 2018, with PyTorch's
    defaults). A warm-up multiplies by a linear rise from 0.01 (our choice), so that the first step
    is not lost.

    Args:
        train: names the schedule and its constants.
        progress: completed fraction of all steps, in [0, 1).
    """
    factor = 1.0
    if train.schedule == "cosine":
        factor = (1 + math.cos(math.pi * progress)) / 2
    elif train.schedule == "step":
        factor = train.gamma ** sum(progress >= milestone for milestone in train.milestones)
    elif train.schedule == "one_cycle":
        if progress < _ONE_CYCLE_RISE:
            rise = (1 - math.cos(math.pi * progress / _ONE_CYCLE_RISE)) / 2
            factor = (1 + (_ONE_CYCLE_START - 1) * rise) / _ONE_CYCLE_START
        else:
            fall = (progress - _ONE_CYCLE_RISE) / (1 - _ONE_CYCLE_RISE)
            factor = (1 + math.cos(math.pi * fall)) / 2
    if train.warmup and progress < train.warmup:
        factor *= _WARMUP_START + (1 - _WARMUP_START) * progress / train.warmup
    return factor


def autocast(train: Train, device: torch.device) -> torch.dtype | None:
    """Returns the network's compute dtype, or None for float32."""
    if train.precision == "bf16":
        return torch.bfloat16
    if train.precision == "auto" and devices.has_bf16(device):
        return torch.bfloat16
    return None


def optimizer(train: Train, network: nn.Module) -> torch.optim.Optimizer:
    """Returns SGD with Nesterov momentum or AdamW, without weight decay on vectors, biases and
    scales."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    undecayed = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": train.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.rate, betas=(train.momentum, 0.999), fused=True)
    nesterov = train.momentum > 0
    return torch.optim.SGD(
        groups, lr=train.rate, momentum=train.momentum, nesterov=nesterov, fused=True
    )

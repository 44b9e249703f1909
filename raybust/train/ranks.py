"""The ranks of a training run: this rank's identity, and sums and means over all ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """One rank among the workers of a run.

    Attributes:
        rank: index of this rank, in [0, world).
        world: number of ranks.
        device: this rank's device.
    """

    rank: int
    world: int
    device: torch.device

    @classmethod
    def current(cls, device: torch.device) -> Ranks:
        """Returns this process's rank, or a single rank if there is no process group."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(0, 1, device)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def sum(self, value: Tensor) -> float:
        """Returns the sum of a scalar over all ranks, in float64."""
        value = value.to(self.device, torch.float64)
        if self.world > 1:
            dist.all_reduce(value)
        return float(value)

    def mean(self, value: Tensor) -> float:
        """Returns the mean of a scalar over all ranks, in float64."""
        return self.sum(value) / self.world

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Broadcasts the network's buffers from rank 0 to all ranks."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

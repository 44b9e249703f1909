"""The ranks of a training run: who this one is, and sums and means over all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """One rank among the workers of a run.

    Attributes:
        rank: its number, in [0, world).
        world: number of ranks.
        device: where it trains.
    """

    rank: int
    world: int
    device: torch.device

    @classmethod
    def current(cls, device: torch.device) -> Ranks:
        """Returns this rank of the process group; the only one where there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(0, 1, device)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def sum(self, value: Tensor) -> float:
        """Returns the sum over all ranks of a scalar, in float64."""
        value = value.to(self.device, torch.float64)
        if self.world > 1:
            dist.all_reduce(value)
        return float(value)

    def mean(self, value: Tensor) -> float:
        """Returns the mean over all ranks of a scalar, in float64."""
        return self.sum(value) / self.world

    def share_buffers(self, network: nn.Module) -> None:
        """Gives all ranks the buffers of rank 0."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

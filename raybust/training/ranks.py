"""The ranks of a training run: this rank's identity, and sums and means over all ranks.

Every rank calls every method in the same order. What a rank measures may differ from the others:
`means` gathers the names first.
"""

from __future__ import annotations

from collections.abc import Mapping
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
        if self.world > 1:
            value = value.to(self.device, torch.float64)
            dist.all_reduce(value)
        return float(value)

    def mean(self, value: Tensor) -> float:
        """Returns the mean of a scalar over all ranks, in float64."""
        return self.sum(value) / self.world

    def means(self, parts: Mapping[str, tuple[Tensor | float, float]]) -> dict[str, float]:
        """Returns the mean of each metric over all ranks, in float64, by one all-reduce. A rank may
        lack metrics that others have; every rank must call this.

        Args:
            parts: name to (sum, count) on this rank.
        """
        names = sorted(parts)
        if self.world > 1:
            found: list[list[str]] = [[]] * self.world
            dist.all_gather_object(found, names)
            names = sorted({name for part in found for name in part})
        none = (torch.zeros(()), 0.0)
        pairs = [parts.get(name, none) for name in names]
        if not pairs:
            return {}
        sums = torch.stack(
            [torch.as_tensor(value).to(self.device, torch.float64) for value, _ in pairs]
        )
        counts = torch.tensor([float(count) for _, count in pairs], dtype=torch.float64)
        both = torch.stack([sums, counts.to(self.device)])
        if self.world > 1:
            dist.all_reduce(both)
        totals, numbers = both.tolist()
        return {
            name: total / number
            for name, total, number in zip(names, totals, numbers, strict=True)
            if number
        }

    def gather(self, value: Tensor) -> list[Tensor]:
        """Returns the tensors of all ranks, of any shapes, on the CPU."""
        found = [value.detach().cpu()] * self.world
        if self.world > 1:
            dist.all_gather_object(found, found[0])
        return found

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Broadcasts the network's buffers from rank 0 to all ranks."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

"""A network that breaks on one rank only, for test_worker.py."""

import torch.distributed as dist
from torch import nn

from raybust.errors import WorkError


class OnRankOne(nn.Sequential):
    """Raises in validation, where the other rank goes on to the next collective and waits."""

    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, images):
        if not self.training and dist.is_initialized() and dist.get_rank() == 1:
            raise WorkError("this rank's validation broke")
        return super().forward(images)

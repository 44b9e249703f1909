"""Standard training: cross entropy on unmodified images. The baseline for clean accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from raybust.methods.base import Method, StepContext


@dataclass(frozen=True, kw_only=True)
class Standard(Method):
    """Empirical risk minimization: loss = CE(network(x), y)."""

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the mean cross entropy of the batch; see `Method.loss`."""
        return F.cross_entropy(network(images), targets)

"""The pair propagated in place of features: their means and their covariance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from raybust.numerics.moments.covariance import Covariance


@dataclass(frozen=True)
class Moments:
    """Moments of the features of B images.

    Attributes:
        mean: (B, C, H, W) or (B, D), computed like the network's features, with their graph.
        covariance: in the form of the mode.
    """

    mean: Tensor
    covariance: Covariance

    def then(self, mean: Tensor, step: Callable[[Covariance, Tensor], Covariance]) -> Moments:
        """Returns the moments after a layer.

        Args:
            mean: the means after the layer.
            step: covariance and means before the layer to the covariance after it; runs without
                autocast, and without a graph if the rules detach.
        """
        rules = self.covariance.rules
        with rules.path(mean.device):
            before = self.mean.detach() if rules.detach else self.mean
            return Moments(mean, step(self.covariance, before))

    def variances(self) -> Tensor:
        """Returns the variance of each feature, in the shape of `mean`, without a graph."""
        return self.covariance.variances(self.mean).detach().expand(self.mean.shape)

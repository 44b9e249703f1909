"""The pair that goes through a network in place of features: their means, and their covariance.

Stands between the covariances (module `covariance`) and the layers' rules (module `layers`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from raybust.numerics.moments.covariance import Covariance


@dataclass(frozen=True)
class Moments:
    """Moments of the features of B images.

    Attributes:
        mean: (B, C, H, W) or (B, D), as the network itself would compute it, with its graph.
        covariance: in the form of its mode.
    """

    mean: Tensor
    covariance: Covariance

    def then(self, mean: Tensor, step: Callable[[Covariance, Tensor], Covariance]) -> Moments:
        """Returns the moments after a layer.

        Args:
            mean: the means after it.
            step: from the covariance and the means before the layer to the covariance after it;
                runs outside autocast, and without a graph where the rules detach.
        """
        rules = self.covariance.rules
        with rules.path(mean.device):
            before = self.mean.detach() if rules.detach else self.mean
            return Moments(mean, step(self.covariance, before))

    def variances(self) -> Tensor:
        """Returns the variance of each feature, of the shape of `mean`, without a graph."""
        return self.covariance.variances(self.mean).detach().expand(self.mean.shape)

"""Mode `diagonal`: one variance per feature, assuming independent features.

The network-moments rule (Bibi, Alfadly and Ghanem, CVPR 2018, "Analytic expressions for
probabilistic moments of PL-DNN with Gaussian input") layer by layer: linear layers square their
weights, ReLUs have exact univariate moments. Keeps the variation over pixels, which the channel
modes lose, and loses the correlations they keep.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from raybust.numerics.moments.covariance import (
    CEILING,
    Convolution,
    Covariance,
    Pooling,
    Rules,
    dtype_of,
)
from raybust.numerics.moments.rectifier import relu_variance


class DiagonalCovariance(Covariance):
    """Variances in the shape of the features."""

    def __init__(self, variance: Tensor, rules: Rules) -> None:
        """Stores variances (B, C, H, W) or (B, D)."""
        self.variance, self.rules = variance, rules

    @classmethod
    def of_noise(cls, images: Tensor, sigma: float, rules: Rules) -> DiagonalCovariance:
        """See `Covariance.of_noise`."""
        return cls(torch.full_like(images, sigma**2, dtype=dtype_of(images)), rules)

    def variances(self, mean: Tensor) -> Tensor:
        """Returns the variances."""
        return self.variance

    def scaled(self, factor: Tensor, mean: Tensor) -> DiagonalCovariance:
        """Multiplies by factor^2."""
        return self._limited(self.variance * factor.to(self.variance.dtype) ** 2)

    def convolved(self, layer: Convolution, mean: Tensor) -> DiagonalCovariance:
        """Convolves variances with squared weights."""
        weight = layer.weight.to(self.variance.dtype) ** 2
        return self._limited(F.conv2d(self.variance, weight, None, *layer[1:]))

    def dense(self, weight: Tensor, mean: Tensor) -> DiagonalCovariance:
        """Squared weights times variances."""
        return self._limited(self.variance @ weight.to(self.variance.dtype).square().mT)

    def pair(self, weight: Tensor, mean: Tensor) -> Tensor:
        """A diag(variances) A^T."""
        rows = weight.to(self.variance.dtype)
        return (rows * self.variance[:, None]) @ rows.mT

    def pooled(self, layer: Pooling, mean: Tensor) -> DiagonalCovariance:
        """Divides the mean variance by the number of pixels in the window."""
        return self._with(layer.apply(self.variance) / layer.windows.to(self.variance.dtype))

    def max_pooled(self, indices: Tensor, mean: Tensor) -> DiagonalCovariance:
        """Takes the variance of the pixel with the largest mean."""
        picked = self.variance.flatten(2).gather(2, indices.flatten(2))
        return self._with(picked.reshape(indices.shape))

    def moved(self, function: Callable[[Tensor], Tensor], mean: Tensor) -> DiagonalCovariance:
        """Moves variances like features."""
        return self._with(function(self.variance))

    def plus(self, other: Covariance) -> DiagonalCovariance:
        """Sums variances."""
        assert isinstance(other, DiagonalCovariance)
        return self._with(self.variance + other.variance)

    def rectified(self, mean: Tensor, slope: float) -> DiagonalCovariance:
        """Exact variances."""
        means = mean.to(self.variance.dtype)
        return self._with(relu_variance(means, self._deviation(), slope))

    def flattened(self) -> DiagonalCovariance:
        """Variances (B, D)."""
        return self._with(self.variance.flatten(1))

    def _deviation(self) -> Tensor:
        return self.variance.clamp_min(torch.finfo(self.variance.dtype).tiny).sqrt()

    def _limited(self, variance: Tensor) -> DiagonalCovariance:
        """After a layer that may enlarge variances: at most the ceiling, also on overflow."""
        return self._with(variance.nan_to_num(CEILING).clamp_max(CEILING))

    def _with(self, variance: Tensor) -> DiagonalCovariance:
        return DiagonalCovariance(variance, self.rules)

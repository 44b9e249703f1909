"""Mode `full`: the D x D covariance of all features per image. The oracle, for small networks.

Linear layers are exact: the layer is applied to the rows, then to the columns. ReLUs are exact for
Gaussian inputs, that is, at the first ReLU; later ReLUs, max pooling and the independence assumed
at residual sums are the only approximations. Memory is B D^2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from raybust.numerics.moments.covariance import (
    Convolution,
    Covariance,
    Pooling,
    Rules,
    dtype_of,
    limited,
)
from raybust.numerics.moments.rectifier import relu_covariance, relu_variance


class JointCovariance(Covariance):
    """(B, D, D) for features that may still have the shape (C, H, W)."""

    def __init__(self, matrix: Tensor, rules: Rules) -> None:
        """Stores the matrix, capped by `limited`."""
        self.matrix = limited(matrix)
        self.rules = rules

    @classmethod
    def of_noise(cls, images: Tensor, sigma: float, rules: Rules) -> JointCovariance:
        """See `Covariance.of_noise`."""
        features = images[0].numel()
        one = torch.eye(features, dtype=dtype_of(images), device=images.device)
        return cls((sigma**2 * one).expand(len(images), -1, -1), rules)

    def variances(self, mean: Tensor) -> Tensor:
        """Returns the diagonal, in the shape of the features."""
        return self.matrix.diagonal(dim1=1, dim2=2).clamp_min(0).reshape(mean.shape)

    def scaled(self, factor: Tensor, mean: Tensor) -> JointCovariance:
        """Scales rows and columns."""
        row = factor.to(self.matrix.dtype).expand(1, *mean.shape[1:]).reshape(-1)
        return JointCovariance(self.matrix * row[:, None] * row, self.rules)

    def convolved(self, layer: Convolution, mean: Tensor) -> JointCovariance:
        """Exact; r_max does not apply."""
        weight = layer.weight.to(self.matrix.dtype)
        return self.moved(lambda rows: F.conv2d(rows, weight, None, *layer[1:]), mean)

    def dense(self, weight: Tensor, mean: Tensor) -> JointCovariance:
        """A S A^T."""
        matrix = weight.to(self.matrix.dtype)
        return JointCovariance(matrix @ self.matrix @ matrix.mT, self.rules)

    def pair(self, weight: Tensor, mean: Tensor) -> Tensor:
        """A S A^T for two rows per image."""
        rows = weight.to(self.matrix.dtype)
        return rows @ self.matrix @ rows.mT

    def pooled(self, layer: Pooling, mean: Tensor) -> JointCovariance:
        """Exact."""
        return self.moved(layer.apply, mean)

    def max_pooled(self, indices: Tensor, mean: Tensor) -> JointCovariance:
        """Selects the rows and columns of the pixels with the largest mean."""
        channels, pixels = mean.shape[1], mean[0, 0].numel()
        offset = pixels * torch.arange(channels, device=mean.device).reshape(1, -1, 1)
        chosen = (indices.flatten(2) + offset).flatten(1)
        image = torch.arange(len(mean), device=mean.device)[:, None, None]
        return JointCovariance(
            self.matrix[image, chosen[:, :, None], chosen[:, None, :]], self.rules
        )

    def moved(self, function: Callable[[Tensor], Tensor], mean: Tensor) -> JointCovariance:
        """Applies any linear map to the rows, then to the columns."""
        half = self._rows(function, self.matrix, mean)
        return JointCovariance(self._rows(function, half.mT, mean).mT, self.rules)

    def plus(self, other: Covariance) -> JointCovariance:
        """S1 + S2."""
        assert isinstance(other, JointCovariance)
        return JointCovariance(self.matrix + other.matrix, self.rules)

    def rectified(self, mean: Tensor, slope: float) -> JointCovariance:
        """Exact for Gaussian inputs, by quadrature for each pair of features."""
        means = mean.to(self.matrix.dtype).flatten(1)
        tiny = torch.finfo(means.dtype).tiny * 1e6
        deviation = self.matrix.diagonal(dim1=1, dim2=2).clamp_min(tiny).sqrt()
        correlation = self.matrix / (deviation[:, :, None] * deviation[:, None, :])
        pairs = relu_covariance(
            (means[:, :, None], means[:, None, :]),
            (deviation[:, :, None], deviation[:, None, :]),
            correlation,
            slope,
        )
        gap = relu_variance(means, deviation, slope) - pairs.diagonal(dim1=1, dim2=2)
        return JointCovariance(pairs + torch.diag_embed(gap), self.rules)

    @staticmethod
    def _rows(function: Callable[[Tensor], Tensor], matrix: Tensor, mean: Tensor) -> Tensor:
        """Applies the function to each column of (B, D, E) as features: (B, E, D') transposed."""
        batch, _, count = matrix.shape
        rows = matrix.mT.reshape(batch * count, *mean.shape[1:])
        return function(rows).reshape(batch, count, -1).mT

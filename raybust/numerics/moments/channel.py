"""Modes `channel` and `channel_exact`: one channel covariance per image, shared by all pixels.

Zhen, Chakraborty and Singh (CVPR 2021, arXiv:2104.05888) assume that all pixels of a feature map
share one C x C covariance and are independent, corrected by a factor 1 + r_max at each convolution.
With zero padding this is an overestimate at borders. The cost is independent of H and W.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from raybust.numerics.moments.covariance import (
    Convolution,
    Covariance,
    Pooling,
    Rules,
    dtype_of,
    limited,
)
from raybust.numerics.moments.rectifier import mean_relu_covariance

_CHUNK = 2**24  # largest intermediate of a convolution; beyond it, tap by tap


class ChannelCovariance(Covariance):
    """(B, C, C), also for flat features D = C P: P pixels per channel, in the order C, P."""

    def __init__(self, matrix: Tensor, rules: Rules) -> None:
        """Stores the matrix (B, C, C)."""
        self.matrix, self.rules = matrix, rules

    @classmethod
    def of_noise(cls, images: Tensor, sigma: float, rules: Rules) -> ChannelCovariance:
        """See `Covariance.of_noise`."""
        batch, channels = images.shape[:2]
        one = torch.eye(channels, dtype=dtype_of(images), device=images.device)
        return cls((sigma**2 * one).expand(batch, -1, -1), rules)

    def variances(self, mean: Tensor) -> Tensor:
        """Returns (B, C, 1, 1), or (B, D) for flat features."""
        diagonal = self.matrix.diagonal(dim1=1, dim2=2).clamp_min(0)
        if mean.ndim > 2:
            return diagonal.reshape(*diagonal.shape, *[1] * (mean.ndim - 2))
        return diagonal.repeat_interleave(mean.shape[1] // diagonal.shape[1], 1)

    def scaled(self, factor: Tensor, mean: Tensor) -> ChannelCovariance:
        """Scales rows and columns; the factor must be constant over the pixels of a channel."""
        own = factor.reshape([1] * (mean.ndim - factor.ndim) + list(factor.shape))
        if math.prod(own.shape[2:]) > 1 and bool((own != own[:, :, :1, :1]).any()):
            raise ValueError("a factor that differs between pixels of a channel")
        whole = own.to(self.matrix.dtype).expand(1, *mean.shape[1:])
        parts = whole.reshape(self.matrix.shape[1], -1)
        row = parts[:, 0]
        return ChannelCovariance(self.matrix * row[:, None] * row, self.rules)

    def convolved(self, layer: Convolution, mean: Tensor) -> ChannelCovariance:
        """S' = (1 + r_max) sum over taps t of W_t S W_t^T; stride, padding and dilation do not
        matter."""
        weight = _ungrouped(layer.weight.to(self.matrix.dtype), layer.groups).flatten(2)
        return ChannelCovariance(self._summed(weight, 1 + self.rules.r_max), self.rules)

    def dense(self, weight: Tensor, mean: Tensor) -> ChannelCovariance:
        """A S A^T, for P > 1 pixels summed over pixels, without the factor 1 + r_max, as in the
        authors' code."""
        forms = weight.to(self.matrix.dtype).reshape(len(weight), self.matrix.shape[1], -1)
        return ChannelCovariance(self._summed(forms, 1.0), self.rules)

    def pair(self, weight: Tensor, mean: Tensor) -> Tensor:
        """A S A^T for two rows per image, over P pixels like `dense`."""
        batch, channels = self.matrix.shape[:2]
        rows = weight.to(self.matrix.dtype).reshape(batch, 2, channels, -1)
        pixels = rows.shape[3]
        moved = self.matrix @ rows.permute(0, 2, 1, 3).flatten(2)  # (B, C, 2 P)
        right = moved.reshape(batch, channels, 2, pixels).permute(0, 2, 1, 3).flatten(2)
        return rows.flatten(2) @ right.mT

    def pooled(self, layer: Pooling, mean: Tensor) -> ChannelCovariance:
        """S over the number of pixels in a window, the smallest if they differ."""
        return ChannelCovariance(self.matrix / layer.windows.min(), self.rules)

    def max_pooled(self, indices: Tensor, mean: Tensor) -> ChannelCovariance:
        """Unchanged, since all pixels share S."""
        return self

    def moved(self, function: Callable[[Tensor], Tensor], mean: Tensor) -> ChannelCovariance:
        """Traces each channel of the result to its source with a map of channel numbers, on the
        CPU."""
        numbers = torch.arange(1.0, mean.shape[1] + 1)
        probe = function(numbers.reshape(1, -1, *[1] * (mean.ndim - 2)).expand(1, *mean.shape[1:]))
        found = probe.reshape(1, probe.shape[1], -1)[0]
        source = found.amax(1)
        if bool(((found != 0) & (found != source[:, None])).any()):
            raise ValueError("a step that mixes channels with pixels")
        source = source.long().to(mean.device, non_blocking=True)
        kept, index = source > 0, (source - 1).clamp_min(0)
        matrix = self.matrix[:, index][:, :, index] * kept * kept[:, None]
        return ChannelCovariance(matrix, self.rules)

    def plus(self, other: Covariance) -> ChannelCovariance:
        """S1 + S2."""
        assert isinstance(other, ChannelCovariance)
        return ChannelCovariance(self.matrix + other.matrix, self.rules)

    def rectified(self, mean: Tensor, slope: float) -> ChannelCovariance:
        """`channel`: S + ridge I, since Var relu(X) <= Var X. `channel_exact`: exact moments,
        averaged over pixels."""
        if self.rules.mode == "channel":
            ridge = self.rules.ridge * torch.eye(
                self.matrix.shape[1], dtype=self.matrix.dtype, device=self.matrix.device
            )
            return ChannelCovariance(self.matrix + ridge, self.rules)
        means = mean.to(self.matrix.dtype).reshape(*self.matrix.shape[:2], -1)
        return ChannelCovariance(mean_relu_covariance(means, self.matrix, slope), self.rules)

    def _summed(self, weight: Tensor, factor: float) -> Tensor:
        """Returns factor * sum over t of W_t S W_t^T for a weight (Cout, Cin, T), capped by
        `limited`.

        Two matrix products over all t, or one t at a time if the intermediate would be large. The
        result is asymmetric by about 1e-7 from rounding, which no layer amplifies.
        """
        batch, before = self.matrix.shape[:2]
        after, _, count = weight.shape
        if count > 1 and batch * before * after * count > _CHUNK:
            parts = (self._summed(tap[:, :, None], factor) for tap in weight.unbind(2))
            return limited(sum(parts, torch.zeros((), dtype=weight.dtype, device=weight.device)))
        right = weight.permute(1, 2, 0).reshape(before, -1)  # (Cin, T Cout)
        half = (self.matrix.reshape(-1, before) @ right).reshape(batch, before * count, after)
        left = (factor * weight).reshape(1, after, -1).expand(batch, -1, -1)
        return limited(torch.bmm(left, half))


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """Expands the weight of a grouped convolution to that of a plain one, (Cout, Cin, kh, kw)."""
    if groups == 1:
        return weight
    blocks = weight.reshape(groups, -1, *weight.shape[1:])  # (G, Cout / G, Cin / G, kh, kw)
    place = torch.eye(groups, dtype=weight.dtype, device=weight.device)
    whole = torch.einsum("gh,goiyx->gohiyx", place, blocks)
    return whole.reshape(len(weight), -1, *weight.shape[2:])

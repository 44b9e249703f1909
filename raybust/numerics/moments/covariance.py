"""The interface of feature covariances, which the layer rules call, and the settings `Rules`.

Each mode of propagation is a class that represents the covariance in one form and implements the
effect of each kind of layer on it; a layer's rule (module `layers`) selects the kind. The default
settings are those of Zhen, Chakraborty and Singh (CVPR 2021, arXiv:2104.05888).
Notation: B images, C channels, P pixels, D = C P features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Mode = Literal["channel", "channel_exact", "diagonal", "full"]
"""What a propagation carries from layer to layer."""

CEILING = 1e24
"""Maximum mean variance per image (our choice): deep published networks would overflow float32, and
standard deviations of 1e12 leave room for products."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Settings of a propagation.

    Attributes:
        mode: `channel` (paper): one channel covariance per image, shared by all pixels, unchanged
            by ReLU. `channel_exact`: the same with exact ReLU moments. `diagonal`: one variance per
            feature, assuming independence. `full`: D x D.
        r_max: assumed bound on the correlation between pixels; each convolution in the channel
            modes multiplies by 1 + r_max.
        ridge: added to the diagonal by each ReLU in mode `channel`, in squared feature units; the
            authors use 0.1.
        expected_relu: whether means at a ReLU are E relu(X) (paper) or relu(E X), the network's own
            forward pass.
        detach: whether covariances are constants in the gradient (the authors' code) or carry
            gradients to the weights.
    """

    mode: Mode = "channel"
    r_max: float = 0.1
    ridge: float = 0.1
    expected_relu: bool = True
    detach: bool = True

    @contextmanager
    def path(self, device: torch.device) -> Iterator[None]:
        """Context for covariance computations: no autocast, and no graph if `detach`."""
        grad = torch.is_grad_enabled() and not self.detach
        with torch.autocast(device.type, enabled=False), torch.set_grad_enabled(grad):
            yield


class Convolution(NamedTuple):
    """A 2-d convolution without bias; weight (Cout, Cin / groups, kh, kw), zero padding."""

    weight: Tensor
    stride: Any  # this and the rest as in F.conv2d
    padding: Any
    dilation: Any
    groups: int


class Pooling(NamedTuple):
    """A linear pooling: `apply` averages; `windows` is the number of pixels per window, a number
    or (H', W')."""

    apply: Callable[[Tensor], Tensor]
    windows: Tensor


class Covariance(ABC):
    """Feature covariance of B images in one of the modes. Immutable; methods return new ones.

    `mean` arguments are the means before the layer, (B, C, H, W) or (B, D), detached if
    `rules.detach`.
    """

    rules: Rules

    @classmethod
    @abstractmethod
    def of_noise(cls, images: Tensor, sigma: float, rules: Rules) -> Covariance:
        """Returns sigma^2 I for images (B, C, H, W), in float64 for float64, else float32."""

    @abstractmethod
    def variances(self, mean: Tensor) -> Tensor:
        """Returns variances >= 0, broadcastable to `mean`."""

    @abstractmethod
    def scaled(self, factor: Tensor, mean: Tensor) -> Covariance:
        """Multiplies features by `factor`, broadcastable to one image's features (1, C, H, W)."""

    @abstractmethod
    def convolved(self, layer: Convolution, mean: Tensor) -> Covariance:
        """Applies a convolution."""

    @abstractmethod
    def dense(self, weight: Tensor, mean: Tensor) -> Covariance:
        """Applies a matrix (M, D) to flat features."""

    @abstractmethod
    def pair(self, weight: Tensor, mean: Tensor) -> Tensor:
        """Returns the covariance (B, 2, 2) of two linear forms per image, weight (B, 2, D)."""

    @abstractmethod
    def pooled(self, layer: Pooling, mean: Tensor) -> Covariance:
        """Averages over windows of pixels."""

    @abstractmethod
    def max_pooled(self, indices: Tensor, mean: Tensor) -> Covariance:
        """Approximates max pooling: selects the pixel with the largest mean in each window.

        Args:
            indices: (B, C, H', W'), flat index of that pixel in its channel.
            mean: (B, C, H, W).
        """

    @abstractmethod
    def moved(self, function: Callable[[Tensor], Tensor], mean: Tensor) -> Covariance:
        """Applies a function that selects, moves or zero-pads features: a linear map with entries
        0 and 1, for (M, C, H, W) with any M."""

    @abstractmethod
    def plus(self, other: Covariance) -> Covariance:
        """Adds a covariance of the same shape, assumed independent (residual sums)."""

    @abstractmethod
    def rectified(self, mean: Tensor, slope: float) -> Covariance:
        """Applies a (leaky) ReLU."""

    def flattened(self) -> Covariance:
        """Joins channels and pixels into one axis, in the order C, H, W."""
        return self


def dtype_of(images: Tensor) -> torch.dtype:
    """Returns the dtype of covariances: float64 for float64 images, else float32."""
    return torch.float64 if images.dtype == torch.float64 else torch.float32


def limited(matrix: Tensor) -> Tensor:
    """Scales covariances (B, D, D) down to a mean variance of at most `CEILING` per image; one that
    overflowed within a layer becomes `CEILING` times the identity."""
    mean = matrix.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    return torch.where(
        mean.isfinite(), matrix * (CEILING / mean.clamp_min(CEILING)), CEILING * identity
    )

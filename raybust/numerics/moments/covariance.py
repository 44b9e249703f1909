"""What a covariance of features can do: the interface that the layers' rules call.

A mode of propagation is one class that keeps a covariance in one form and says what each kind of
layer does to it; a layer's rule (module `layers`) says which kind it is. `Rules` holds the
settings, those of Zhen, Chakraborty and Singh (CVPR 2021, arXiv:2104.05888) by default.
Legend: B images, C channels, P pixels, D = C P features.
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

CEILING = 1e24
"""Mean variance at which a covariance is held, an image (our choice): published networks with many
layers would overflow float32, and deviations of 1e12 leave room for products."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Settings of a propagation.

    Attributes:
        mode: `channel`, the paper's: one channel covariance an image, shared by all pixels, that a
            ReLU leaves as it is. `channel_exact`: the same with exact moments of the ReLU.
            `diagonal`: a variance for each feature, as if all were independent. `full`: D x D.
        r_max: assumed bound of the correlation between pixels; every convolution of the two channel
            modes multiplies by 1 + r_max.
        ridge: added to the diagonal by each ReLU of mode `channel`, in squared units of the
            features; the authors' 0.1 by default.
        expected_relu: whether the means take E relu(X) at a ReLU (the paper), or relu(E X), which
            is the network's own forward pass.
        detach: whether covariances are constants for the gradient (the authors' code), or carry
            gradients to the weights.
    """

    mode: Mode = "channel"
    r_max: float = 0.1
    ridge: float = 0.1
    expected_relu: bool = True
    detach: bool = True

    @contextmanager
    def path(self, device: torch.device) -> Iterator[None]:
        """Context of all work on covariances: outside autocast, without a graph if `detach`."""
        grad = torch.is_grad_enabled() and not self.detach
        with torch.autocast(device.type, enabled=False), torch.set_grad_enabled(grad):
            yield


class Convolution(NamedTuple):
    """A 2-d convolution without its bias; weight (Cout, Cin / groups, kh, kw), zero padding."""

    weight: Tensor
    stride: Any  # these as F.conv2d takes them
    padding: Any
    dilation: Any
    groups: int


class Pooling(NamedTuple):
    """A linear pooling: `apply` averages; `windows` is the number of pixels of each window, a
    number or (H', W')."""

    apply: Callable[[Tensor], Tensor]
    windows: Tensor


class Covariance(ABC):
    """Covariance of features of B images in one of the modes. Immutable; methods return new ones.

    `mean` arguments are the means before the layer, (B, C, H, W) or (B, D), detached where `rules`
    says so.
    """

    rules: Rules

    @classmethod
    @abstractmethod
    def of_noise(cls, images: Tensor, sigma: float, rules: Rules) -> Covariance:
        """Returns sigma^2 I for images (B, C, H, W), in float64 for float64, else in float32."""

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
        """Returns the covariance (B, 2, 2) of two linear forms an image, weight (B, 2, D)."""

    @abstractmethod
    def pooled(self, layer: Pooling, mean: Tensor) -> Covariance:
        """Averages over windows of pixels."""

    @abstractmethod
    def max_pooled(self, indices: Tensor, mean: Tensor) -> Covariance:
        """Takes the pixel of each window with the largest mean: the approximation of max pooling.

        Args:
            indices: (B, C, H', W'), flat index of that pixel in its channel.
            mean: (B, C, H, W).
        """

    @abstractmethod
    def moved(self, function: Callable[[Tensor], Tensor], mean: Tensor) -> Covariance:
        """Applies a function that selects features, moves them or pads with zeros: a linear map of
        entries 0 and 1, applied to (M, C, H, W) for any M."""

    @abstractmethod
    def plus(self, other: Covariance) -> Covariance:
        """Adds an independent one of the same shape: the assumption at a residual sum."""

    @abstractmethod
    def rectified(self, mean: Tensor, slope: float) -> Covariance:
        """Applies a (leaky) ReLU of that slope."""

    def flattened(self) -> Covariance:
        """Joins channels and pixels into one axis; the order C, H, W stays."""
        return self


def dtype_of(images: Tensor) -> torch.dtype:
    """Returns the dtype of covariances: float64 for float64 images, else float32."""
    return torch.float64 if images.dtype == torch.float64 else torch.float32


def held(matrix: Tensor) -> Tensor:
    """Returns covariances (B, D, D) scaled down, an image, to a mean variance of `CEILING` at most;
    one that overflowed within a layer becomes `CEILING` times the identity."""
    mean = matrix.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    if bool((mean <= CEILING).all()):
        return matrix
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    return torch.where(
        mean.isfinite(), matrix * (CEILING / mean.clamp_min(CEILING)), CEILING * identity
    )

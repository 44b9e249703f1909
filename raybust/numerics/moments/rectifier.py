"""Moments of (leaky) ReLUs of Gaussian variables: univariate, bivariate, and averaged over pixels.

With X ~ N(m, d^2), a = m / d and the standard normal PHI and phi: E relu(X) = m PHI(a) + d phi(a).
Covariances follow from Price's theorem (1958), dCov/dc = E f'(X) f'(Y), as a single integral, or
from its Hermite series (Mehler, 1866). For covariance propagation (Zhen, Chakraborty and Singh,
CVPR 2021, arXiv:2104.05888), whose paper omits these covariances. A leaky ReLU of slope s is
s x + (1 - s) relu(x).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NODES = 12
TERMS = 8
"""Nodes of the Gauss-Legendre rule for the bivariate covariance, and terms of its Hermite series
(our choices; errors over d1 d2: below 4e-7 at every r, and below 2e-4 at |r| <= 0.9)."""

_FARTHEST = 12.0  # |m| / d beyond which phi and its polynomials are zero in float32
_LARGEST = 1e15  # limit of 1 / d, so that products with means do not overflow
_ROOT_HALF, _PHI0 = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)


class _ExpectedReLU(torch.autograd.Function):
    """E relu(X) with dE/dm = PHI(a) and dE/dd = phi(a).

    If the deviation needs no gradient, only PHI is saved, in float16 for float32 means (our choice:
    half the memory, a gradient error of at most 2^-11).
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, deviation: Tensor) -> Tensor:
        exact = ctx.needs_input_grad[1] or mean.dtype == torch.float64
        scaled = mean * (_ROOT_HALF / deviation).clamp_max(_LARGEST)
        probability = torch.erf(scaled).add_(1).mul_(0.5)
        density = scaled.square_().neg_().exp_().mul_(_PHI0)
        kept = probability if exact else probability.half()
        ctx.save_for_backward(kept, *([density.clone()] if ctx.needs_input_grad[1] else []))
        ctx.shape = deviation.shape
        return density.mul_(deviation).addcmul_(mean, probability).to(mean.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        probability, *density = ctx.saved_tensors
        outer = (gradient * density[0]).sum_to_size(ctx.shape) if density else None
        return probability.to(gradient.dtype) * gradient, outer


def expected_relu(mean: Tensor, deviation: Tensor, slope: float = 0.0) -> Tensor:
    """Returns E f(X) for a (leaky) ReLU f: s m + (1 - s) (m PHI(a) + d phi(a)).

    Once differentiable in both arguments. Computes in the dtype of `deviation`, returns that of
    `mean`. Equals f(m) up to rounding for large |a|.

    Args:
        mean: (...), any float dtype.
        deviation: > 0, float32 or float64, broadcastable to `mean`.
        slope: s, the slope left of 0.
    """
    expected: Tensor = _ExpectedReLU.apply(mean, deviation)  # type: ignore[no-untyped-call]
    return expected if slope == 0 else slope * mean + (1 - slope) * expected


def relu_variance(mean: Tensor, deviation: Tensor, slope: float = 0.0) -> Tensor:
    """Returns Var f(X) >= 0 for a (leaky) ReLU, in the broadcast shape.

    s^2 d^2 + 2 s (1 - s) d^2 PHI(a) + (1 - s)^2 Var relu(X), and Var relu(X) / d^2 = PHI(a) -
    h (h + |a|), h = phi(a) - |a| PHI(-|a|): the usual (a^2 + 1) PHI + a phi - (a PHI + phi)^2
    without its loss of digits at large a.

    Args:
        mean: (...).
        deviation: >= 0, broadcastable; at 0 the variance is 0.
        slope: s.
    """
    a = _standardized(mean, deviation)
    b = a.abs()
    tail = _cdf(-b)
    probability = torch.copysign(0.5 - tail, a) + 0.5
    h = _density(b) - b * tail
    total = (probability - h * (h + b)).clamp_min(0)
    if slope:
        total = slope**2 + 2 * slope * (1 - slope) * probability + (1 - slope) ** 2 * total
    return total * deviation.square()


def relu_covariance(
    means: tuple[Tensor, Tensor],
    deviations: tuple[Tensor, Tensor],
    correlation: Tensor,
    slope: float = 0.0,
    nodes: int = NODES,
) -> Tensor:
    """Returns Cov(f(X), f(Y)) for jointly Gaussian X, Y and a (leaky) ReLU f.

    d1 d2 (r g(a) g(b) + (1 - s)^2 / (2 pi) int_0^asin(r) (r - sin t) exp(-(a^2 + b^2 - 2 a b sin t)
    / (2 cos^2 t)) dt), g = s + (1 - s) PHI: Price's theorem twice, which avoids both the bivariate
    distribution function and the cancellation in E f(X) f(Y) - E f(X) E f(Y).

    Args:
        means: m1, m2, broadcastable to each other.
        deviations: d1, d2 >= 0.
        correlation: r, clamped to [-1, 1].
        slope: s.
        nodes: nodes of the Gauss-Legendre rule.
    """
    a, b = (_standardized(m, d) for m, d in zip(means, deviations, strict=True))
    r = correlation.clamp(-1 + 1e-7, 1 - 1e-7)
    half, squares, product = torch.asin(r) / 2, a * a + b * b, 2 * a * b
    total = torch.zeros_like(squares * r)
    for node, weight in _legendre(nodes):
        sine = torch.sin(half * (1 + node))
        exponent = (squares - product * sine) / (2 * (1 - sine * sine))
        total = total + weight * (r - sine) * torch.exp(-exponent)
    first = (slope + (1 - slope) * _cdf(a)) * (slope + (1 - slope) * _cdf(b))
    rest = (1 - slope) ** 2 / (2 * math.pi) * half * total
    return deviations[0] * deviations[1] * (r * first + rest)


def mean_relu_covariance(
    means: Tensor, matrix: Tensor, slope: float = 0.0, terms: int = TERMS
) -> Tensor:
    """Returns the covariance of f(X_1) .. f(X_C), averaged over pixels with different means:
    (B, C, C), positive semidefinite.

    Off the diagonal: the Hermite series d_i d_j sum_n r_ij^n / n! mean_p h_n(a_ip) h_n(a_jp) with
    h_1 = s + (1 - s) PHI and h_n = (1 - s) phi He_(n-2), truncated after `terms`. Each term is a
    Gram matrix times a power of the correlations, so the sum is positive semidefinite (Schur) and
    costs as much as a 1x1 convolution. On the diagonal: the exact mean variance, which exceeds the
    truncated series. The series is our choice: the integral would cost B P C^2 nodes.

    Args:
        means: (B, C, P).
        matrix: (B, C, C), the covariance shared by all P pixels.
        slope: s.
        terms: terms of the series, >= 1.
    """
    deviation = matrix.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    a = _standardized(means, deviation[:, :, None])
    scale = torch.where(deviation > 0, 1 / deviation.clamp_min(_tiny(deviation)), 0.0)
    correlation = (matrix * scale[:, :, None] * scale[:, None, :]).clamp(-1, 1)
    factor, power = slope + (1 - slope) * _cdf(a), correlation
    series = power * (factor @ factor.mT)
    before = torch.zeros_like(a)
    hermite = (1 - slope) * _density(a)  # phi He_k / sqrt((k + 2)!), from k = 0
    hermite = hermite * _ROOT_HALF
    for n in range(2, terms + 1):
        power = power * correlation
        series = series + power * (hermite @ hermite.mT)
        k = n - 2
        step = a * hermite * (k + 3) ** -0.5 - before * (k / math.sqrt((k + 2) * (k + 3)))
        before, hermite = hermite, step
    series = series * (deviation[:, :, None] * deviation[:, None, :] / means.shape[2])
    exact = relu_variance(means, deviation[:, :, None], slope).mean(2)
    gap = (exact - series.diagonal(dim1=1, dim2=2)).clamp_min(0)
    return series + torch.diag_embed(gap)


def _standardized(mean: Tensor, deviation: Tensor) -> Tensor:
    return (mean / deviation.clamp_min(_tiny(deviation))).clamp(-_FARTHEST, _FARTHEST)


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny * 1e6


def _cdf(a: Tensor) -> Tensor:
    return torch.erfc(a * -_ROOT_HALF) / 2


def _density(a: Tensor) -> Tensor:
    return torch.exp(a * a / -2) * _PHI0


@lru_cache
def _legendre(nodes: int) -> list[tuple[float, float]]:
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return list(zip(points.tolist(), weights.tolist(), strict=True))

"""Closed forms for Gaussians under the Wasserstein distance: map, geodesic, distance (Olkin and
Pukelsheim, 1982; Takatsu, Osaka J. Math. 48, 2011). References for the couplings and for the sweep
on two Gaussians. Use float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def bures_map(s0: Tensor, s1: Tensor) -> Tensor:
    """Returns T = S0^-1/2 (S0^1/2 S1 S0^1/2)^1/2 S0^-1/2 (d, d), the optimal linear map from
    N(0, S0) to N(0, S1): symmetric, T S0 T = S1.

    Args:
        s0: (d, d), symmetric positive definite.
        s1: (d, d), symmetric positive semidefinite.

    Raises:
        ValueError: a matrix is not symmetric or has a negative eigenvalue, or S0 is singular.
    """
    root, inverse = _power(s0, 0.5), _power(s0, -0.5)
    return inverse @ _power(root @ s1 @ root, 0.5) @ inverse


def bures_geodesic(s0: Tensor, s1: Tensor, t: float) -> Tensor:
    """Returns S_t = M S0 M (d, d), M = (1 - t) I + t T, the covariance at location t in [0, 1];
    the mean moves on a straight line.

    Raises:
        ValueError: as in `bures_map`, or the location is outside [0, 1].
    """
    if not 0 <= t <= 1:
        raise ValueError(f"location: got {t}, expected in [0, 1]")
    mixed = (1 - t) * torch.eye(len(s0), dtype=s0.dtype, device=s0.device) + t * bures_map(s0, s1)
    return mixed @ s0 @ mixed


def gaussian_distance(m0: Tensor, s0: Tensor, m1: Tensor, s1: Tensor) -> Tensor:
    """Returns W2(N(m0, S0), N(m1, S1)) = (|m0 - m1|^2 + tr(S0 + S1 - 2 (S0^1/2 S1
    S0^1/2)^1/2))^1/2, a scalar; means (d,), covariances (d, d)."""
    root = _power(s0, 0.5)
    cross = _power(root @ s1 @ root, 0.5)
    squared = (m0 - m1).square().sum() + (s0 + s1 - 2 * cross).trace()
    return squared.clamp(min=0).sqrt()


def _power(matrix: Tensor, power: float) -> Tensor:
    """Returns a real power of a symmetric positive matrix, with tiny eigenvalues rounded to 0."""
    if not matrix.isfinite().all() or not torch.allclose(matrix, matrix.T):
        raise ValueError("covariance: got a matrix that is not symmetric, or NaN")
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    slack = len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
    if float(values.min()) < -8 * slack or (power < 0 and float(values.min()) <= slack):
        raise ValueError(
            f"covariance: got an eigenvalue of {float(values.min()):g}, expected a positive matrix"
        )
    root: Tensor = vectors @ torch.diag(values.clamp(min=0) ** power) @ vectors.T
    return root


def mean_classifier_accuracy(
    separation: float, dimension: int, real: int, synthetic: int, t: float, *, eps: float = 0.0
) -> float:
    """Returns the expected accuracy under L2 perturbations of size eps of x -> sign(w . x), w the
    mean of y x over a sample, for x | y ~ N(y theta, I), y = +-1 (the model of Schmidt et al.,
    NeurIPS 2018, arXiv:1804.11285). Exact up to quadrature, about 1e-4.

    The sample has `real` points and `synthetic` independent ones from the barycenters at t and
    1 - t, N(+-(1 - 2 t) theta, I), each labeled like its nearer end.

    Args:
        separation: |theta|, > 0.
        dimension: d, >= 2.
        real: total points of both classes, >= 1.
        synthetic: total synthetic points, >= 0.
        t: location in [0, 1/2].
        eps: >= 0.

    Raises:
        ValueError: the location is outside [0, 1/2].
    """
    if not 0 <= t <= 0.5:
        raise ValueError(f"location: got {t}, expected in [0, 1/2]")
    from scipy.stats import chi2, norm  # takes half a second to import

    total = real + synthetic
    shares = (np.arange(400) + 0.5) / 400
    along = separation * (real + synthetic * (1 - 2 * t)) / total + norm.ppf(shares) / total**0.5
    across = chi2.ppf(shares, dimension - 1) / total
    cosine = along[:, None] / np.sqrt(along[:, None] ** 2 + across)
    return float(norm.cdf(separation * cosine - eps).mean())

"""Metrics of corruption robustness, as plain formulas on tables of errors.

mCE: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019, arXiv:1903.12261). Theirs divides by AlexNet's errors; for CIFAR the
authors advise against that, and this one does not. iCE: Siedel et al. (VISAPP 2024,
arXiv:2305.05400). Errors are shares in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

COMMON = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The 15 corruptions of CIFAR-10-C and ImageNet-C."""

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The four further corruptions of CIFAR-10-C and ImageNet-C."""

NOISE_NAMES = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
"""Corruptions excluded from mCE_xN, which shows whether training with noise helps beyond noise."""

SEVERITIES = (1, 2, 3, 4, 5)
BINS = 100
"""Bins of the calibration error, as in the paper."""

Errors = Mapping[str, Mapping[int, float]]
"""Corruption, severity, error."""


def mean_corruption_error(errors: Errors, *, without: Collection[str] = ()) -> float:
    """Returns the mean over corruptions of the mean error over severities; NaN without corruptions.

    Args:
        errors: errors of the network, with the same severities for each corruption.
        without: corruptions to exclude.
    """
    values = [
        math.fsum(row.values()) / len(row) for name, row in errors.items() if name not in without
    ]
    return math.fsum(values) / len(values) if values else math.nan


def ice(noisy: Sequence[float], clean: float) -> float:
    """Returns the error added by imperceptible corruptions, relative to the clean error.

    iCE = (mean of noisy - clean) / clean; 0.1 means 10% more errors. It may be negative.

    Args:
        noisy: errors under the six noises of the set `iCE`.
        clean: the clean error.

    Returns:
        iCE; NaN if the clean error is 0, where iCE is undefined, or `noisy` is empty.
    """
    if not noisy or clean == 0:
        return math.nan
    return (math.fsum(noisy) / len(noisy) - clean) / clean


def calibration_bins(confidence: Tensor, correct: Tensor) -> Tensor:
    """Returns the bins of the calibration error, which add up over examples: number of examples,
    sum of confidences and number of correct examples per bin, float64 (3, BINS).

    Args:
        confidence: probability of the top class, (N,) in [0, 1].
        correct: bool (N,).
    """
    confidence = confidence.double()
    at = (confidence * BINS).long().clamp(0, BINS - 1)
    rows = torch.stack([torch.ones_like(confidence), confidence, correct.double()])
    zeros = torch.zeros(3, BINS, dtype=torch.float64, device=confidence.device)
    return zeros.index_add_(1, at, rows)


def calibration_error(bins: Tensor) -> float:
    """Returns the root mean square calibration error, sqrt(sum_b n_b/n (acc_b - conf_b)^2).

    Args:
        bins: output of `calibration_bins`, or a sum of several.

    Returns:
        In [0, 1]; NaN without examples.
    """
    count, confidence, correct = bins
    gaps = (correct - confidence).square() / count.clamp(min=1)
    return float((gaps.sum() / count.sum()).sqrt())

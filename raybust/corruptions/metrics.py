"""Metrics of corruption robustness, as plain formulas on tables of errors.

mCE and relative mCE: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019, arXiv:1903.12261). Their mCE divides by AlexNet's errors;
for CIFAR the authors advise against that, and here nothing is divided unless a normalizer is given.
iCE: Siedel et al. (VISAPP 2024, arXiv:2305.05400). Errors are shares in [0, 1].
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
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
NOISE_NAMES = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
"""What mCE_xN leaves out: it shows whether training with noise helps beyond noise."""

SEVERITIES = (1, 2, 3, 4, 5)
BINS = 100
"""Bins of the calibration error, as in the paper's."""

Errors = Mapping[str, Mapping[int, float]]
"""Corruption, severity, error."""


def mean_corruption_error(
    errors: Errors,
    *,
    without: Collection[str] = (),
    normalizer: Errors | None = None,
    clean: tuple[float, float] | None = None,
) -> float:
    """Returns the mean over corruptions of the mean error over severities.

    With a normalizer, as in ImageNet-C: the mean over c of sum_s E(c, s) / sum_s N(c, s). With
    `clean` besides, the relative mCE: the mean over c of
    sum_s (E(c, s) - E_clean) / sum_s (N(c, s) - N_clean).

    Args:
        errors: of the network; the same severities for each corruption.
        without: corruptions left out.
        normalizer: the errors of the network that is divided by, for instance AlexNet's.
        clean: the clean errors of the network and of the normalizer; needs one.

    Returns:
        A share, or a ratio where there is a normalizer; NaN where no corruption is left, or where a
        divisor is 0.
    """
    assert clean is None or normalizer is not None, "the relative mCE needs a normalizer"
    own, other = clean or (0.0, 0.0)
    values = []
    for name, row in errors.items():
        if name in without:
            continue
        value = math.fsum(error - own for error in row.values()) / len(row)
        if normalizer is not None:
            divisor = math.fsum(normalizer[name][level] - other for level in row) / len(row)
            value = value / divisor if divisor else math.nan
        values.append(value)
    return math.fsum(values) / len(values) if values else math.nan


def ice(noisy: Sequence[float], clean: float) -> float:
    """Returns the error that imperceptible corruptions add, relative to the clean one.

    iCE = (mean of noisy - clean) / clean; 0.1 is ten per cent more errors. It may be negative.

    Args:
        noisy: errors under each of the six noises of the set `iCE`.
        clean: the clean error.

    Returns:
        NaN where the clean error is 0, for which iCE is not defined, or `noisy` is empty.
    """
    if not noisy or clean == 0:
        return math.nan
    return (math.fsum(noisy) / len(noisy) - clean) / clean


def calibration_bins(confidence: Tensor, correct: Tensor) -> Tensor:
    """Returns what the calibration error is made of, which adds up over examples: examples,
    confidence and correct ones of each bin, float64 (3, BINS).

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
        bins: as `calibration_bins` makes them, or the sum of several.

    Returns:
        In [0, 1]; NaN for no examples.
    """
    count, confidence, correct = bins
    gaps = (correct - confidence).square() / count.clamp(min=1)
    return float((gaps.sum() / count.sum()).sqrt())

"""Accuracy under corruption: random Lp noise, published corrupted test sets, and corruptions
generated on the fly.

After Siedel et al. (VISAPP 2024, arXiv:2305.05400) and Hendrycks and Dietterich (ICLR 2019,
arXiv:1903.12261).
"""

from raybust.corruptions.counting import (
    Settings,
    check_corruptions,
    contents,
    evaluate_corruptions,
    named_sets,
)
from raybust.corruptions.counts import VERSION, CountsLog, Share, read_counts
from raybust.corruptions.generated import GeneratedSplit
from raybust.corruptions.metrics import (
    COMMON,
    EXTRA,
    NOISE_NAMES,
    calibration_error,
    ice,
    mean_corruption_error,
)
from raybust.corruptions.noise import NoisySplit
from raybust.corruptions.published import published
from raybust.corruptions.results import Cell, Corrupted, merge

__all__ = [
    "COMMON",
    "EXTRA",
    "NOISE_NAMES",
    "VERSION",
    "Cell",
    "Corrupted",
    "CountsLog",
    "GeneratedSplit",
    "NoisySplit",
    "Settings",
    "Share",
    "calibration_error",
    "check_corruptions",
    "contents",
    "evaluate_corruptions",
    "ice",
    "mean_corruption_error",
    "merge",
    "named_sets",
    "published",
    "read_counts",
]

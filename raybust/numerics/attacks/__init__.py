"""Attacks within a threat model.

Training uses `ascend` inside `attacked`; evaluation uses `fgsm`, `pgd`, `apgd`, `apgd_targeted`,
`fab_targeted` and `square`, which report for each example whether, where and when it was fooled.
"""

from raybust.numerics.attacks.apgd import apgd, apgd_targeted
from raybust.numerics.attacks.ascent import Network, ascend, fgsm, gradient_at, n_fgsm, pgd
from raybust.numerics.attacks.expectation import Expectation, mean_log_probability
from raybust.numerics.attacks.fab import Nearest, fab_targeted
from raybust.numerics.attacks.fold import foldable, folded
from raybust.numerics.attacks.losses import (
    Loss,
    check_classes,
    cross_entropy,
    dlr,
    margin,
    targeted_dlr,
)
from raybust.numerics.attacks.outcome import Outcome
from raybust.numerics.attacks.square import square
from raybust.numerics.attacks.state import Statistics, attacked, has_gradient, untracked

__all__ = [
    "Expectation",
    "Loss",
    "Nearest",
    "Network",
    "Outcome",
    "Statistics",
    "apgd",
    "apgd_targeted",
    "ascend",
    "attacked",
    "check_classes",
    "cross_entropy",
    "dlr",
    "fab_targeted",
    "fgsm",
    "foldable",
    "folded",
    "gradient_at",
    "has_gradient",
    "margin",
    "mean_log_probability",
    "n_fgsm",
    "pgd",
    "square",
    "targeted_dlr",
    "untracked",
]

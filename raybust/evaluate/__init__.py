"""Empirical accuracy, without certificates: clean, and under strong attacks.

`clean_accuracy` measures clean accuracy. `attack_examples` attacks a shard at an `AttackProtocol`,
`AttackTable` stores the rows, `summarize` derives the curve, flags of distrust and a record for
RobustBench.
"""

from raybust.evaluate.accuracy import Accuracy, clean_accuracy, correct
from raybust.evaluate.attack_protocol import (
    HEADLINE,
    AttackProtocol,
    View,
    make_attack_protocol,
    seen_by,
    views_of,
)
from raybust.evaluate.distrust import Flag, flags_of_network, flags_of_rows, flags_of_transfer
from raybust.evaluate.robustness import (
    Summary,
    curve_points,
    robustbench_record,
    side_by_side,
    summarize,
)
from raybust.evaluate.suite import attack_examples, check_classes, check_request
from raybust.evaluate.table import AttackRow, AttackTable

__all__ = [
    "HEADLINE",
    "Accuracy",
    "AttackProtocol",
    "AttackRow",
    "AttackTable",
    "Flag",
    "Summary",
    "View",
    "attack_examples",
    "check_classes",
    "check_request",
    "clean_accuracy",
    "correct",
    "curve_points",
    "flags_of_network",
    "flags_of_rows",
    "flags_of_transfer",
    "make_attack_protocol",
    "robustbench_record",
    "seen_by",
    "side_by_side",
    "summarize",
    "views_of",
]

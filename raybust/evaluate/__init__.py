"""Accuracy without a proof: clean, and under attacks that try hard. Stage after train.

`clean_accuracy` counts. `attack_examples` attacks one shard at an `AttackProtocol`, `AttackTable`
keeps the rows, `summarize` makes curve, flags of distrust and RobustBench's record of them.
"""

from raybust.evaluate.accuracy import Accuracy, clean_accuracy, correct
from raybust.evaluate.distrust import Flag, flags_of_network, flags_of_rows
from raybust.evaluate.protocol import AttackProtocol, make_attack_protocol
from raybust.evaluate.suite import attack_examples, check_request
from raybust.evaluate.summary import Summary, curve_points, robustbench_record, summarize
from raybust.evaluate.table import AttackRow, AttackTable

__all__ = [
    "Accuracy",
    "AttackProtocol",
    "AttackRow",
    "AttackTable",
    "Flag",
    "Summary",
    "attack_examples",
    "check_request",
    "clean_accuracy",
    "correct",
    "curve_points",
    "flags_of_network",
    "flags_of_rows",
    "make_attack_protocol",
    "robustbench_record",
    "summarize",
]

"""Is one network better than another? Paired tests on the same images, and over training seeds.

Each module is one kind of question: shares (`shares`), means such as the ACR (`means`), several
seeds (`seeds`), several columns at once (`families`), whole curves (`bands`), one-sided rules
(`rules`), and `verdicts` turns the numbers into words.
"""

from raybust.significance.bands import Band, difference_band
from raybust.significance.families import holm
from raybust.significance.means import compare_means
from raybust.significance.paired import Paired
from raybust.significance.rules import (
    Ruling,
    mean_at_least,
    mean_not_worse,
    share_at_least,
    share_not_worse,
)
from raybust.significance.seeds import compare_seeds, compare_values, seeds_interval
from raybust.significance.shares import LEVEL, compare_shares
from raybust.significance.verdicts import Decision, decide

__all__ = [
    "LEVEL",
    "Band",
    "Decision",
    "Paired",
    "Ruling",
    "compare_means",
    "compare_seeds",
    "compare_shares",
    "compare_values",
    "decide",
    "difference_band",
    "holm",
    "mean_at_least",
    "mean_not_worse",
    "seeds_interval",
    "share_at_least",
    "share_not_worse",
]

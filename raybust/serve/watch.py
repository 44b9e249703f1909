"""Watches the answers of a server: do its images still look like the test set to the network?

Over a window of the latest full-radius answers, the share of abstentions is compared with the test
set's by an exact binomial test, the radii by a Mann-Whitney test, both two-sided, at half of
`LEVEL` each (Bonferroni). The window moves, so the level holds for each look, not for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest, mannwhitneyu

WINDOW = 500
LEVEL = 0.001
LEAST = 50
"""Answers in the window, the level of the test, and answers before it is made (our choices)."""


@dataclass
class Watch:
    """The latest answers beside the test set's.

    Attributes:
        radii: of the test set at the server's protocol, -1 on abstention; empty if unknown.
    """

    radii: Sequence[float]

    def __post_init__(self) -> None:
        self.latest: deque[float] = deque(maxlen=WINDOW)

    def add(self, radius: float) -> None:
        """Adds an answer of full radius, -1 on abstention."""
        self.latest.append(radius)

    def plain(self) -> dict[str, Any]:
        """Returns the comparison: `drift` is true, false, or None while it is not known."""
        count = len(self.latest)
        abstained = sum(radius < 0 for radius in self.latest)
        found: dict[str, Any] = {
            "answers": count,
            "abstention": abstained / count if count else None,
            "mean_radius": _mean(self.latest) if count else None,
            "test_abstention": None,
            "test_mean_radius": None,
            "drift": None,
        }
        if not self.radii:
            return found | {
                "text": "No drift test: no certificates of the test set at this protocol, or its"
                " data are not here to compare them with."
            }
        total, zeros = len(self.radii), sum(radius < 0 for radius in self.radii)
        found["test_abstention"] = zeros / total
        found["test_mean_radius"] = _mean(self.radii)
        if count < LEAST:
            return found | {"text": f"Drift test after {LEAST} answers; {count} so far."}
        # One more of each kind, so that a share of 0 or 1 does not make one answer impossible.
        share = (zeros + 1) / (total + 2)
        least = min(
            binomtest(abstained, count, share).pvalue,
            mannwhitneyu(list(self.latest), list(self.radii)).pvalue,
        )
        found["drift"] = bool(least < LEVEL / 2)
        word = "differ from" if found["drift"] else "agree with"
        return found | {
            "text": f"The last {count} answers {word} the test set (p = {least:.2g}):"
            f" abstentions {found['abstention']:.3f} against {found['test_abstention']:.3f},"
            f" mean radius {found['mean_radius']:.3f} against {found['test_mean_radius']:.3f}."
        }


def _mean(radii: Collection[float]) -> float:
    return sum(max(radius, 0.0) for radius in radii) / len(radii)

"""Which epoch's network a run uses: `train.select`.

With a metric, it is the epoch with the largest value so far, the first of equal ones. Robust
accuracy can fall for the second half of a run while training goes on (Rice, Wong and Kolter, ICML
2020, arXiv:2002.11569).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raybust.config.measured import SELECTED

LAST = "last"
"""Value of `train.select` that uses the last epoch."""


class Selection:
    """The epoch that a run uses so far.

    Attributes:
        epoch: the chosen epoch, 0 before the first one.
        metrics: what it measured.
    """

    def __init__(self, metric: str) -> None:
        """Starts without an epoch.

        Args:
            metric: the value of `train.select`.
        """
        self._metric = metric
        self.epoch, self.metrics = 0, dict[str, float]()

    def consider(self, epoch: int, metrics: dict[str, float], *, whole: bool) -> None:
        """Chooses an epoch if it is better than the chosen one, and adds to its metrics which epoch
        is chosen.

        Args:
            epoch: number of completed epochs, from 1.
            metrics: of the epoch.
            whole: whether every enabled measurement was made in it; only such epochs are compared.
        """
        if self._metric == LAST:
            return
        best = self.metrics.get(self._metric, -math.inf)
        if whole and metrics[self._metric] > best:
            self.epoch, self.metrics = epoch, metrics
        metrics[SELECTED] = float(self.epoch or epoch)

    def chosen(self) -> dict[str, Any]:
        """Returns the entry of a checkpoint's manifest, {} if no epoch is chosen."""
        if not self.epoch:
            return {}
        return {"selected": {"epoch": self.epoch, "metrics": self.metrics}}

    def restore(self, manifest: Mapping[str, Any]) -> None:
        """Continues from a checkpoint's manifest."""
        if "selected" in manifest:
            self.epoch = manifest["selected"]["epoch"]
            self.metrics = manifest["selected"]["metrics"]

"""The live table of a sweep: a row per finished trial, and a progress bar on a terminal.

Aligned rows go to standard error, terminal or not; the bar shows the number of running trials and
the best so far.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from raybust.config import Config
from raybust.reporting.columns import ACCURACY, number, settings
from raybust.search.race import interval
from raybust.search.records import FINISHED, TrialRecord
from raybust.stages.bars import Echo, progress_bar, silent

_STATES = {"COMPLETE": "finished", "PRUNED": "stopped early", "FAIL": "failed"}
_HEADS = ("trial", "state", "method", "budget", "{metric}", "best", "val. accuracy", "settings")
_RIGHT = {0, 3, 4, 5, 6}


class Table:
    """Prints the table; a context manager that closes the progress bar.

    Args:
        config: the sweep's.
        echo: of the command; a silent one prints no rows either.
        records: trials of an earlier start, among which may be the best so far.
    """

    def __init__(self, config: Config, echo: Echo, records: Sequence[TrialRecord] = ()) -> None:
        part = config.tune
        self._config = config
        self._best: TrialRecord | None = None
        self._heads = [head.format(metric=part.metric) for head in _HEADS]
        self._widths = [max(len(head), 6) for head in self._heads[:-1]]
        self._widths[1], self._widths[2] = len("stopped early"), 12
        finished = [record for record in records if record.state in FINISHED]
        for record in finished:
            self._consider(record)
        self._silent = echo is silent
        self._bar = progress_bar(part.trials, "trials", echo, len(finished))
        self._headed = False

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the bar: Ray copies what a sweep calls, and some streams have no copy."""
        return {key: value for key, value in vars(self).items() if key != "_bar"}

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def row(self, record: TrialRecord, running: int = 0) -> None:
        """Prints a finished trial.

        Args:
            record: the trial.
            running: number of trials still running.
        """
        self._note(record, running)
        self._bar.update(1)
        cells = self._cells(record)
        if not self._headed:
            self._headed = True
            self._fit(cells)
            self._write(self._heads)
        self._write(cells)

    def seed(self, record: TrialRecord, running: int = 0) -> None:
        """Prints the mean of a configuration that has a further seed; arguments as in `row`."""
        self._note(record, running)
        count, failed = len(record.values), f", {len(record.failed)} failed"
        low, high = interval([goals[0] for goals in record.values])
        means = [f"mean over the seeds [{number(low)}, {number(high)}]"] * (count > 1)
        self._write([
            str(record.number),
            f"{count} seed{'s' * (count != 1)}{failed * bool(record.failed)}",
            record.method,
            self._spent(record),
            number(record.value),
            number(self._best.value if self._best else None),
            number(record.metrics.get(ACCURACY)),
            "; ".join([*record.failed, *means]),
        ])  # fmt: skip

    def _note(self, record: TrialRecord, running: int) -> None:
        """Shows how many are running and the best so far beside the bar."""
        self._consider(record)
        notes = [f"{running} running"]
        if self._best is not None:
            notes.append(f"best {number(self._best.value)} (trial {self._best.number})")
        self._bar.set_postfix_str(", ".join(notes), refresh=False)

    def _cells(self, record: TrialRecord) -> list[str]:
        state = _STATES[record.state]
        if record.state == "COMPLETE" and record.feasible is False:
            state = "infeasible"
        words = settings(record.point)
        if record.reason:
            words = f"{words}  ({record.reason})"
        return [
            str(record.number),
            state,
            str(record.point.get("method.name", self._config.method.key)),
            self._spent(record),
            number(record.value),
            number(self._best.value if self._best else None),
            number(record.metrics.get(ACCURACY)),
            words,
        ]

    def _spent(self, record: TrialRecord) -> str:
        """Returns how much of its budget a trial used: epochs, or a share of passes or seconds."""
        unit, amount = self._config.train.budget
        if unit == "epoch":
            return f"{record.epoch}/{record.point.get('train.epochs', amount):g}"
        return f"{record.spent.get(record.epoch, 0.0) / amount:.0%}"

    def _consider(self, record: TrialRecord) -> None:
        """Updates the best trial; only complete, feasible trials qualify."""
        if record.state != "COMPLETE" or record.feasible is False or record.value is None:
            return
        if self._best is not None and self._best.number == record.number:
            self._best = record  # its mean over the seeds
        sign = 1 if self._config.tune.mode == "max" else -1
        if self._best is None or sign * record.value > sign * (self._best.value or 0.0):
            self._best = record

    def _fit(self, cells: Sequence[str]) -> None:
        """Widens all columns but the last to fit the cells."""
        wider = zip(self._widths, cells[:-1], strict=True)
        self._widths = [max(width, len(cell)) for width, cell in wider]

    def _write(self, cells: Sequence[str]) -> None:
        """Prints a row; columns are as wide as their widest cell so far."""
        if self._silent:
            return
        self._fit(cells)
        placed = [
            cell.rjust(width) if at in _RIGHT else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(cells, self._widths, strict=False))
        ]
        self._bar.write("  ".join([*placed, cells[-1]]), file=sys.stderr)

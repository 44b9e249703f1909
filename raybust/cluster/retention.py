"""What stays on disk of the trials of a sweep: the weights of the best, the metrics of all.

A checkpoint is mostly optimizer state and weights, which thousands of trials would fill a disk
with. A trial that has ended loses its optimizer state at once, and its weights unless it is one of
the best so far. The weights that stay are also sent to MLflow, after the last trial.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from raybust.cluster.runlog import is_open
from raybust.config import Config
from raybust.disk import checkpoint, runs
from raybust.disk.strip import strip
from raybust.errors import WorkError
from raybust.search.records import FINISHED, TrialRecord, front, ranked
from raybust.search.study import Study
from raybust.track import Journal

WEIGHTS = "weights.journal.jsonl"
"""The journal of a trial's weights."""

_COPIES = 4
"""Copies of the weights in a checkpoint at most: network, two moments of adam, moving average."""


class Retention:
    """Removes files of ended trials. Opening it catches up with an earlier start.

    Args:
        config: the sweep's.
        study: the sweep's record.
        folder: the sweep's.
        size: bytes of the weights of the largest network.
    """

    def __init__(self, config: Config, study: Study, folder: Path, size: int) -> None:
        self._config, self._folder, self._size = config, folder, size
        self._kept: list[TrialRecord] = []
        self._waiting: list[TrialRecord] = []
        for record in study.records():
            if record.state in FINISHED:
                self.settle(record)

    def check_space(self) -> None:
        """Checks that a further trial fits on the disk.

        Raises:
            WorkError: it does not.
        """
        free = shutil.disk_usage(self._folder).free
        needed = bytes_of_trial(self._config, self._size)
        if free < needed:
            raise WorkError(
                f"{self._folder.name}: the disk is full: {free / 1e6:.0f} MB are free, and a trial"
                f" needs {needed / 1e6:.0f} MB; free disk space and rerun the same command to"
                " resume"
            )

    def settle(self, record: TrialRecord) -> None:
        """Removes what is no longer needed once a trial, or a further seed of it, has ended for
        good. The files of a trial that its worker still writes about stay until the next call."""
        candidates = [*(one for one in self._kept if one.number != record.number), record]
        self._kept = keepers(self._config, candidates)
        kept = {one.number for one in self._kept}
        self._waiting += [one for one in candidates if one is record or one.number not in kept]
        self._strip(
            [
                one
                for one in self._waiting
                if not any(map(is_open, runs.seed_folders(self._folder, one.number)))
            ]
        )

    def finish(self) -> None:
        """Removes what is left and records the weights that stay in journals, which go to MLflow.
        All trials have ended."""
        self._strip(list(self._waiting))
        kept = [runs.seed_folders(self._folder, record.number) for record in self._kept]
        for folder in itertools.chain(*kept):
            used = checkpoint.used(folder)
            if used is None or (folder / WEIGHTS).exists():
                continue
            with Journal(folder / WEIGHTS) as journal:
                journal.attach(runs.read_identity(folder).uid, self._config.track.experiment)
                journal.artifact(used / checkpoint.WEIGHTS, "checkpoint")

    def _strip(self, records: list[TrialRecord]) -> None:
        kept = {one.number for one in self._kept}
        for record in records:
            for folder in runs.seed_folders(self._folder, record.number):
                strip(folder, weights=record.number in kept)
        self._waiting = [one for one in self._waiting if one not in records]


def bytes_of_trial(config: Config, size: int) -> int:
    """Returns the disk that a running trial needs at most.

    Args:
        config: `train.keep` checkpoints stay while the next one is written, and with
            `train.select` the weights of one epoch more than that.
        size: bytes of the network's weights.
    """
    selected = (config.train.keep + 2) * (config.train.select != "last")
    return ((config.train.keep + 1) * _COPIES + selected) * size


def bytes_of_sweep(config: Config, size: int, at_once: int) -> int:
    """Returns the disk that a sweep needs at most: weights that stay, here and in MLflow, and the
    trials that run at a time."""
    kept = max(config.tune.keep, config.tune.finalists)
    return 2 * kept * config.tune.seeds * size + at_once * bytes_of_trial(config, size)


def keepers(config: Config, records: list[TrialRecord]) -> list[TrialRecord]:
    """Returns those of some ended trials whose weights stay: the best `tune.keep`, and all that may
    become finalists, such as those in a race. Without a race, a trial that is left out now is left
    out of any larger set too.

    Args:
        config: the sweep's.
        records: trials, ended.
    """
    part = config.tune
    complete = ranked(records, part.mode)
    most = max(part.keep, part.finalists)
    found = [r for rank, r in enumerate(complete) if rank < most or r.in_race]
    if len(part.directions()) > 1:
        fit = [record for record in complete if record.feasible is not False]
        best = {record.method: record for record in reversed(fit)}
        ends = front(fit, part.directions())
        found = [record for record in complete if record in (*found, *ends, *best.values())]
    return found

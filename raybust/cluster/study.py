"""The study: Optuna's record of a sweep, which is the one truth about its trials.

A sweep that was killed is resumed from here: finished trials stay, running ones are handed out
again under their own numbers. States are Optuna's: COMPLETE, PRUNED (stopped early), FAIL (NaN,
error), RUNNING. Stage tune.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from raybust.cluster.space import Point, Space
from raybust.config.schema import Tune
from raybust.errors import RequestError

POINT, REASON, METRICS = "point", "reason", "metrics"
FINISHED = ("COMPLETE", "PRUNED", "FAIL")


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the study has it.

    Attributes:
        number: its number in the sweep, from 0.
        state: COMPLETE, PRUNED, FAIL or RUNNING.
        point: searched keys to values.
        value: the last value of the optimized metric, or None.
        epoch: the last epoch reported, 0 for none.
        history: epoch to value of the optimized metric.
        metrics: the metrics of the last epoch.
        reason: why it failed, or None.
    """

    number: int
    state: str
    point: Point
    value: float | None
    epoch: int
    history: dict[int, float]
    metrics: dict[str, float]
    reason: str | None


class Study:
    """Asks Optuna for points and tells it what came out."""

    def __init__(self, config: Tune, space: Space, folder: Path, name: str, seed: int) -> None:
        """Opens the study or creates it, its first points enqueued.

        Args:
            config: sampler, direction, storage.
            space: what is searched.
            folder: the sweep's folder; holds `study.db` unless the configuration names a storage.
            name: the study's name in its storage.
            seed: of the sampler.

        Raises:
            RequestError: the storage cannot be opened.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.space = space
        self._url = config.storage or f"sqlite:///{folder / 'study.db'}"
        directions = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
        try:
            self._study = optuna.create_study(
                storage=self._url,
                study_name=name,
                direction=directions[config.mode],
                load_if_exists=True,
            )
        except (SQLAlchemyError, ImportError, ValueError) as error:
            text = " ".join(str(error).split("\n")[0].split())
            raise RequestError(f"tune.storage: the study cannot be opened: {text}") from None
        trials = self._study.get_trials(deepcopy=False)
        # A sampler of the same seed would draw the points of the earlier start once more.
        drawn = hashlib.blake2b(f"{seed}/{len(trials)}".encode(), digest_size=4)
        self._study.sampler = _sampler(config, int.from_bytes(drawn.digest()))
        self._open: dict[int, optuna.Trial] = {}
        if not trials:
            for point in (space.defaults(), *config.points):
                if point:
                    self._study.enqueue_trial(point, skip_if_exists=True)

    def ask(self) -> tuple[int, Point]:
        """Returns number and point of a new trial."""
        trial = self._study.ask()
        point = self.space.suggest(trial)
        trial.set_user_attr(POINT, point)
        self._open[trial.number] = trial
        return trial.number, point

    def interrupted(self) -> list[tuple[int, Point]]:
        """Takes up the trials that an earlier start left running; returns numbers and points.

        A trial that was asked for but died before it had its point gets it now: it may be an
        enqueued one, which would be lost.
        """
        found = []
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            trial = optuna.Trial(self._study, frozen._trial_id)
            self._open[frozen.number] = trial
            if POINT not in frozen.user_attrs:
                trial.set_user_attr(POINT, self.space.suggest(trial))
            found.append((frozen.number, trial.user_attrs[POINT]))
        return found

    def report(self, number: int, epoch: int, value: float, metrics: dict[str, float]) -> None:
        """Stores the optimized metric and all metrics of an epoch of an open trial."""
        trial = self._open[number]
        if not math.isnan(value):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an epoch repeated after a resume
                trial.report(value, epoch)
        trial.set_user_attr(METRICS, metrics)

    def complete(self, number: int, value: float) -> None:
        """Closes a trial that trained to its end; a value that is not finite fails it."""
        if not math.isfinite(value):
            self.fail(number, f"its value is {value}")
            return
        self._study.tell(self._open.pop(number), value)

    def prune(self, number: int) -> None:
        """Closes a trial that was stopped early."""
        self._study.tell(self._open.pop(number), state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """Closes a trial that failed, with its reason."""
        trial = self._open.pop(number)
        trial.set_user_attr(REASON, reason)
        self._study.tell(trial, state=TrialState.FAIL)

    def records(self) -> list[TrialRecord]:
        """Returns all trials that have a point, in order of their numbers."""
        return [_record(trial) for trial in self._study.get_trials() if POINT in trial.user_attrs]

    def finished(self) -> int:
        """Returns the number of trials that are complete, pruned or failed."""
        return sum(record.state in FINISHED for record in self.records())


def _record(trial: FrozenTrial) -> TrialRecord:
    values = trial.intermediate_values
    epoch = max(values, default=0)
    return TrialRecord(
        trial.number,
        trial.state.name,
        trial.user_attrs[POINT],
        trial.value if trial.value is not None else values.get(epoch),
        epoch,
        values,
        trial.user_attrs.get(METRICS, {}),
        trial.user_attrs.get(REASON),
    )


def _sampler(config: Tune, seed: int) -> optuna.samplers.BaseSampler:
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    options: dict[str, Any] = {"multivariate": True, "group": True, "constant_liar": True}
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=config.startup, **options)

"""Early stopping by name: ASHA, asynchronous HyperBand, the median rule; in the unit of the budget.

Ray's schedulers lose their state when the driver dies. `_Resumed` replays the trials of earlier
starts, so that a resumed sweep stops trials just as early, and never stops spared trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from raybust.config import Config
from raybust.search.records import FINISHED, TrialRecord
from raybust.search.study import Study

NUMBER, SPARED, SEED = "number", "spared", "seed"
"""Keys of a trial's configuration: its number in the study; whether it is never stopped early;
index of its seed, where further ones (above 0) are compared with nothing."""

_BRACKETS = 3
_FEWEST = 3


@dataclass(frozen=True)
class _Earlier:
    """Stands in for a Tune trial of an earlier start."""

    trial_id: str


class _Resumed:
    """Scheduler mixin that replays the reports of earlier starts: finished trials' before the first
    new trial, interrupted trials' when they resume. Spared trials' reports count like any other's.
    """

    def __init__(self, earlier: list[TrialRecord], **options: Any) -> None:
        super().__init__(**options)
        self._earlier = {record.number: record for record in earlier}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Sets metric and mode, then replays the finished trials."""
        base: Any = super()
        taken: bool = base.set_search_properties(metric, mode, **spec)
        for record in self._earlier.values():
            if record.state in FINISHED:
                trial = _Earlier(f"earlier-{record.number}")
                base.on_trial_add(None, trial)
                self._replay(trial, record)
        return taken

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        """Adds a trial and replays its reports from before it was interrupted."""
        base: Any = super()
        if trial.config.get(SEED):
            return
        base.on_trial_add(controller, trial)
        # Only once: Tune adds a trial again after its worker died.
        if record := self._earlier.pop(trial.config[NUMBER], None):
            self._replay(trial, record)

    def _replay(self, trial: Any, record: TrialRecord) -> None:
        me: Any = self
        for epoch, value in sorted(record.history.items()):
            me.replay(trial, {me._time_attr: record.spent[epoch], me._metric: value})

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns whether a trial continues or stops after an epoch."""
        base: Any = super()
        if trial.config.get(SEED):
            return TrialScheduler.CONTINUE
        verdict: str = base.on_trial_result(controller, trial, result)
        if verdict == TrialScheduler.STOP and trial.config.get(SPARED):
            self.undo_stop(trial)
            return TrialScheduler.CONTINUE
        return verdict

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Records a trial's last epoch."""
        base: Any = super()
        if not getattr(trial, "config", {}).get(SEED):
            base.on_trial_complete(controller, trial, result)

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        """Forgets a trial that failed."""
        base: Any = super()
        if not trial.config.get(SEED):
            base.on_trial_error(controller, trial)

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        """Forgets a trial that ended before its first epoch."""
        base: Any = super()
        if not trial.config.get(SEED):
            base.on_trial_remove(controller, trial)

    def undo_stop(self, trial: Any) -> None:
        """Forgets that a trial was stopped; most schedulers do not record it."""


class ResumedASHA(_Resumed, ASHAScheduler):
    """ASHA with the reports of earlier starts."""

    def replay(self, trial: Any, result: dict[str, Any]) -> None:
        """Records an earlier start's epoch at its rung."""
        ASHAScheduler.on_trial_result(self, None, trial, result)


class ResumedMedian(_Resumed, MedianStoppingRule):
    """The median stopping rule (Golovin et al., 2017) with the reports of earlier starts."""

    def replay(self, trial: Any, result: dict[str, Any]) -> None:
        """Records an earlier start's epoch without deciding on it again."""
        self.on_trial_complete(None, trial, result)

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Records the last epoch. A trial that failed in its first epoch has none, on which Ray's
        own method would fail."""
        if self._time_attr in result and self._metric in result:
            super().on_trial_complete(controller, trial, result)

    def undo_stop(self, trial: Any) -> None:
        """Removes the trial from the stopped ones, which may not report again."""
        self._stopped_trials.discard(trial)


def make_scheduler(config: Config, study: Study) -> TrialScheduler:
    """Returns the scheduler of a sweep.

    Args:
        config: section `tune` names the scheduler, `train` the budget of a trial.
        study: holds the trials of earlier starts.
    """
    part = config.tune
    unit, budget = config.train.budget
    if unit == "epoch":
        budget = study.space.largest("train.epochs", budget)
    grace = max(1.0, part.grace * budget) if unit == "epoch" else part.grace * budget
    if part.scheduler == "none":
        return FIFOScheduler()
    if part.scheduler == "median":
        return ResumedMedian(
            study.records(),
            time_attr=unit,
            grace_period=grace,
            min_samples_required=_FEWEST,
            min_time_slice=math.inf,  # trials never wait for each other
            hard_stop=True,
        )
    return ResumedASHA(
        study.records(),
        time_attr=unit,
        # The training loop ends a trial itself, after its last checkpoint.
        max_t=budget,
        stop_last_trials=False,
        grace_period=grace,
        reduction_factor=part.reduction,
        brackets=_BRACKETS if part.scheduler == "hyperband" else 1,
    )

"""Early stopping by name: ASHA, asynchronous HyperBand, the median rule; in the unit of the budget.

Ray's own classes, which forget everything when the driver dies: `_Resumed` gives them the trials
of the earlier starts, so that a resumed sweep stops as hard, and spares trials that are to be
finished. Stage tune.
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

NUMBER, SPARED = "number", "spared"
"""Keys of a trial's configuration: its number in the study; whether nothing may stop it early."""

_BRACKETS = 3
_FEWEST = 3


@dataclass(frozen=True)
class _Earlier:
    """What a scheduler needs of a trial."""

    trial_id: str


class _Resumed:
    """Mixin of a scheduler: replays what trials reported in earlier starts, of finished ones before
    the first new one, of interrupted ones when they are gone on with; what spared trials reach
    counts for the others."""

    def __init__(self, earlier: list[TrialRecord], **options: Any) -> None:
        super().__init__(**options)
        self._earlier = {record.number: record for record in earlier}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Takes metric and mode from Tune, then replays the finished trials."""
        base: Any = super()
        taken: bool = base.set_search_properties(metric, mode, **spec)
        for record in self._earlier.values():
            if record.state in FINISHED:
                trial = _Earlier(f"earlier-{record.number}")
                base.on_trial_add(None, trial)
                self._replay(trial, record)
        return taken

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        """Takes a trial up, with what it reported before it was interrupted."""
        base: Any = super()
        base.on_trial_add(controller, trial)
        # Once: Tune adds a trial again whose worker died.
        if record := self._earlier.pop(trial.config[NUMBER], None):
            self._replay(trial, record)

    def _replay(self, trial: Any, record: TrialRecord) -> None:
        me: Any = self
        for epoch, value in sorted(record.history.items()):
            me.replay(trial, {me._time_attr: record.spent[epoch], me._metric: value})

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns the verdict on a trial after an epoch."""
        base: Any = super()
        verdict: str = base.on_trial_result(controller, trial, result)
        if verdict == TrialScheduler.STOP and trial.config.get(SPARED):
            self.forgive(trial)
            return TrialScheduler.CONTINUE
        return verdict

    def forgive(self, trial: Any) -> None:
        """Takes back that a trial was stopped; most schedulers keep no note of it."""


class ResumedASHA(_Resumed, ASHAScheduler):
    """ASHA that knows what an earlier start saw."""

    def replay(self, trial: Any, result: dict[str, Any]) -> None:
        """Notes an epoch of an earlier start at its rung."""
        ASHAScheduler.on_trial_result(self, None, trial, result)


class ResumedMedian(_Resumed, MedianStoppingRule):
    """The median stopping rule (Golovin et al., 2017) that knows what an earlier start saw."""

    def replay(self, trial: Any, result: dict[str, Any]) -> None:
        """Notes an epoch of an earlier start, without judging it again."""
        self.on_trial_complete(None, trial, result)

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Notes the last epoch; a trial that failed in its first one has none, and Ray would look
        in vain for what it spent."""
        if self._time_attr in result and self._metric in result:
            super().on_trial_complete(controller, trial, result)

    def forgive(self, trial: Any) -> None:
        """Takes the trial off the list of the stopped ones, which may not report again."""
        self._stopped_trials.discard(trial)


def make_scheduler(config: Config, study: Study) -> TrialScheduler:
    """Returns the scheduler of a sweep.

    Args:
        config: its section `tune` names the scheduler; `train` the budget of a trial.
        study: what an earlier start left.
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
            min_time_slice=math.inf,  # a trial never waits for others
            hard_stop=True,
        )
    return ResumedASHA(
        study.records(),
        time_attr=unit,
        # The loop ends a trial itself, after its last checkpoint.
        max_t=budget,
        stop_last_trials=False,
        grace_period=grace,
        reduction_factor=part.reduction,
        brackets=_BRACKETS if part.scheduler == "hyperband" else 1,
    )

"""The study: Optuna's record of a sweep and the only source of truth about its trials.

A killed sweep resumes from it: finished trials stay, running ones are handed out again under their
numbers. States are Optuna's: COMPLETE, PRUNED (stopped early), FAIL (NaN, error), RUNNING.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from raybust.config import Config
from raybust.errors import RequestError
from raybust.search.constraints import violations
from raybust.search.database import load_study, one_line, open_study
from raybust.search.records import FINISHED, TrialRecord, front
from raybust.search.sampler import Grid, make_sampler, sampler_name, seed_after
from raybust.search.seeds import Seeds
from raybust.search.space import Point, Space
from raybust.search.stopped import estimates

POINT, REASON, METRICS, HISTORY, EARLIER = "point", "reason", "metrics", "history", "earlier"
PROPOSED = "proposed"
"""Marks an enqueued trial whose point is the sampler's."""
_SPACE, _SWEEP = "space", "sweep"
_WRITE_S = 1.0
"""Seconds between two writes of a trial's epochs."""
_PARTS = 20
"""Steps of a budget in passes or seconds. tpe ranks stopped trials by step, then by value, so
trials that were stopped at the same rung, each slightly past it, must share a step."""


@dataclass
class _Pending:
    """Epochs of an open trial, some of which the storage may lack; `due` is the next write."""

    metrics: dict[str, float]
    history: dict[str, list[float]]
    due: float = 0.0


class Study:
    """Gets points from Optuna and reports their results.

    Attributes:
        space: what is searched.
        study: Optuna's own.
        seeds: the further seeds of its trials.
    """

    def __init__(
        self,
        config: Config,
        space: Space,
        folder: Path,
        uid: str,
        first: Sequence[Point] = (),
        *,
        reading: bool = False,
    ) -> None:
        """Opens or creates the study and enqueues its first points.

        Args:
            config: sampler, objectives, storage, seed.
            space: what is searched.
            folder: the sweep's folder; holds `study.db` unless the configuration names a storage.
            uid: the sweep's key, so that no two sweeps share a study.
            first: points to try first.
            reading: open an existing study without writing.

        Raises:
            RequestError: the storage cannot be opened or written, the study is another sweep's or,
                if `reading`, it does not exist.
        """
        self.space, self._config = space, config
        self._directions = config.tune.directions()
        self._violations = partial(violations, bounds=config.tune.bounds())
        self._unit, self._budget = config.train.budget
        self._method = config.method.key
        self.study = (load_study if reading else open_study)(config, folder, uid)
        if not reading:
            self._claim(uid)
        self.seeds = Seeds(config, self.study, reading=reading)
        sampler = sampler_name(config, space)
        self._learns, self._estimates = sampler in ("tpe", "gp"), sampler == "gp"
        trials = self.study.get_trials(deepcopy=False)
        # With the same seed, the sampler would draw the points of the earlier start again.
        seed = seed_after(config, len(trials))
        self.study.sampler = make_sampler(config, space, seed)
        if self._estimates:  # every point is a proposal; what a given one leaves open is random
            self.study.sampler = optuna.samplers.RandomSampler(seed)
        self._open: dict[int, optuna.Trial] = {}
        self._pending: dict[int, _Pending] = {}
        for point in first:
            if named := space.named(point):
                self.study.enqueue_trial(named, skip_if_exists=True)

    def warm_start(self, other: Study, name: str) -> int:
        """Adds finished trials of another sweep, with points in this space, for the sampler only;
        returns how many. Does nothing if some have been added before.

        Args:
            other: record of that sweep, with the same goals; values are means over its seeds.
            name: of that sweep.
        """
        known = self.study.get_trials(deepcopy=False)
        if any(EARLIER in trial.user_attrs for trial in known):
            return 0
        added = 0
        for trial in other.study.get_trials(deepcopy=False):
            if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                continue
            if not self.space.contains(point := trial.user_attrs.get(POINT, {})):
                continue
            first, record, values = self._record(trial), other._merged(trial), None
            if trial.state == TrialState.COMPLETE:
                values = [record.metrics[key] for key in self._directions]
            steps: dict[int, float] = {}
            if first.value is not None and len(self._directions) == 1:
                # The other sweep's budget may be in another unit.
                steps[self._step(self._spent(first.epoch, first.metrics))] = first.value
            copy = optuna.trial.create_trial(
                state=trial.state,
                values=values,
                params=self.space.named(point),
                distributions=self.space.distributions(point),
                user_attrs={EARLIER: name},
                intermediate_values=steps,
                constraints=self._violations(record.metrics),
            )
            self.study.add_trial(copy)
            added += 1
        return added

    def ask(self) -> tuple[int, Point] | None:
        """Returns number and point of a new trial; None if a grid is exhausted."""
        grid = self.study.sampler
        if isinstance(grid, Grid) and grid.is_exhausted(self.study):
            return None
        if (self.seeds and self._learns) or self._estimates:
            self._enqueue_proposal()
        trial = self.study.ask()
        point = self.space.suggest(trial)
        trial.set_user_attr(POINT, point)
        self._open[trial.number] = trial
        return trial.number, point

    def interrupted(self) -> list[tuple[int, Point]]:
        """Reopens the trials that an earlier start left running; returns numbers and points.

        A trial that died before it was given a point gets one now: it may be an enqueued trial,
        which would otherwise be lost.
        """
        found = []
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            trial = optuna.Trial(self.study, frozen._trial_id)
            self._open[frozen.number] = trial
            if POINT not in frozen.user_attrs:
                trial.set_user_attr(POINT, self.space.suggest(trial))
            found.append((frozen.number, trial.user_attrs[POINT]))
        return found

    def is_enqueued(self, number: int) -> bool:
        """Returns whether a trial's point was enqueued rather than drawn by the sampler."""
        trial = self.study.get_trials(deepcopy=False)[number]
        return "fixed_params" in trial.system_attrs and PROPOSED not in trial.user_attrs

    def report(self, number: int, epoch: int, value: float, metrics: dict[str, float]) -> None:
        """Records an epoch of an open trial: the optimized metric, NaN if not measured, and all
        metrics. Metrics that were not measured keep their last value.

        A trial's epochs are written to the storage at most once a second, and when it is closed,
        because every write is a transaction on disk.
        """
        trial, pending = self._open[number], self._pending_of(number)
        pending.metrics |= metrics
        if not math.isnan(value):
            pending.history[str(epoch)] = [self._spent(epoch, metrics), value]
        if time.monotonic() >= pending.due:
            self._write(trial, pending)

    def complete(self, number: int) -> None:
        """Closes a trial that trained to the end; fails it if a value is not finite."""
        trial = self._flushed(number)
        metrics = trial.user_attrs.get(METRICS, {})
        values = [float(metrics.get(key, math.nan)) for key in self._directions]
        for key, value in zip(self._directions, values, strict=True):
            if not math.isfinite(value):
                self.fail(number, f"its {key} is {value}")
                return
        self._constrain(trial)
        self.study.tell(self._open.pop(number), values)

    def prune(self, number: int) -> None:
        """Closes a trial that was stopped early. tpe ranks it by its last value."""
        trial = self._flushed(number)
        self._constrain(trial)
        history = trial.user_attrs.get(HISTORY, {})
        if history and len(self._directions) == 1:  # Optuna allows reports for one objective only
            spent, value = history[max(history, key=int)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it may have been reported before a kill
                trial.report(value, self._step(spent))
        self.study.tell(self._open.pop(number), state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """Closes a failed trial with its reason."""
        self._flushed(number).set_user_attr(REASON, reason)
        self.study.tell(self._open.pop(number), state=TrialState.FAIL)

    def records(self) -> list[TrialRecord]:
        """Returns all trials that have a point, ordered by number."""
        trials = self.study.get_trials(deepcopy=False)
        found = [self._merged(trial) for trial in trials if POINT in trial.user_attrs]
        return self.seeds.raced(found)

    def record(self, number: int) -> TrialRecord:
        """Returns one trial, which has a point."""
        if self.seeds.race:
            return next(record for record in self.records() if record.number == number)
        return self._merged(self.study.get_trials(deepcopy=False)[number])

    def finished(self) -> int:
        """Returns the number of trials that are complete, pruned or failed."""
        return sum(record.state in FINISHED for record in self.records())

    def pareto(self) -> list[int]:
        """Returns the numbers of the complete, feasible trials that no other trial dominates."""
        complete = [r for r in self.records() if r.state == "COMPLETE" and r.feasible is not False]
        return [record.number for record in front(complete, self._directions)]

    def with_means(self, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
        """Returns the study in memory with the means over seeds, and for gp's sampler `estimates`.

        Args:
            sampler: that is to see them; a new one, as Optuna's belong to one study each.
        """
        trials = self.study.get_trials(deepcopy=False)
        records = {t.number: self._merged(t) for t in trials if POINT in t.user_attrs}
        guessed = {}
        if sampler is not None and self._estimates:
            guessed = estimates(records.values(), self._config.tune.metric, self._directions)
        return self.seeds.seen(trials, records, self._violations, sampler, guessed)

    def proposal(self) -> Point:
        """Returns what the sampler proposes for `with_means`; begins no trial."""
        trials = self.study.get_trials(deepcopy=False)
        seed = seed_after(self._config, len(trials), len(self.seeds))
        asked = self.with_means(make_sampler(self._config, self.space, seed)).ask()
        return self.space.suggest(asked)

    def _enqueue_proposal(self) -> None:
        """Enqueues the sampler's proposal, unless other points wait."""
        trials = self.study.get_trials(deepcopy=False)
        if any(trial.state == TrialState.WAITING for trial in trials):
            return
        self.study.enqueue_trial(self.space.named(self.proposal()), user_attrs={PROPOSED: True})

    def _merged(self, trial: FrozenTrial) -> TrialRecord:
        return self.seeds.merged(self._record(trial), self._feasible)

    def _claim(self, uid: str) -> None:
        """Marks the study as this sweep's, or checks that it is. Always writes, so that a read-only
        storage fails now."""
        rows = {name: " ".join(rest) for name, *rest in self.space.rows()}
        with one_line():
            known = self.study.user_attrs
        if known.get(_SWEEP, uid) != uid:
            raise RequestError(
                f"tune.storage: study '{self.study.study_name}' belongs to another sweep;"
                " choose another --name"
            )
        changed = sorted(
            k
            for k in {**rows, **known.get(_SPACE, rows)}
            if rows.get(k) != known.get(_SPACE, rows).get(k)
        )
        if changed:
            raise RequestError(
                f"{self.study.study_name}: its study has a different search space, in"
                f" {', '.join(changed)}; choose another --name, or --no-resume to start over"
            )
        with one_line():
            self.study.set_user_attr(_SWEEP, uid)
            self.study.set_user_attr(_SPACE, rows)

    def _pending_of(self, number: int) -> _Pending:
        """Returns what is known of an open trial's epochs, written or not."""
        if number not in self._pending:
            known = self._open[number].user_attrs
            found = _Pending(dict(known.get(METRICS, {})), dict(known.get(HISTORY, {})))
            self._pending[number] = found
        return self._pending[number]

    def _flushed(self, number: int) -> optuna.Trial:
        """Returns an open trial, all of whose epochs are in the storage."""
        trial, pending = self._open[number], self._pending.pop(number, None)
        if pending is not None:
            self._write(trial, pending)
        return trial

    def _write(self, trial: optuna.Trial, pending: _Pending) -> None:
        trial.set_user_attr(METRICS, pending.metrics)
        trial.set_user_attr(HISTORY, pending.history)
        pending.due = time.monotonic() + _WRITE_S

    def _spent(self, epoch: int, metrics: dict[str, float]) -> float:
        """Returns the budget spent after an epoch, in this sweep's unit."""
        return float(epoch) if self._unit == "epoch" else metrics.get(self._unit, 0.0)

    def _step(self, spent: float) -> int:
        """Returns Optuna's step: the epoch, or a fraction of the budget in `_PARTS`."""
        return int(spent if self._unit == "epoch" else spent * _PARTS / self._budget)

    def _constrain(self, trial: optuna.Trial) -> None:
        """Reports the last epoch's constraint violations to the sampler."""
        for text, beyond in self._violations(trial.user_attrs.get(METRICS, {})).items():
            trial.set_constraint(text, beyond)

    def _feasible(self, metrics: dict[str, float]) -> bool | None:
        missed = [beyond > 0 for beyond in self._violations(metrics).values()]
        return not any(missed) if missed and metrics else None

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        known = self._pending.get(trial.number) or _Pending(
            trial.user_attrs.get(METRICS, {}), trial.user_attrs.get(HISTORY, {})
        )
        listed, metrics = {int(k): v for k, v in known.history.items()}, known.metrics
        epoch = max(listed, default=0)
        point = trial.user_attrs[POINT]
        return TrialRecord(
            trial.number,
            str(point.get("method.name", self._method)),
            trial.state.name,
            point,
            listed[epoch][1] if listed else None,
            metrics,
            history={key: value for key, (_, value) in listed.items()},
            spent={key: spent for key, (spent, _) in listed.items()},
            feasible=self._feasible(metrics),
            reason=trial.user_attrs.get(REASON),
        )

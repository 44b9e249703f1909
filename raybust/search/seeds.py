"""The further seeds of a sweep's configurations: their results, the race, and the means.

Optuna closes a trial for good when it has its first result, so the others are attributes of the
study, one for each network. A sampler that learns from values sees the means.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from raybust.config import Config
from raybust.search.race import Race
from raybust.search.records import TrialRecord

_PREFIX, _RACE = "seed/", "race"
_COSTS = ("passes/forward", "passes/backward", "train/seconds", "validation/seconds")
"""Metrics that add up over the seeds of a configuration."""


class Seeds:
    """Further seeds: `tune.seeds - 1` of a configuration at most.

    Attributes:
        race: whether configurations may have several seeds.

    Args:
        config: section `tune`.
        study: Optuna's, which stores them.
        reading: write nothing; the race is that of the last start.
    """

    def __init__(self, config: Config, study: optuna.Study, *, reading: bool = False) -> None:
        self._study, self._part = study, config.tune
        asked = [config.tune.seeds, config.tune.race_level]
        last = study.user_attrs.get(_RACE)
        if reading and last is not None:  # both may have changed since the sweep began
            self._most, self._level = int(last[0]), float(last[1])
        else:
            self._most, self._level = int(asked[0]), float(asked[1])
        if not reading and last != asked and (last is not None or self._most > 1):
            study.set_user_attr(_RACE, asked)
        self.race = self._most > 1
        self._signs = {
            key: 1.0 if mode == "max" else -1.0 for key, mode in self._part.directions().items()
        }
        self._known: defaultdict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
        for key, entry in study.user_attrs.items():
            if key.startswith(_PREFIX):
                number, seed = key.removeprefix(_PREFIX).split("/")
                self._known[int(number)][int(seed)] = entry

    def __bool__(self) -> bool:
        """Whether a configuration has a further seed, perhaps in training."""
        return len(self) > 0

    def __len__(self) -> int:
        """The number of further seeds, those in training included."""
        return sum(map(len, self._known.values()))

    def open(self) -> list[tuple[int, int]]:
        """Returns configuration and index of the seeds in training."""
        return [
            (number, seed)
            for number, own in self._known.items()
            for seed, entry in own.items()
            if entry["state"] == "RUNNING"
        ]

    def begin(self, number: int, seed: int) -> None:
        """Records that a seed is in training.

        Args:
            number: of the configuration's trial.
            seed: its index; the trial itself has 0.
        """
        self._write(number, seed, {"state": "RUNNING"})

    def end(self, number: int, seed: int, metrics: Mapping[str, float], reason: str = "") -> None:
        """Records the last metrics of a seed, or why it failed. A goal that is not finite fails."""
        values = {key: float(metrics.get(key, math.nan)) for key in self._signs}
        for key, value in values.items():
            if not reason and not math.isfinite(value):
                reason = f"its {key} is {value}"
        state = {"state": "FAIL", "reason": reason} if reason else {"state": "COMPLETE"}
        self._write(number, seed, state | {"metrics": dict(metrics)})

    def merged(self, record: TrialRecord, feasible: Callable[[Any], bool | None]) -> TrialRecord:
        """Returns a trial's record with the means over its seeds; costs add up.

        Args:
            record: with the metrics of the first seed.
            feasible: metrics to whether they meet the constraints.
        """
        if record.state != "COMPLETE":
            return record
        own = dict(sorted(self._known.get(record.number, {}).items()))
        good = {seed: e["metrics"] for seed, e in own.items() if e["state"] == "COMPLETE"}
        every = [record.metrics, *good.values()]
        values = tuple(tuple(float(one[key]) for key in self._signs) for one in every)
        if not own:
            return replace(record, values=values)
        metrics = {
            key: sum(one[key] for one in every) / len(every)
            for key in record.metrics
            if all(key in one for one in every)
        }
        spent = [record.metrics, *(entry.get("metrics", {}) for entry in own.values())]
        metrics |= {k: sum(one.get(k, 0.0) for one in spent) for k in _COSTS if k in metrics}
        return replace(
            record,
            value=metrics[self._part.metric],
            metrics=metrics,
            feasible=feasible(metrics),
            values=values,
            seeds=(0, *good),
            failed=tuple(
                f"seed {seed} failed: {entry['reason']}"
                for seed, entry in own.items()
                if entry["state"] == "FAIL"
            ),
        )

    def raced(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Returns the records with whether each is in the race, if there is one."""
        if not self.race:
            return list(records)
        race = self._race(records)
        standing = set(race.standing())
        return [
            replace(record, in_race=record.number in standing) if record.number in race.runs
            else record
            for record in records
        ]  # fmt: skip

    def next(self, records: Sequence[TrialRecord]) -> tuple[int, int] | None:
        """Returns configuration and index of the seed to train next; None if there is none now.

        Args:
            records: merged ones.
        """
        race = self._race(records)
        started = {number: 1 + len(self._known.get(number, ())) for number in race.runs}
        number = race.next_seed(started, self._most)
        return None if number is None else (number, started[number])

    def seen(
        self,
        trials: Sequence[FrozenTrial],
        records: Mapping[int, TrialRecord],
        violations: Callable[[dict[str, float]], dict[str, float]],
        sampler: optuna.samplers.BaseSampler | None,
        guessed: Mapping[int, Mapping[str, float]],
    ) -> optuna.Study:
        """Returns the study in memory, with the means over seeds as values of its trials.

        Args:
            trials: of the study.
            records: merged ones of those trials that have a point, by number.
            violations: metrics to the violation of each constraint.
            sampler: of the new study.
            guessed: metrics of stopped trials that are to count as whole ones, by number.
        """
        view = optuna.create_study(directions=self._study.directions, sampler=sampler)
        for trial in trials:
            record, complete = records.get(trial.number), trial.state == TrialState.COMPLETE
            values, state = trial.values if complete else None, trial.state
            if record is not None and complete:
                values = [record.metrics[key] for key in self._signs]
            if trial.number in guessed:
                values = [guessed[trial.number][key] for key in self._signs]
                state = TrialState.COMPLETE
            ended = record is not None and trial.state.is_finished()
            view.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    values=values,
                    params=trial.params,
                    distributions=trial.distributions,
                    intermediate_values=trial.intermediate_values,
                    constraints=violations(record.metrics)
                    if record and ended
                    else trial.constraints,
                )
            )
        return view

    def _race(self, records: Sequence[TrialRecord]) -> Race:
        """Returns the race of the feasible configurations, none of whose seeds failed."""
        runs = {
            record.number: [
                [sign * value for sign, value in zip(self._signs.values(), goals, strict=True)]
                for goals in record.values
            ]
            for record in records
            if record.state == "COMPLETE" and record.feasible is not False
            and not record.failed
        }  # fmt: skip
        return Race(runs, self._level)

    def _write(self, number: int, seed: int, entry: dict[str, Any]) -> None:
        self._known[number][seed] = entry
        self._study.set_user_attr(f"{_PREFIX}{number}/{seed}", entry)

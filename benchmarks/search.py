"""What the search finds: random, TPE and GP at equal passes, with and without ASHA.

`python benchmarks/search.py [OUT [SEEDS]]`: whole sweeps of three spaces on digits, in one process
without Ray, with the product's study, samplers and ASHA, two trials at a time, each cut off when
its passes are spent. The leader on the search's validation images is measured on test images.
Sweeps that ended are in OUT/search.jsonl: killed, the same command goes on. About 95 core minutes
for ten seeds, and GP's own.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from _figures import figure
from ray.tune.schedulers import TrialScheduler

from raybust import config as configuration
from raybust import data, methods
from raybust.cluster.scheduler import NUMBER, SPARED, make_scheduler
from raybust.config import Config, Leaf
from raybust.search.race import interval
from raybust.search.space import Point, Space, at
from raybust.search.study import Study
from raybust.training.loop import Trainer
from raybust.training.validation import measure

FOLDER = Path(__file__).parents[1] / "search_spaces"
COMMON = [
    "data.name=digits", "model.width=8", "train.batch_size=40",
    "certified_fast.n0=10", "certified_fast.n=40", "certified_fast.alpha=0.05",
    "certified_fast.examples=100", "attacked_fast.examples=100", "attacked_fast.steps=5",
]  # fmt: skip
CERTIFIED = ["data.limit=320", "certified_fast.every=0.33", "tune.grace=0.33"]
ATTACKED = [
    "data.limit=240", "train.passes=48", "attacked_fast.every=0.25", "attacked_fast.eps=0.06",
    "model.mean=null", "model.std=null",
]  # fmt: skip
UNSEEN = {"certified_fast": 200, "attacked_fast": 359}
"""Test images by section."""
SLOTS = 2
SHARES = (0.25, 0.5, 1.0)
SAMPLERS = ("random", "tpe", "gp")
SCHEDULERS = ("none", "asha")


@dataclass(frozen=True)
class Task:
    """A space to search.

    Attributes:
        name: of its file.
        settings: beside `COMMON`.
        trials: whole ones that a sweep has the passes for.
    """

    name: str
    settings: list[str]
    trials: int

    def leaves(self, *more: str) -> list[Leaf]:
        """Returns the fixed configuration, with more settings."""
        tree = configuration.read_yaml(FOLDER / f"{self.name}.yaml") | {"search": {}}
        given = [*COMMON, *self.settings, *more]
        fixed = {key: value for key, value in tree.items() if key != "search"}
        return configuration.leaves_of(fixed, self.name) + configuration.leaves_of_arguments(given)

    def space(self) -> Space:
        """Returns the searched keys."""
        path = FOLDER / f"{self.name}.yaml"
        return Space.parse(configuration.expand(configuration.read_yaml(path)["search"], path))


TASKS = (
    Task("gaussian", [*CERTIFIED, "train.passes=24"], 24),
    Task("pgd_geodesic", ATTACKED, 24),
    Task("all_methods", [*CERTIFIED, "train.passes=24"], 40),
)


class Trial:
    """A network in training; every number of epochs is trained once.

    Attributes:
        curve: the metrics of each epoch so far.
        failure: why training cannot continue.
        done: whether the budget is spent.
    """

    def __init__(self, config: Config) -> None:
        self.curve: list[dict[str, float]] = []
        self.failure, self.done, self._config = "", False, config
        self._data = data.load(config.data)
        self._trainer = Trainer(config, self._data, torch.device("cpu"))

    def after(self, epoch: int) -> dict[str, float] | None:
        """Returns the metrics after an epoch, from 1; None if it failed."""
        while len(self.curve) < epoch and not self.failure:
            self.failure = self._trainer.train_epoch() or ""
            if not self.failure:
                self.curve.append(kept(self._trainer.validate()))
                self.done = self._trainer.done
        return self.curve[epoch - 1] if len(self.curve) >= epoch else None

    @functools.cached_property
    def unseen(self) -> dict[str, float]:
        """The metrics on test images."""
        sections = {k: replace(getattr(self._config, k), examples=n) for k, n in UNSEEN.items()}
        found = measure(
            self._trainer.average, self._data.test, replace(self._config, **sections),
            self._trainer.ranks, epoch=self._trainer.epoch, before=1.0, spent=1.0,
        )  # fmt: skip
        return kept(found)


def kept(metrics: dict[str, float]) -> dict[str, float]:
    """Returns the metrics that sweeps optimize, and the passes."""
    names = ("passes/per_image", "certified_fast/acr", "validation/accuracy")
    names += ("attacked_fast/robust_accuracy",)
    return {name: round(float(metrics[name]), 5) for name in names if name in metrics}


@dataclass
class _Running:
    """A trial as Ray's schedulers see it, and how far it has come."""

    number: int
    trial: Trial
    config: dict[str, Any]
    began: float
    epoch: int = 0

    @property
    def trial_id(self) -> str:
        return str(self.number)


class Sweep:
    """A sweep without Ray.

    Args:
        config: of the sweep.
        space: what it searches.
        first: the points that it tries first.
        begin: returns the trial of a point.
        folder: for its study.

    Attributes:
        study: its record.
        ended: of each trial that trained to the end, when that was, in budgets of a trial that one
            slot has spent, and the trial.
    """

    def __init__(
        self,
        config: Config,
        space: Space,
        first: Sequence[Point],
        begin: Callable[[Point], Trial],
        folder: Path,
    ) -> None:
        self.ended: list[tuple[float, Trial]] = []
        self._config, self._begin_trial = config, begin
        tune = replace(config.tune, storage=f"journal:{folder}/study")
        self.study = Study(replace(config, tune=tune), space, folder, "benchmark", first)
        self._scheduler = make_scheduler(config, self.study)
        self._scheduler.set_search_properties(config.tune.metric, config.tune.mode)

    def run(self, end: float) -> None:
        """Runs trials until each of `SLOTS` slots has spent `end` budgets of a trial."""
        order = itertools.count()
        events: list[tuple[float, int, _Running]] = []
        for _ in range(SLOTS):
            self._push(events, next(order), self._begin(0.0))
        while events:
            now, _, running = heapq.heappop(events)
            if now > end + 1e-9:
                continue
            if not self._goes_on(running, now):
                running = self._begin(now)
            self._push(events, next(order), running)

    def _begin(self, now: float) -> _Running:
        asked = self.study.ask()
        assert asked is not None
        number, point = asked
        spared = self._config.tune.finish_first and self.study.is_enqueued(number)
        tuned = {NUMBER: number, SPARED: spared}
        running = _Running(number, self._begin_trial(point), tuned, now)
        self._scheduler.on_trial_add(None, running)
        return running

    def _push(
        self, events: list[tuple[float, int, _Running]], order: int, running: _Running
    ) -> None:
        """Trains a trial's next epoch and adds its end. A budget that the last batch exceeds counts
        as spent, and a failed epoch as a whole budget."""
        values, budget = running.trial.after(running.epoch + 1), self._config.train.budget[1]
        share = 1.0 if values is None else min(1.0, values["passes/per_image"] / budget)
        heapq.heappush(events, (running.began + share, order, running))

    def _goes_on(self, running: _Running, now: float) -> bool:
        """Reports an epoch; returns whether the trial has another one."""
        trial, metric = running.trial, self._config.tune.metric
        running.epoch += 1
        values = trial.after(running.epoch)
        if values is None:
            self.study.fail(running.number, trial.failure)
            return False
        self.study.report(running.number, running.epoch, values.get(metric, math.nan), values)
        result = {"epoch": running.epoch, **values}
        verdict = self._scheduler.on_trial_result(None, running, result)
        if trial.done and running.epoch == len(trial.curve):
            self.study.complete(running.number)
            self.ended.append((now, trial))
            return False
        if verdict == TrialScheduler.STOP:
            self.study.prune(running.number)
            return False
        return True


def leaders(task: Task, arm: Sequence[str], seed: int) -> list[tuple[float, float]]:
    """Returns the best trial's value on the search's images, and its value on unseen images, by
    `SHARES` of the passes.

    Args:
        task: the space.
        arm: settings of the sweep.
        seed: of the sweep, its networks and its sampler.
    """
    leaves, space = task.leaves(*arm, f"seed={seed}"), task.space()
    config = configuration.compose(leaves, methods.get)
    first, metric = space.first_points(leaves, methods.get), config.tune.metric
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(
            config, space, first, lambda point: Trial(at(leaves, point, methods.get)), Path(folder)
        )
        sweep.run(task.trials / SLOTS)
    best = []
    for share in SHARES:
        within = [t for end, t in sweep.ended if end <= share * task.trials / SLOTS + 1e-9]
        leader = max(within, key=lambda trial: trial.curve[-1][metric])
        best.append((leader.curve[-1][metric], leader.unseen[metric]))
    return best


def main(arguments: Sequence[str]) -> None:
    """Prints a figure for each cell and a table of them; every run is one seed of the sweep."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out, seeds = (*arguments, *("runs/benchmark_search", "10")[len(arguments) :])
    path = Path(out) / "search.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row for task in TASKS for row in compared(task, path, int(seeds))]
    for row in rows:
        print("| " + " | ".join(row) + " |")


def known_or_run(path: Path, task: Task, arm: Sequence[str], seed: int) -> list[list[float]]:
    """Returns the `leaders` of a sweep, run if the file lacks it."""
    key = [task.name, *arm, seed]
    for line in path.read_text().splitlines() if path.exists() else ():
        if (row := json.loads(line))["key"] == key:
            return row["leaders"]
    found = [list(pair) for pair in leaders(task, arm, seed)]
    with path.open("a") as file:
        file.write(json.dumps({"key": key, "leaders": found}) + "\n")
    return found


def compared(task: Task, path: Path, seeds: int) -> list[list[str]]:
    """Searches a space with every sampler and scheduler; returns a row of text for each."""
    values = {}
    for scheduler, sampler in itertools.product(SCHEDULERS, SAMPLERS):
        arm = [f"tune.sampler={sampler}", f"tune.scheduler={scheduler}"]
        runs = [known_or_run(path, task, arm, seed) for seed in range(seeds)]
        values[sampler, scheduler] = np.array(runs)[:, :, 1]
    rows = []
    for (sampler, scheduler), own in values.items():
        name, cells = f"search, {task.name}, {sampler}, {scheduler}", []
        for column, share in enumerate(SHARES):
            figure(f"{name}, {100 * share:g} %", own[:, column].tolist(), "on unseen images")
            cells.append(spread(own[:, column]))
        for rival in SCHEDULERS:
            gains = own[:, 1] - values["random", rival][:, -1]
            text = f"{name}, half less all of random, {rival}"
            figure(text, gains.tolist(), "on unseen images", ">= 0")
            cells.append(f"{np.median(gains):.3f}, {spread(gains)}")
        rows.append([task.name, sampler, scheduler, *cells])
    return rows


def spread(values: np.ndarray) -> str:
    """Returns the mean over seeds with half of its 95 % t interval."""
    low, high = interval(values.tolist())
    return f"{values.mean():.3f} +- {(high - low) / 2:.3f}"


if __name__ == "__main__":
    main(sys.argv[1:])

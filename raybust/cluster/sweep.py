"""A sweep: Ray Tune schedules and stops trials; the study proposes points and records results.

The study's database is the only source of truth. On resume, interrupted trials keep their numbers
and continue from their checkpoints; then new trials use up the rest of the budget. Early stopping
acts at epochs, each of which is checkpointed.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from raybust import config as configuration
from raybust import methods
from raybust.cluster import session
from raybust.cluster.retention import Retention
from raybust.cluster.runlog import Job, end_if_open, record_means
from raybust.cluster.scheduler import NUMBER, SEED, SPARED, make_scheduler
from raybust.cluster.trial import COMPLETE, FAILURE, TrialActor, nested_trial
from raybust.cluster.worker import MISSING
from raybust.config import Config, Leaf
from raybust.disk import runs
from raybust.errors import RequestError, WorkError, cause_of, no_room
from raybust.search.database import UNUSABLE
from raybust.search.records import FINISHED, TrialRecord
from raybust.search.space import Point, at
from raybust.search.study import Study
from raybust.track.journal import standing_of
from raybust.training import initial

DRIVER_CPUS = 0.01
STATE = ".ray"
"""Tune's own subfolder of the sweep while trials run; never read."""
_MAX_REFUSED = 100
_FEW = 3
_DIED = "its worker died; see --verbose"
_REASONS = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}

Listener = Callable[[TrialRecord, int], None]
"""Called with each finished trial and the number of running ones."""


@dataclass(frozen=True)
class Sweep:
    """A sweep while its trials run.

    Attributes:
        config: the sweep's own configuration.
        leaves: what it was composed from; a trial's point overrides them.
        study: the sweep's record.
        folder: the sweep's folder.
        job: name and key of the sweep, recorded in its trials.
        size: bytes of the weights of the largest network.
        code_of: configuration of a trial to the code of its network, see `identity.code_of`.
    """

    config: Config
    leaves: Sequence[Leaf]
    study: Study
    folder: Path
    job: Job
    size: int = 0
    code_of: Callable[[Config], tuple[float, ...]] = lambda config: ()


def driver_cpus(config: Config) -> float:
    """Returns the CPUs of a trial's driver: none for one worker, which is the trial."""
    return DRIVER_CPUS if config.cluster.workers > 1 else 0.0


def run_trials(plan: Sweep, uri: str, listener: Listener) -> None:
    """Runs the remaining trials of a sweep; returns when all are finished.

    Args:
        plan: the sweep; a Ray session is open.
        uri: tracking URI, which must not end up in Tune's files.
        listener: called with each finished trial.

    Raises:
        WorkError: no trial finished.
    """
    config, study, folder = plan.config, plan.study, plan.folder
    shutil.rmtree(folder / STATE, ignore_errors=True)  # left behind by a kill
    interrupted = study.interrupted()
    for number, _ in interrupted:
        recall(plan, number)
    left = max(0, config.tune.trials - study.finished() - len(interrupted))
    retention = Retention(config, study, folder, plan.size)
    seeds = study.seeds.open()
    if not (interrupted or left or seeds or study.seeds.next(study.records())):
        _end_runs(study, folder)
        retention.finish()
        return
    searcher = StudySearch(plan, listener, retention, interrupted, left)
    try:
        _tuner(plan, searcher, config.tune.trials * config.tune.seeds, uri).fit()
    except (tune.TuneError, *UNUSABLE) as error:
        raise WorkError(
            f"{folder.name}: sweep aborted: {cause_of(error)}; rerun the same command to resume"
        ) from error
    finally:
        shutil.rmtree(folder / STATE, ignore_errors=True)
    _end_runs(study, folder)
    retention.finish()
    if not study.finished():
        raise WorkError(f"{folder.name}: no trial finished")


def _tuner(plan: Sweep, searcher: StudySearch, trials: int, uri: str) -> tune.Tuner:
    config, nested = plan.config, driver_cpus(plan.config) > 0
    nodes = session.nodes_of(ray)
    room = session.slots(config, nodes, driver_cpus(config))
    return tune.Tuner(
        _trainable(config, nested, nodes.gpus(config), uri),
        tune_config=tune.TuneConfig(
            metric=config.tune.metric,
            mode=config.tune.mode,
            num_samples=trials,
            search_alg=searcher,
            scheduler=make_scheduler(config, plan.study),
            max_concurrent_trials=min(room, config.tune.concurrent or room),
            reuse_actors=not nested,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(plan.folder / STATE),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
        ),
    )


class StudySearch(Searcher):
    """Adapts the study to Tune: suggests points, records results, closes trials."""

    def __init__(
        self,
        plan: Sweep,
        listener: Listener,
        retention: Retention,
        interrupted: list[tuple[int, Point]],
        left: int,
    ) -> None:
        """Queues the interrupted trials and seeds, then `left` new ones."""
        super().__init__(metric=plan.config.tune.metric, mode=plan.config.tune.mode)
        self._plan, self._study, self._listener = plan, plan.study, listener
        self._retention = retention
        self._interrupted, self._left = list(interrupted), left
        self._seeds = self._study.seeds.open()
        self._running: dict[str, tuple[int, int]] = {}
        self._last: dict[str, dict[str, Any]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Returns the job of the next trial: interrupted ones first, then further seeds and new
        points. None if there is none before a running one has ended."""
        self._retention.check_space()
        if not self._interrupted and (further := self._further()) is not None:
            return self._begin_seed(trial_id, *further)
        refused: list[str] = []
        while len(refused) < _MAX_REFUSED:
            if self._interrupted:
                number, point = self._interrupted.pop(0)
            elif self._left:
                asked = self._study.ask()
                if asked is None:
                    return Searcher.FINISHED
                self._left -= 1
                number, point = asked
            else:
                racing = self._study.seeds.race and self._running
                return None if racing else Searcher.FINISHED
            try:
                plain = configuration.to_dict(at(self._plan.leaves, point, methods.get))
            except RequestError as error:
                refused.append(str(error))
                self._study.fail(number, str(error))
                self._notify(number)
                continue
            job = self._trial_job(number, plain)
            self._running[trial_id] = number, 0
            spared = self._plan.config.tune.finish_first and self._study.is_enqueued(number)
            return {"job": asdict(job), NUMBER: number, SPARED: spared, SEED: 0}
        raise WorkError(f"the schema rejects the points of this search space: {refused[-1]}")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Records an epoch in the study."""
        self._last[trial_id] = result
        number, seed = self._running[trial_id]
        if seed:
            return
        metric = float(result.get(self._plan.config.tune.metric, math.nan))
        # Tune's last result also contains the trial's configuration, flattened.
        keys = [key for key in result if "/" in key and not key.startswith("config/")]
        metrics = {key: result[key] for key in keys if _is_number(result[key])}
        self._study.report(number, int(result["epoch"]), metric, metrics)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Closes the trial: failed, complete, or pruned if it was stopped early."""
        # Tune passes a trial's last result only here; a failure repeats the previous epoch.
        known = self._last.get(trial_id, {}).get("epoch")
        if result is not None and (result.get(FAILURE) or result.get("epoch") != known):
            self.on_trial_result(trial_id, result)
        (number, seed), last = self._running.pop(trial_id), self._last.pop(trial_id, {})
        if no_room(last.get(FAILURE, "")):  # stays open and is resumed
            raise WorkError(f"trial {number}: {last[FAILURE]}")
        if seed:
            if error or last.get(FAILURE) or last.get(COMPLETE):
                self._end_seed(number, seed, _DIED if error else last.get(FAILURE, ""))
            return
        if error:
            self._study.fail(number, _DIED)
        elif last.get(FAILURE):
            self._study.fail(number, last[FAILURE])
            known = [r for r in self._study.records() if r.state in FINISHED or r.value is not None]
            # Every other trial would lack the metric too.
            if len(known) >= _FEW and all(MISSING in (r.reason or "") for r in known):
                self._left = 0
        elif last.get(COMPLETE):
            self._study.complete(number)
        else:
            self._study.prune(number)
        self._notify(number)

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the study's database is the record."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing; see `save`."""

    def _further(self) -> tuple[int, int] | None:
        """Returns configuration and index of the next further seed. Until all points are tried,
        further seeds take turns with new points, from the sampler's start-up on."""
        if self._seeds:
            return self._seeds.pop(0)
        if not self._study.seeds.race:
            return None
        records = self._study.records()
        tried = sum(record.state == "COMPLETE" for record in records)
        if self._left and len(self._study.seeds) >= tried - self._plan.config.tune.startup:
            return None
        return self._study.seeds.next(records)

    def _begin_seed(self, trial_id: str, number: int, seed: int) -> dict[str, Any]:
        """Returns the job of a further seed of a configuration."""
        point = self._study.record(number).point
        plain = configuration.to_dict(at(self._plan.leaves, point, methods.get))
        plain["seed"] = (plain["seed"] + seed) % 2**63
        job = self._trial_job(number, plain, seed)
        self._study.seeds.begin(number, seed)
        self._running[trial_id] = number, seed
        return {"job": asdict(job), NUMBER: number, SPARED: True, SEED: seed}

    def _end_seed(self, number: int, seed: int, reason: str) -> None:
        """Records a further seed that ended, and the mean over its configuration's seeds."""
        journal = runs.trial_folder(self._plan.folder, number, seed) / runs.JOURNAL
        last = {k: v for _, values in standing_of(journal) for k, v in values.items() if "/" in k}
        self._study.seeds.end(number, seed, last, reason)
        record = self._study.record(number)
        record_means(runs.trial_folder(self._plan.folder, number), record)
        self._notify(number)

    def _trial_job(self, number: int, plain: dict[str, Any], seed: int = 0) -> Job:
        """Returns the job of a trial, or of a further seed of it, whose MLflow run is a child of
        the trial's; creates folder and identity if they are missing."""
        folder = runs.trial_folder(self._plan.folder, number, seed)
        inputs, own, code = "", self._plan.job, tuple[float, ...]()
        if own.inputs and plain["data"] == own.config["data"]:
            config = configuration.from_dict(plain, methods.get)
            code = self._plan.code_of(config)
            inputs = initial.inputs_digest(config, own.inputs.partition("+")[0])
        identity = runs.identify(folder, "trial", plain, data=inputs)
        return Job(
            plain,
            str(folder),
            identity.uid,
            name=f"{self._plan.job.name}/{runs.trial_name(number, seed)}",
            parent=runs.read_identity(runs.trial_folder(self._plan.folder, number)).uid
            if seed
            else self._plan.job.uid,
            tags=(("raybust.trial", str(number)), ("raybust.sweep", self._plan.job.name)),
            inputs=inputs,
            code=code,
        )

    def _notify(self, number: int) -> None:
        record = self._study.record(number)
        self._listener(record, len(self._running))
        self._retention.settle(record)


def recall(plan: Sweep, number: int) -> None:
    """Restores the epochs of an interrupted trial that its journal has and the study lacks."""
    known = plan.study.record(number).epoch
    for epoch, values in standing_of(runs.trial_folder(plan.folder, number) / runs.JOURNAL):
        if epoch > known:
            value = values.get(plan.config.tune.metric, math.nan)
            plan.study.report(number, epoch, value, {k: v for k, v in values.items() if "/" in k})


def _end_runs(study: Study, folder: Path) -> None:
    """Ends runs whose worker was killed before it could: stopped multi-worker trials, and trials
    whose worker died too often."""
    for record in study.records():
        for trial in runs.seed_folders(folder, record.number):
            if trial != runs.trial_folder(folder, record.number):
                end_if_open(trial, "finished")
            elif record.state in FINISHED:
                end_if_open(trial, _REASONS[record.state], record.reason or "")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _trainable(config: Config, nested: bool, gpu: float, uri: str) -> Any:
    if nested:
        trainable = tune.with_parameters(nested_trial, uri=uri)
        return tune.with_resources(trainable, {"CPU": DRIVER_CPUS})
    needs = {"CPU": config.cluster.cpus_per_worker} | ({"GPU": gpu} if gpu else {})
    return tune.with_resources(tune.with_parameters(TrialActor, uri=uri), needs)

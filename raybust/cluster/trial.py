"""One trial of a sweep: in a reused Tune actor (one worker) or a nested trainer (several).

Both run `raybust.training.fit.fit`. The nested trainer spends about ten seconds per trial on
starting processes; the actor does so once. Checkpoints live in the trial's own folder, so any
process can resume a killed trial.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from raybust import data, devices
from raybust.cluster.runlog import Job, RunLog
from raybust.cluster.worker import COMPLETE, missing_metric, own_device, train
from raybust.config import Config
from raybust.disk import checkpoint, runs
from raybust.errors import WorkError
from raybust.training.fit import Progress, fit

FAILURE = "failure"


class TrialActor(tune.Trainable):
    """Trains trials one after another in one process, one epoch per step."""

    _log: RunLog | None = None

    def setup(self, config: dict[str, Any], uri: str) -> None:
        """Starts or resumes the trial of `config["job"]`, tracked at a URI."""
        self._uri = uri
        self._start(config)

    def _start(self, config: dict[str, Any]) -> None:
        job = Job(**config["job"])
        self._config: Config = job.load()
        self._folder = Path(job.folder)
        self._last: dict[str, Any] = {"epoch": 0}
        self._epochs: Iterator[Progress] = self._begin(job)

    def step(self) -> dict[str, Any]:
        """Trains one epoch, commits its checkpoint, returns its metrics.

        An exception fails the trial and leaves its traceback in the trial's folder: training is
        deterministic, so a retry would not help. A trial whose process dies is retried.
        """
        try:
            progress = next(self._epochs, None)
            if progress is None:
                return {**self._last, COMPLETE: True, "done": True}
            failure = progress.failure or missing_metric(self._config, progress)
            if failure is not None:
                return self._fail(failure)
            assert self._log is not None
            self._log.epoch(progress)
            progress.keep_selected(self._folder, self._config.train.keep)
            name = checkpoint.folder_name(progress.epoch)
            checkpoint.commit(self._folder, name, progress.save, self._config.train.keep)
        except Exception as error:
            (self._folder / "failure.txt").write_text(traceback.format_exc())
            return self._fail(f"{type(error).__name__}: {error}")
        self._last = progress.standing
        if progress.done:
            self._end("finished")
        return {**progress.standing, COMPLETE: progress.done, "done": progress.done}

    def _begin(self, job: Job) -> Iterator[Progress]:
        """Opens log, data and loop; a generator, so that exceptions surface in `step`."""
        if (last := _finished(self._folder)) is not None:
            self._last = last
            return
        self._log = RunLog(job, self._config, self._uri)
        devices.set_threads(self._config.cluster.cpus_per_worker)
        resume = checkpoint.newest(self._folder, lambda text: print(text, flush=True))
        if resume is not None:
            self._last = checkpoint.standing_of(resume)
        device = own_device()
        devices.limit_memory(device, self._config.cluster.gpus_per_worker or 1)
        dataset = data.load(self._config.data, runs.out_folder(self._config))
        job.check_inputs(self._config, dataset)
        yield from fit(self._config, dataset, device, resume)

    def _fail(self, reason: str) -> dict[str, Any]:
        """Ends the trial as failed; returns the result for Tune and the study."""
        reason = " ".join(reason.split())
        self._end("failed", reason)
        metric = self._config.tune.metric
        return {**self._last, metric: float("nan"), FAILURE: reason, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Switches to the next trial; if the current one has not ended, it was stopped early."""
        self._end("pruned")
        self._start(new_config)
        return True

    def cleanup(self) -> None:
        """Ends the trial when Tune stops the actor."""
        self._end("pruned")

    def _end(self, reason: str, detail: str = "") -> None:
        if self._log is None:
            return
        log, self._log = self._log, None
        used = None if reason == "failed" else checkpoint.used(self._folder)
        log.end(reason, used, detail)
        # In the background, so that the next trial can start.
        threading.Thread(target=log.close, daemon=True).start()


def nested_trial(config: dict[str, Any], uri: str) -> None:
    """Trains the trial of `config["job"]` in its own TorchTrainer, tracked at a URI."""
    job = Job(**config["job"])
    loaded = job.load()
    if (last := _finished(Path(job.folder))) is not None:
        tune.report({**last, COMPLETE: True})
        return
    try:
        train(loaded, job, uri, callbacks=[TuneReportCallback()])
    except WorkError as error:
        tune.report({"epoch": 0, loaded.tune.metric: float("nan"), FAILURE: str(error)})


def _finished(folder: Path) -> dict[str, Any] | None:
    """Returns the final metrics of a trial that has finished training, or None. Such a trial is
    handed out again if everything was killed before the study recorded it."""
    newest = checkpoint.newest(folder)
    if newest is None or not checkpoint.read_manifest(newest)["done"]:
        return None
    return checkpoint.standing_of(newest)

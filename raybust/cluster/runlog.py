"""`Job`, a training run as plain data for a worker, and `RunLog`, the journal that rank 0 writes.

The journal lives in the run's folder; a background thread sends it to MLflow, so a slow or
unreachable server costs no training time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raybust import config as configuration
from raybust import methods
from raybust.config import Config
from raybust.data import Dataset
from raybust.disk import checkpoint, runs
from raybust.disk.runs import JOURNAL
from raybust.errors import WorkError
from raybust.identity import agree
from raybust.search.race import interval
from raybust.search.records import TrialRecord
from raybust.track import Flusher, Following, Journal, environment, source_tags
from raybust.track.environment import ENVIRONMENT
from raybust.track.journal import decode
from raybust.training import initial
from raybust.training.fit import Progress
from raybust.training.objective import code_of_training

SEEDS = "seeds.journal.jsonl"
"""The journal of the means over a configuration's seeds."""
_DRAIN_S = 10.0


@dataclass(frozen=True)
class Job:
    """A training run as sent to a worker. Excludes the tracking URI, which may contain a password:
    Tune writes the jobs of its trials to files.

    Attributes:
        config: the resolved configuration as plain data.
        folder: the run's folder, with journal and checkpoints.
        uid: the run's key in the tracking store.
        name: the run's display name there.
        parent: key of the sweep's run, or None.
        tags: additional tags of the run.
        inputs: digest of what it learns from, see `inputs_digest`; "" skips the comparison.
        code: of its network, see `identity.code_of`; empty skips the comparison.
    """

    config: dict[str, Any]
    folder: str
    uid: str
    name: str
    parent: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    inputs: str = ""
    code: tuple[float, ...] = ()

    def load(self) -> Config:
        """Returns the typed configuration."""
        return configuration.from_dict(self.config, methods.get)

    def check_inputs(self, config: Config, dataset: Dataset) -> None:
        """Checks that a worker trains the command's network on what the command was given.

        Raises:
            WorkError: images, labels, initial weights or the network's code have changed since.
        """
        if self.inputs and initial.inputs_digest(config, dataset.digest) != self.inputs:
            raise WorkError(
                "the images, the labels or the weights that it starts from have changed since the"
                " command began"
            )
        if self.code and not agree(self.code, code_of_training(config, dataset)):
            raise WorkError("the code of its network has changed since the command began")


class RunLog:
    """A run's journal and its flusher, which keeps the network out of the training thread.

    Args:
        job: the run.
        config: its configuration.
        uri: the store.
        deliver: makes the flusher: in a thread, or in the process beside a command.
    """

    def __init__(
        self,
        job: Job,
        config: Config,
        uri: str,
        deliver: type[Flusher] | type[Following] = Flusher,
    ) -> None:
        self._journal, found = Journal(Path(job.folder) / JOURNAL), environment()
        self._journal.start(
            run_key=job.uid,
            experiment=config.track.experiment,
            name=job.name,
            tags={"raybust.method": config.method.key, "raybust.dataset": config.data.name,
                  "raybust.folder": job.folder, **source_tags(found), **dict(job.tags)},
            params=params_of(job.config),
            parent_key=job.parent,
            dataset=dataset_of(job, config),
        )  # fmt: skip
        self._journal.text(yaml.safe_dump(job.config, sort_keys=False), "config.yaml")
        self._journal.text(yaml.safe_dump(found, sort_keys=False), ENVIRONMENT)
        self._flusher = deliver(self._journal.path, uri)
        self._is_trial = job.parent is not None

    def group(self, backend: str, hosts: list[str]) -> None:
        """Records the process group's backend and the host of each rank."""
        self._journal.tags({"raybust.backend": backend, "raybust.hosts": " ".join(hosts)})

    def epoch(self, progress: Progress) -> None:
        """Records an epoch's metrics."""
        values = {key: value for key, value in progress.metrics.items() if key != "epoch"}
        self._journal.metrics(values, step=progress.epoch)

    def end(self, reason: str, folder: Path | None = None, detail: str = "") -> None:
        """Records how the run ended; see `record_end`. Weights of a trial are sent at the end of
        its sweep, if they are kept."""
        record_end(self._journal, reason, folder, detail, weights=not self._is_trial)

    def close(self, deadline_s: float = _DRAIN_S) -> None:
        """Stops the flusher; entries not sent by the deadline stay in the journal for `sync`."""
        self._flusher.close(deadline_s)
        self._journal.close()


def record_end(
    journal: Journal,
    reason: str,
    folder: Path | None = None,
    detail: str = "",
    *,
    weights: bool = False,
) -> None:
    """Records how a run ended (finished, pruned, failed) and the checkpoint that it uses.

    Args:
        journal: of the run.
        reason: becomes the tag `raybust.stop_reason`.
        folder: checkpoint whose manifest becomes an artifact.
        detail: why the run failed.
        weights: whether the checkpoint's weights become an artifact too.
    """
    if folder is not None:
        for name in (*[checkpoint.WEIGHTS] * weights, checkpoint.MANIFEST):
            journal.artifact(folder / name, "checkpoint")
    if detail:
        journal.tags({"raybust.failure": detail})
    journal.end("FAILED" if reason == "failed" else "FINISHED", reason)


def record_means(folder: Path, record: TrialRecord) -> None:
    """Records the mean of the optimized metric over the seeds of a configuration so far, with its
    95 % interval, for the MLflow run of its trial.

    Args:
        folder: of the trial.
        record: with the values of its seeds.
    """
    values, identity = [goals[0] for goals in record.values], runs.read_identity(folder)
    low, high = interval(values)
    found = {"seeds/mean": float(record.value or 0.0), "seeds/count": float(len(values))}
    found |= {"seeds/failed": float(len(record.failed))}
    found |= {"seeds/low": low, "seeds/high": high} if len(values) > 1 else {}
    with Journal(folder / SEEDS) as journal:
        journal.attach(identity.uid, identity.config["track"]["experiment"])
        journal.metrics(found, step=len(values))


def end_if_open(folder: Path, reason: str, detail: str = "", *, weights: bool = False) -> None:
    """Ends a folder's run if its worker was killed before it could; see `record_end`."""
    if is_open(folder):
        used = None if reason == "failed" else checkpoint.used(folder)
        with Journal(folder / JOURNAL) as journal:
            record_end(journal, reason, used, detail, weights=weights)


def is_open(folder: Path) -> bool:
    """Returns whether a folder's run was started and has not ended, by its journal."""
    path = folder / JOURNAL
    entries = map(decode, path.read_bytes().splitlines()) if path.exists() else ()
    states = [e["e"] for e in entries if e is not None and e["e"] in ("start", "resume", "end")]
    return bool(states) and states[-1] != "end"


def dataset_of(job: Job, config: Config) -> dict[str, str] | None:
    """Returns what a run learns from, for MLflow; None if its digest is not known."""
    digest = job.inputs.partition("+")[0]
    if not digest:
        return None
    source = config.data.path or config.data.name
    return {"name": config.data.name, "digest": digest, "source": source}


def params_of(plain: dict[str, Any]) -> dict[str, str]:
    """Returns the settings that determine a training run, flat, as MLflow's params."""
    sections = ("seed", "data", "model", "method", "train", "certified_fast")
    leaves = configuration.leaves_of({key: plain[key] for key in sections}, "")
    return {leaf.key: str(leaf.value) for leaf in leaves}

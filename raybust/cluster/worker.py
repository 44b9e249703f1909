"""A training run on Ray: the same loop under Ray Train's workers and inside a Tune actor.

`train` drives a TorchTrainer: DDP over any number of workers, checkpoints through Ray's storage,
worker failures resumed from the last one. A notice of preemption is no failure.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)

from raybust import data
from raybust.cluster.autoscaler import may_come
from raybust.cluster.runlog import Job, RunLog
from raybust.cluster.session import must_grow, nodes_of
from raybust.config import Config
from raybust.disk import checkpoint
from raybust.errors import WorkError
from raybust.train.loop import Progress, fit

COMPLETE = "complete"
"""Metric that tells a run's last epoch from one at which it was stopped."""

MISSING = "tune.metric"
"""In the reason of a trial that lacks what the sweep optimizes."""
_MOVED = "a node is about to be taken away"
"""What workers return that left at a notice of preemption. Ray Train would count an error as a
failure, and wait for the node to go; so they return, and are started elsewhere."""

_RECORD = "checkpoint_manager_snapshot.json"
"""Ray Train's list of a run's checkpoints, in the run's folder."""

_NODE_START_S = 900
"""How long a node that the autoscaler adds may take until it is installed (our choice)."""


def set_threads(config: Config) -> None:
    """Gives torch as many threads as the worker has CPUs."""
    torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))


def missing_metric(config: Config, progress: Progress) -> str | None:
    """Returns what is wrong where an epoch of a trial lacks what the sweep optimizes, or None. What
    is measured now and then may be missing until the last epoch."""
    every = {
        "certified_fast": config.certified_fast.every,
        "attacked_fast": config.attacked_fast.every,
    }

    def due(key: str) -> bool:
        return progress.done or not every.get(key.partition("/")[0])

    missing = [key for key in config.tune.directions() if key not in progress.metrics and due(key)]
    if not missing:
        return None
    return (
        f"{MISSING}: no epoch reports {', '.join(missing)}; with this configuration there is:"
        f" {', '.join(sorted(progress.metrics))}"
    )


def no_room(reason: str) -> bool:
    """Tells whether a failure is that of a disk that is full, read-only or over quota."""
    return re.search(r"(?i)errno (28|30|122)\b", reason) is not None


def train_worker(plain: dict[str, Any], *, uri: str) -> str | None:
    """Runs on each Ray Train worker; returns why training could not go on, or None.

    Args:
        plain: the job.
        uri: tracking URI.
    """
    job = Job(**plain)
    config = job.load()
    set_threads(config)
    dataset = data.load(config.data)
    folder = Path(job.folder)
    device = ray.train.torch.get_device()
    hosts = _hosts(device)
    first = ray.train.get_context().get_world_rank() == 0
    with tempfile.TemporaryDirectory(prefix="raybust-") as scratch:
        resume = _resume_from(folder, Path(scratch))
        if resume is not None and (last := checkpoint.read_manifest(resume))["done"]:
            # All was killed before Tune was told; there is no epoch left that would tell it.
            ray.train.report({**last["metrics"], COMPLETE: True}, checkpoint=None)
        log = RunLog(job, config, uri) if first else None
        if log is not None and len(hosts) > 1:
            log.group(dist.get_backend(), hosts)
        failure = None
        for progress in fit(config, dataset, device, resume):
            failure = progress.failure
            if failure is None and job.parent is not None:
                failure = missing_metric(config, progress)
            if failure is not None:
                break
            if log is not None:
                log.epoch(progress)
            _report(progress, first)
            if not progress.done and _must_move(device):
                failure = _MOVED
                break
            if first and progress.done and config.cluster.storage:
                name = checkpoint.folder_name(progress.epoch)
                checkpoint.commit(folder, name, progress.save, config.train.keep)
        if first and failure is None and resume is not None:
            _keep(resume, folder, config.train.keep)
        if log is not None:
            if failure is None:
                log.end("finished", checkpoint.newest(folder))
            elif failure != _MOVED:
                log.end("failed", detail=failure)
            log.close()
    return failure


def _hosts(device: torch.device) -> list[str]:
    """Returns the host of every rank, as the process group itself tells it."""
    own = socket.gethostname()
    if not dist.is_initialized():
        return [own]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    hosts = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, own)
    return hosts


def _must_move(device: torch.device) -> bool:
    """Tells, on all ranks alike, whether a node of one of them is about to be taken away."""
    notice = torch.tensor(float(ray.train.get_preemption_info() is not None), device=device)
    if dist.is_initialized():
        dist.all_reduce(notice, dist.ReduceOp.MAX)
    return bool(notice.item())


def _adapt_to_cluster() -> None:
    """Makes Ray Train's settings that depend on the cluster; the user's own stay.

    A process that waits for notices of preemption, where nodes can be taken away one by one; time
    for nodes to be started, where an autoscaler does: also those in place of one that is lost.
    """
    grows = bool(may_come(ray))
    several = grows or sum(node["Alive"] for node in ray.nodes()) > 1
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(several)))
    if grows:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_NODE_START_S))


def train(config: Config, job: Job, uri: str, *, callbacks: list[Any] | None = None) -> None:
    """Trains a run under TorchTrainer; returns when it is done.

    Args:
        config: the whole configuration; a Ray session is open.
        job: the same, as it travels.
        uri: tracking URI.
        callbacks: Ray Train's, for a run inside a Tune trial.

    Raises:
        WorkError: training failed for good, or its loss diverged.
    """
    _adapt_to_cluster()
    storage, name = _place(config, job)
    if "://" not in storage:
        _forget_torn(Path(storage) / name)
    failure: str | None = _MOVED
    while failure == _MOVED:
        try:
            with _interruptible():
                failure = _trainer(config, job, uri, callbacks or []).fit().return_value
        except (TrainingFailedError, RayError) as error:
            raise WorkError(f"{job.name}: {_why_failed(config, error)}") from error
    if failure is not None:
        raise WorkError(f"{job.name}: {failure}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Makes Ctrl-C a KeyboardInterrupt again: Ray Train's own handler ends its processes, leaves
    this one by SystemExit, and stays when training is over."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:  # Ray's answer to that signal
            raise
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _place(config: Config, job: Job) -> tuple[str, str]:
    """Returns where Ray keeps a run's checkpoints: a storage and a name in it."""
    folder = Path(job.folder)
    if not config.cluster.storage:
        return str(folder.parent), folder.name
    # In a storage of several folders' runs, a name may come twice, or again after --no-resume.
    return config.cluster.storage, f"{folder.name}-{job.uid}"


def _trainer(
    config: Config, job: Job, uri: str, callbacks: list[Any]
) -> ray.train.torch.TorchTrainer:
    gpu = nodes_of(ray).gpus(config)
    resources = {"CPU": config.cluster.cpus_per_worker} | ({"GPU": gpu} if gpu else {})
    storage, name = _place(config, job)
    return ray.train.torch.TorchTrainer(
        partial(train_worker, uri=uri),  # not in what Ray Train records of a run
        train_loop_config=asdict(job),
        scaling_config=ScalingConfig(
            num_workers=config.cluster.workers, use_gpu=gpu > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            callbacks=callbacks,
            failure_config=FailureConfig(
                max_failures=config.cluster.max_failures, controller_failure_limit=3
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=config.train.keep),
        ),
    )


def _report(progress: Progress, first: bool) -> None:
    """Reports an epoch to Ray Train; rank 0 attaches the checkpoint."""
    name = checkpoint.folder_name(progress.epoch)
    metrics = {**progress.metrics, COMPLETE: progress.done}
    if not first:
        ray.train.report(metrics, checkpoint=None, checkpoint_dir_name=name)
        return
    scratch = tempfile.mkdtemp(prefix="raybust-")
    try:
        progress.save(Path(scratch))
        saved = ray.train.Checkpoint.from_directory(scratch)
        ray.train.report(metrics, checkpoint=saved, checkpoint_dir_name=name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _resume_from(folder: Path, scratch: Path) -> Path | None:
    """Returns the checkpoint to go on from: Ray's latest, or an older one where that is torn."""
    latest = ray.train.get_checkpoint()
    if latest is not None:
        copy = Path(latest.to_directory(str(scratch / "resume")))
        if checkpoint.torn(copy) is None:
            return copy
    return checkpoint.newest(folder, lambda text: print(text, flush=True))


def _keep(resumed: Path, folder: Path, keep: int) -> None:
    """Copies a run's last checkpoint out of Ray's storage, where all ended before that was done."""
    epoch, newest = checkpoint.read_manifest(resumed)["epoch"], checkpoint.newest(folder)
    if newest is not None and checkpoint.epoch_of(newest) >= epoch:
        return

    def fill(to: Path) -> None:
        shutil.copytree(resumed, to, dirs_exist_ok=True)

    checkpoint.commit(folder, checkpoint.folder_name(epoch), fill, keep)


def _forget_torn(folder: Path) -> None:
    """Drops Ray's record of a run that is torn itself, or one of whose checkpoints is: the epoch is
    trained again, and Ray would take the new checkpoint for the old one of its name."""
    record = folder / _RECORD
    try:
        whole = bool(json.loads(record.read_bytes()))
    except FileNotFoundError:
        return
    except ValueError:  # a full disk leaves an empty file
        whole = False
    if not whole or any(checkpoint.torn(path) for path in checkpoint.folders(folder)):
        record.unlink()


def _why_failed(config: Config, error: BaseException) -> str:
    if must_grow(config, ray):
        have, workers = ray.cluster_resources(), config.cluster.workers
        return (
            f"the cluster has no room left for {workers} workers: {have.get('CPU', 0):g} CPUs and"
            f" {have.get('GPU', 0):g} GPUs; add nodes, and the same command resumes from the last"
            " checkpoint"
        )
    cause = cause_of(error)
    if no_room(cause):
        cause += "; make room on the disk, and the same command resumes from the last checkpoint"
    return f"training failed: {cause}"


def cause_of(error: BaseException) -> str:
    """Returns the innermost message of a chain of Ray's wrapped errors, on one line."""
    failures = getattr(error, "worker_failures", None) or {}
    inner: BaseException = next(iter(failures.values()), error)
    while inner.__cause__ is not None:
        inner = inner.__cause__
    lines = [line for line in str(inner).splitlines() if line.strip()]
    return (lines[-1].strip() if lines else type(inner).__name__)[:300]

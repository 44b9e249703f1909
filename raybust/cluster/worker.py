"""A training run on Ray: the loop inside Ray Train's workers.

`train` drives a TorchTrainer: DDP over any number of workers, checkpoints through Ray's storage,
recovery from worker failures. A preemption notice does not count as a failure.
"""

from __future__ import annotations

import json
import os
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

from raybust import data, devices
from raybust.cluster.autoscaler import potential_workers
from raybust.cluster.runlog import Job, RunLog
from raybust.cluster.session import must_grow, nodes_of
from raybust.config import Config
from raybust.disk import checkpoint, pulse, runs
from raybust.disk.runs import RAY_RECORD
from raybust.errors import WorkError, why_failed
from raybust.training.fit import Progress, fit

COMPLETE = "complete"
"""Metric that is true at a run's last epoch, false at one where it was stopped."""

MISSING = "tune.metric"
"""Prefix of the failure reason of a trial that does not report the optimized metrics."""
_MOVED = "a node is about to be preempted"
"""Returned by workers that left after a preemption notice and are restarted elsewhere. Ray Train
would count an exception as a failure and wait for the node to go."""

_NODE_START_S = 900
"""Time limit for the autoscaler to start and set up a node (our choice)."""


def own_device() -> torch.device:
    """Returns the device that Ray gave this process: the accelerator if it has a GPU, else the
    CPU."""
    return devices.local() if ray.get_gpu_ids() else torch.device(devices.CPU)


def missing_metric(config: Config, progress: Progress) -> str | None:
    """Returns an error message if an epoch lacks an optimized metric, else None. Metrics that are
    not measured every epoch may be missing until the last one."""
    every = {
        "certified_fast": config.certified_fast.every,
        "certified_linf_fast": config.certified_linf_fast.every,
        "attacked_fast": config.attacked_fast.every,
    }

    def due(key: str) -> bool:
        return progress.done or not every.get(key.partition("/")[0])

    missing = [key for key in config.tune.directions() if key not in progress.metrics and due(key)]
    if not missing:
        return None
    return (
        f"{MISSING}: no epoch reports {', '.join(missing)}; this configuration reports:"
        f" {', '.join(sorted(progress.metrics))}"
    )


def train_worker(plain: dict[str, Any], *, uri: str) -> str | None:
    """Runs on each Ray Train worker; returns why training stopped, or None if it finished.

    Args:
        plain: the job.
        uri: tracking URI.
    """
    job = Job(**plain)
    config = job.load()
    devices.set_threads(config.cluster.cpus_per_worker)
    dataset = data.load(config.data, runs.out_folder(config))
    job.check_inputs(config, dataset)
    folder = Path(job.folder)
    device = own_device()
    if device.type == devices.GPU:  # a worker sees the other workers' GPUs too
        device = ray.train.torch.get_device()
    devices.limit_memory(device, config.cluster.gpus_per_worker or 1)
    hosts = _hosts(device)
    first = ray.train.get_context().get_world_rank() == 0
    with tempfile.TemporaryDirectory(prefix="raybust-") as scratch:
        resume = _resume_from(folder, Path(scratch))
        if resume is not None and checkpoint.read_manifest(resume)["done"]:
            # Everything was killed before Tune received the last epoch: report it again.
            last = {**checkpoint.standing_of(resume), COMPLETE: True}
            ray.train.report(last, checkpoint=None)
        log = RunLog(job, config, uri) if first else None
        if log is not None and len(hosts) > 1:
            log.group(dist.get_backend(), hosts)
        failure = None
        watch = pulse.Recorder(folder) if first and job.parent is None else None
        for progress in fit(config, dataset, device, resume, watch):
            failure = progress.failure
            if failure is None and job.parent is not None:
                failure = missing_metric(config, progress)
            if failure is not None:
                break
            if log is not None:
                log.epoch(progress)
                progress.keep_selected(folder, config.train.keep)
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
                log.end("finished", checkpoint.used(folder))
            elif failure != _MOVED:
                log.end("failed", detail=failure)
            log.close()
    return failure


def _hosts(device: torch.device) -> list[str]:
    """Returns the host of every rank, gathered over the process group."""
    own = socket.gethostname()
    if not dist.is_initialized():
        return [own]
    if device.type == devices.GPU:
        torch.cuda.set_device(device)
    hosts = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, own)
    return hosts


def _must_move(device: torch.device) -> bool:
    """Whether any rank's node is about to be preempted; the same answer on all ranks."""
    notice = torch.tensor(float(ray.train.get_preemption_info() is not None), device=device)
    if dist.is_initialized():
        dist.all_reduce(notice, dist.ReduceOp.MAX)
    return bool(notice.item())


def _adapt_to_cluster() -> None:
    """Sets the Ray Train options that depend on the cluster, unless the user has set them.

    With several nodes, a watcher for preemption notices; with an autoscaler, time for new nodes to
    start, including replacements of lost ones.
    """
    grows = bool(potential_workers(ray))
    several = grows or sum(node["Alive"] for node in ray.nodes()) > 1
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(several)))
    if grows:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_NODE_START_S))


def train(config: Config, job: Job, uri: str, *, callbacks: list[Any] | None = None) -> None:
    """Trains a run in a TorchTrainer; returns when it is done.

    Args:
        config: the full configuration; a Ray session is open.
        job: the same, for the workers.
        uri: tracking URI.
        callbacks: Ray Train's, for a run inside a Tune trial.

    Raises:
        WorkError: training failed every retry, or its loss diverged.
    """
    _adapt_to_cluster()
    storage, name = _storage(config, job)
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
    """Turns Ctrl-C back into KeyboardInterrupt: Ray Train's handler stops its processes, raises
    SystemExit, and stays installed after training."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:  # Ray's response to that signal
            raise
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _storage(config: Config, job: Job) -> tuple[str, str]:
    """Returns where Ray keeps a run's checkpoints: a storage path and a name in it."""
    folder = Path(job.folder)
    if not config.cluster.storage:
        return str(folder.parent), folder.name
    # A name may recur in shared storage: from another output folder, or after --no-resume.
    return config.cluster.storage, f"{folder.name}-{job.uid}"


def _trainer(
    config: Config, job: Job, uri: str, callbacks: list[Any]
) -> ray.train.torch.TorchTrainer:
    gpu = nodes_of(ray).gpus(config)
    resources = {"CPU": config.cluster.cpus_per_worker} | ({"GPU": gpu} if gpu else {})
    storage, name = _storage(config, job)
    return ray.train.torch.TorchTrainer(
        partial(train_worker, uri=uri),  # keeps the URI out of Ray Train's record of the run
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
    metrics = {**progress.standing, COMPLETE: progress.done}
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
    """Returns the checkpoint to resume from: Ray's latest, or an older one if that is torn."""
    latest = ray.train.get_checkpoint()
    if latest is not None:
        copy = Path(latest.to_directory(str(scratch / "resume")))
        if checkpoint.torn(copy) is None:
            return copy
    return checkpoint.newest(folder, lambda text: print(text, flush=True))


def _keep(resumed: Path, folder: Path, keep: int) -> None:
    """Copies a run's last checkpoint from Ray's storage if a kill prevented that before."""
    epoch, newest = checkpoint.read_manifest(resumed)["epoch"], checkpoint.newest(folder)
    if newest is not None and checkpoint.epoch_of(newest) >= epoch:
        return

    def fill(to: Path) -> None:
        shutil.copytree(resumed, to, dirs_exist_ok=True)

    checkpoint.commit(folder, checkpoint.folder_name(epoch), fill, keep)


def _forget_torn(folder: Path) -> None:
    """Deletes Ray's record of a run if it, or one of the run's checkpoints, is torn: Ray would take
    the new checkpoint of the repeated epoch for the old one of the same name."""
    record = folder / RAY_RECORD
    try:
        whole = bool(json.loads(record.read_bytes()))
    except FileNotFoundError:
        return
    except ValueError:  # a full disk can leave an empty file
        whole = False
    if not whole or any(checkpoint.torn(path) for path in checkpoint.folders(folder)):
        record.unlink()


def _why_failed(config: Config, error: BaseException) -> str:
    if must_grow(config, ray):
        have, workers = ray.cluster_resources(), config.cluster.workers
        return (
            f"the cluster has no room left for {workers} workers: {have.get('CPU', 0):g} CPUs and"
            f" {have.get('GPU', 0):g} GPUs; add nodes and rerun the same command to resume from the"
            " last checkpoint"
        )
    return why_failed(error)

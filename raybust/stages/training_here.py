"""A training run of one worker in this process, without Ray.

The loop, the journal and the checkpoints are those of a worker of Ray Train, and so are their
contents. A run that began here may go on there, and the other way round.
"""

from __future__ import annotations

from pathlib import Path

from raybust import devices, track
from raybust.cluster.runlog import Job, RunLog
from raybust.config import Config
from raybust.data import Dataset
from raybust.disk import checkpoint, pulse
from raybust.disk.runs import RAY_RECORD
from raybust.errors import WorkError, why_failed
from raybust.stages.place import own_device, threads
from raybust.training.fit import fit


def train_here(config: Config, job: Job, uri: str, *, dataset: Dataset) -> None:
    """Trains a run; returns when it is done.

    Args:
        config: the full configuration.
        job: the same, with name and folder.
        uri: tracking URI.
        dataset: the configuration's data.

    Raises:
        WorkError: training failed, or its loss diverged.
    """
    folder = Path(job.folder)
    (folder / RAY_RECORD).unlink(missing_ok=True)  # lacks the checkpoints that are written here
    log, cause = RunLog(job, config, uri, track.Following), None
    try:
        with threads(config):
            failure = _train(config, dataset, folder, log)
    except Exception as error:
        failure, cause = why_failed(error), error
    else:
        if failure is None:
            log.end("finished", checkpoint.used(folder))
    finally:
        log.close()
    if failure is not None:
        raise WorkError(f"{job.name}: {failure}") from cause


def _train(config: Config, dataset: Dataset, folder: Path, log: RunLog) -> str | None:
    """Runs the loop; returns why it stopped, or None if it finished."""
    device = own_device(config)
    devices.limit_memory(device, config.cluster.gpus_per_worker or 1)
    watch = pulse.Recorder(folder)
    for progress in fit(config, dataset, device, checkpoint.newest(folder), watch):
        if progress.failure is not None:
            log.end("failed", detail=progress.failure)
            return progress.failure
        log.epoch(progress)
        progress.keep_selected(folder, config.train.keep)
        name = checkpoint.folder_name(progress.epoch)
        checkpoint.commit(folder, name, progress.save, config.train.keep)
    return None

"""A training run, epoch by epoch.

`fit` is a generator that yields a `Progress` after every epoch; its driver (a Ray Train worker, a
Tune actor, a test) decides where metrics and checkpoints go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from raybust import devices
from raybust.config import Config
from raybust.config.measured import standing
from raybust.data import Dataset
from raybust.disk import checkpoint
from raybust.disk.pulse import Pulse
from raybust.errors import WorkError
from raybust.training.loop import Trainer
from raybust.training.ranks import Ranks


@dataclass(frozen=True)
class Progress:
    """State that `fit` yields after each epoch.

    Attributes:
        epoch: number of completed epochs, from 1.
        metrics: scalars by name, identical on all ranks except for the seconds.
        save: writes a checkpoint of the current state into a folder; call on rank 0.
        done: whether this was the last epoch.
        failure: why training cannot continue, or None; if set, save nothing.
        standing: the metrics by which the run counts so far: those of the epoch that
            `train.select` chose, with what has been spent; without it, the same as `metrics`.
        pin: writes weights and manifest alone, if `train.select` chose this epoch; else None.
    """

    epoch: int
    metrics: dict[str, float]
    save: Callable[[Path], None]
    done: bool
    failure: str | None = None
    standing: dict[str, float] = field(default_factory=dict)
    pin: Callable[[Path], None] | None = None

    def keep_selected(self, folder: Path, keep: int) -> None:
        """Keeps the network of this epoch apart if `train.select` chose it; before the epoch's
        checkpoint, which names it, and together with those that earlier checkpoints name.

        Args:
            folder: of the run.
            keep: number of checkpoints that stay.
        """
        if self.pin is not None:
            name = checkpoint.folder_name(self.epoch)
            checkpoint.commit(folder / checkpoint.SELECTED, name, self.pin, keep + 1)


def fit(
    config: Config,
    dataset: Dataset,
    device: torch.device,
    resume: Path | None = None,
    watch: Callable[[Pulse], None] | None = None,
) -> Iterator[Progress]:
    """Trains, yielding after every epoch.

    Args:
        config: the complete configuration.
        dataset: result of `raybust.data.load`.
        device: this rank's device.
        resume: checkpoint folder to resume from.
        watch: called after every step.
    """
    try:
        trainer = Trainer(config, dataset, device, resume)
        if watch is not None:
            trainer.watch = watch
        yield from _epochs(trainer)
    except torch.OutOfMemoryError as error:
        reason = _out_of_memory(config, device, error)
    else:
        return
    devices.free_memory(device)
    if Ranks.current(device).world > 1:  # the other ranks wait for this one
        raise WorkError(reason)
    yield Progress(0, {"epoch": 0}, _nothing, True, reason)


def _epochs(trainer: Trainer) -> Iterator[Progress]:
    while not trainer.done:
        failure = trainer.train_epoch()
        if failure is not None:
            epoch = trainer.epoch + 1
            yield Progress(epoch, {"epoch": epoch}, trainer.save, True, failure)
            return
        metrics, chosen = trainer.validate(), trainer.selection
        yield Progress(
            trainer.epoch,
            metrics,
            trainer.save,
            trainer.done,
            standing=standing(metrics, chosen.metrics),
            pin=partial(trainer.save, resumable=False) if chosen.epoch == trainer.epoch else None,
        )


def _out_of_memory(config: Config, device: torch.device, error: torch.OutOfMemoryError) -> str:
    """Returns what did not fit, and what to change."""
    train = config.train
    peak = "".join(f", {gib:.1f} GiB in use" for gib in devices.peak_memory(device).values())
    cause = " ".join(str(error).split()).partition(". ")[0][:100]
    return (
        f"out of device memory: {config.model.name} with batches of {train.batch_size} images"
        f" in {train.accumulate} part{'s' if train.accumulate > 1 else ''}{peak} ({cause}); lower"
        f" train.batch_size or set train.accumulate={2 * train.accumulate}"
    )


def _nothing(folder: Path) -> None:
    """Saves nothing: the network is gone."""

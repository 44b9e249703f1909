"""`raybust train`: checks everything that needs no cluster, then trains one run, here or on Ray.

Nothing is submitted before data, network and store are ready. A run that is already trained is only
synchronized with MLflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import Tensor

from raybust import config as configuration
from raybust import data, models, track
from raybust.cluster.runlog import Job, end_if_open
from raybust.cluster.session import nodes_of, session, slots
from raybust.config import Config
from raybust.disk import checkpoint, runs
from raybust.disk.lock import locked
from raybust.identity import code_of
from raybust.stages.bars import Echo
from raybust.stages.checks import check_class_names, check_places
from raybust.stages.epochs import LOOKED_AT, Chance, epoch_lines
from raybust.stages.place import check_fit, suffices
from raybust.stages.progress import note_growth, print_data
from raybust.stages.tracking import open_store, sending_rest
from raybust.stages.training_here import train_here
from raybust.trained import check_function
from raybust.training import initial
from raybust.training.objective import assemble, check_batch


def default_name(config: Config) -> str:
    """Returns the default name of a run, the same for the same experiment."""
    model = config.model.name.replace(":", "-")
    digits = runs.fixed_digits(configuration.to_dict(config))
    return f"{config.data.name}-{config.method.key}-{model}-{digits}"


def train(config: Config, *, address: str | None, resume: bool, verbose: bool, echo: Echo) -> Path:
    """Trains or resumes one run; returns its folder.

    Args:
        config: the full configuration.
        address: of a Ray cluster; None for the embedded one.
        resume: False sets an earlier run of that name aside.
        verbose: show Ray's messages.
        echo: prints a line.

    Raises:
        RequestError: the request is invalid; nothing was started.
        WorkError: training failed; the last good checkpoint is kept.
    """
    track.engage()
    dataset = data.load(config.data, runs.out_folder(config))
    out = runs.out_folder(config)
    folder = out / (config.name or default_name(config))
    plain = configuration.to_dict(config)
    newest = checkpoint.newest(folder, echo) if resume else None
    network, notes = assemble(config, dataset), list[str]()
    if newest is None:
        notes = initial.initialize(network, config, dataset)
    check_batch(network, config, dataset)
    initial.embedding(config, dataset, "cpu")
    initial.teacher(config, dataset, "cpu")
    _check_batch_size(config, dataset.train.labels)
    check_places(config)
    inputs = initial.inputs_digest(config, dataset.digest)
    if resume:
        runs.check_same(folder, "train", plain, inputs)
        check_class_names(folder, dataset)
    if newest is not None:
        check_function(network, newest, folder.name)
    if newest is not None and checkpoint.read_manifest(newest)["done"]:
        echo(f"{folder.name} is already trained; use --no-resume to train it again")
        with locked(folder), sending_rest(folder, open_store(config, out, echo), out, echo):
            end_if_open(folder, "finished", weights=True)
            return folder
    with _trainer(config, dataset, address, verbose=verbose, echo=echo) as run:
        uri = open_store(config, out, echo)
        with locked(folder), sending_rest(folder, uri, out, echo):
            identity = runs.identify(folder, "train", plain, resume, inputs)
            newest = checkpoint.newest(folder)
            print_data(config, dataset, echo)
            for note in (*models.notes_of(network), *([] if newest else notes)):
                echo(note)
            start = f"resuming at epoch {checkpoint.epoch_of(newest)}" if newest else "training"
            echo(f"{folder.name}: {start}, {config.cluster.workers} workers, in {folder}")
            code = code_of(network, dataset.shape)
            job = Job(plain, str(folder), identity.uid, folder.name, inputs=inputs, code=code)
            chance = Chance.of(config, dataset)
            with epoch_lines(folder, echo, chance):
                run(config, job, uri)
            _warn_at_end(folder, chance, echo)
    return folder


def _warn_at_end(folder: Path, chance: Chance, echo: Echo) -> None:
    """Warns about a run that ended no better than chance, unless its last line did."""
    used = checkpoint.used(folder)
    if used is None or (epoch := checkpoint.epoch_of(used)) == LOOKED_AT:
        return
    accuracy = checkpoint.read_manifest(used)["metrics"]["validation/accuracy"]
    if warning := chance.warning(epoch, accuracy):
        echo(warning)


@contextmanager
def _trainer(
    config: Config, dataset: data.Dataset, address: str | None, *, verbose: bool, echo: Echo
) -> Iterator[Callable[[Config, Job, str], None]]:
    """Yields the function that trains a run: in this process if that is enough, else on Ray."""
    if suffices(config, address):
        check_fit(config)
        yield partial(train_here, dataset=dataset)
        return
    from raybust.cluster import worker

    with session(address, verbose=verbose, dashboard=True) as ray:
        slots(config, nodes_of(ray))
        note_growth(config, ray, echo)
        yield worker.train


def _check_batch_size(config: Config, labels: Tensor) -> None:
    """Rejects a batch that the workers cannot share; see `fitting_batch`."""
    data.fitting_batch(
        labels,
        config.train.batch_size,
        world=config.cluster.workers,
        classes=config.train.batch_classes or config.method.balanced_classes,
        parts=config.train.accumulate,
    )

"""Trained networks, loaded from a run, a checkpoint or a weights file.

Also chooses the folder of their results, and checks that network and data are still those of the
training. Stage between checkpoint and certify / evaluate.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raybust import config as configuration
from raybust import data, methods, models
from raybust.config import Config, Leaf
from raybust.data import Dataset
from raybust.disk import checkpoint, runs
from raybust.disk.runs import IDENTITY, TRIALS, belongs, out_folder, read_identity
from raybust.disk.strip import used_weights
from raybust.errors import RequestError
from raybust.evaluate import correct
from raybust.identity import same_function
from raybust.training.objective import assemble, smoothing_sigma

_SAMPLE = 200
"""Test images for checking weights that raybust did not train."""

FOREIGN = "_weights"
"""Folder of the results of anything but runs; no run can have that name."""

SETTABLE = (
    "certify",
    "evaluate",
    "corruptions",
    "cluster",
    "track",
    "out",
    "data.path",
    "data.root",
    "data.download",
)
"""Sections and keys that may change after training."""


@dataclass(frozen=True)
class Trained:
    """A trained network with what is needed to certify or attack it.

    Attributes:
        folder: folder of its results; below OUT/_weights if it is not a run.
        config: its configuration, with the overrides of this call.
        dataset: its data.
        network: in eval mode, on the CPU.
        trained_sigma: sigma of its training noise, or None.
        uid: its key in the tracking store, or None if it is not a run.
        notes: lines to show to the user.
        training_known: False for a weights file, whose `trained_sigma` is then no fact.
    """

    folder: Path
    config: Config
    dataset: Dataset
    network: nn.Module
    trained_sigma: float | None
    uid: str | None
    notes: tuple[str, ...] = ()
    training_known: bool = True

    @property
    def name(self) -> str:
        """Its display name: its folder's name, or SWEEP/7 for a sweep's trial."""
        return runs.display_name(self.folder)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes."""
        return self.dataset.classes

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise that certificates use: `certify.sigma`, else that of the
        training, else 0.25."""
        return smoothing_sigma(self.config)


def load_trained(
    path: Path, overrides: list[Leaf], *, trusted: bool = False, with_data: bool = True
) -> Trained:
    """Returns the trained network of a run folder, a checkpoint folder or a weights file.

    Args:
        path: as returned by `find`.
        overrides: key=value of this call. For a run, only settings used after training may change;
            a weights file takes its whole configuration from them.
        trusted: whether the code of its network may be imported though `overrides` do not name it.
        with_data: whether to read its dataset; without, the parts are empty.

    Raises:
        RequestError: there is no checkpoint yet, it is a sweep, an override affects training, or
            its network is code that neither `overrides` name nor an installed package has.
    """
    if path.is_file():
        return _load_weights_file(path, overrides)
    folder, uid, notes = path, None, list[str]()
    if (path / IDENTITY).exists():
        folder, uid = _checkpoint_of_run(path, notes)
    manifest = checkpoint.read_manifest(folder)
    model = manifest["config"]["model"]["name"]
    if not (trusted or any((leaf.key, leaf.value) == ("model.name", model) for leaf in overrides)):
        models.check_installed(model, path.name)
    overrides = [leaf for leaf in overrides if (leaf.key, leaf.value) != ("model.name", model)]
    for leaf in overrides:
        if not belongs(leaf.key, SETTABLE):
            raise RequestError(
                f"{leaf.key}: is fixed by the training of {path.name};"
                f" only these may be set afterwards: {', '.join(SETTABLE)}"
            )
    leaves = _leaves_of_training(manifest, path, is_run=uid is not None)
    config = configuration.compose([*leaves, *overrides], methods.get)
    if with_data:
        dataset = data.load(config.data, out_folder(config))
        _check_dataset(path.name, manifest, dataset)
    else:
        dataset = data.empty(config.data.name, tuple(manifest["shape"]), manifest["classes"])
    network = assemble(config, dataset)
    network.load_state_dict(checkpoint.read_weights(folder))
    network.eval()
    owner = path if uid is not None else foreign_folder(config, path)
    if uid is None and not manifest["done"]:
        notes.append(f"warning: {path.name} has not finished training: epoch {manifest['epoch']}")
    notes += _changes(path.name, network, dataset if with_data else None, manifest)
    dataset = dataclasses.replace(dataset, classes=tuple(manifest["classes"]))
    if uid is not None and (original := runs.original_of(path)) is not None:
        notes.append(
            f"warning: {path.name} is a copy of {original}; its results stay here and are not sent"
            " to MLflow, where the original has its own"
        )
        uid = None
    return Trained(owner, config, dataset, network, config.method.noise(), uid, tuple(notes))


def _checkpoint_of_run(path: Path, notes: list[str]) -> tuple[Path, str]:
    """Returns key of a run and the checkpoint that it uses; adds a note for each torn checkpoint,
    and where it is not that of the last epoch, or training has not finished."""
    found = read_identity(path)
    if found.kind == "sweep":
        raise RequestError(
            f"{path.name}: is a sweep; name its winner, {path.name}/best, or one of its trials,"
            f" such as {path.name}/0"
        )
    used = used_weights(path, runs.display_name(path), lambda t: notes.append(f"warning: {t}"))
    last = checkpoint.newest(path) or used
    manifest = checkpoint.read_manifest(last)
    if not manifest["done"]:
        notes.append(f"warning: {path.name} has not finished training: epoch {manifest['epoch']}")
    if last != used:
        chosen, by = checkpoint.epoch_of(used), manifest["config"]["train"]["select"]
        notes.append(
            f"{runs.display_name(path)} uses epoch {chosen}, the best by {by}; the last one is"
            f" {last}"
        )
    return used, found.uid


def _leaves_of_training(manifest: Mapping[str, Any], path: Path, *, is_run: bool) -> list[Leaf]:
    """Returns a checkpoint's configuration without the folder of its training: a run's store is
    where the run is now, and the results of a checkpoint given by path go to this call's folder."""
    leaves = configuration.leaves_of(manifest["config"], f"run {path.name}")
    leaves = [leaf for leaf in leaves if leaf.key != "out"]
    if is_run:
        home = path.parents[2] if path.parent.name == TRIALS else path.parent
        leaves.append(Leaf("out", str(home), f"the folder of {path.name}"))
    return leaves


def _check_dataset(name: str, manifest: Mapping[str, Any], dataset: Dataset) -> None:
    """Rejects data whose image shape or classes differ from those of the training."""
    for trained, found in (
        (f"images of shape {manifest['shape']}", f"images of shape {list(dataset.shape)}"),
        (f"{len(manifest['classes'])} classes", f"{len(dataset.classes)} classes"),
    ):
        if trained != found:
            raise RequestError(
                f"{name}: was trained on {trained}, but dataset {dataset.name} has {found};"
                " choose a matching dataset"
            )
    ours, theirs = list(manifest["classes"]), list(dataset.classes)
    at = first_other_class(ours, theirs)
    if at is not None:
        raise RequestError(
            f"{name}: class {at} was {ours[at]!r} in training, but is {theirs[at]!r} in dataset"
            f" {dataset.name}, so its labels may mean other classes; restore names and order"
        )


def first_other_class(ours: Sequence[str], theirs: Sequence[str]) -> int | None:
    """Returns the first class whose label may mean another class in another data set, or None. Data
    without names of classes number them.

    Args:
        ours: names of K classes, in order.
        theirs: K names of the other data set.
    """
    numbers = [str(number) for number in range(len(ours))]
    unnamed = numbers in (list(ours), list(theirs)) and set(ours) != set(theirs)
    if unnamed:
        return None
    pairs = zip(ours, theirs, strict=True)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), None)


def _changes(
    name: str, network: nn.Module, dataset: Dataset | None, manifest: dict[str, Any]
) -> tuple[str, ...]:
    """Returns a warning for each of network and data that changed since training."""
    if "outputs" not in manifest:  # written by raybust 0.1
        return ()
    found = []
    if not same_function(network, manifest):
        found.append(
            f"warning: {name} no longer computes what it did when trained: its code or a library"
            " has changed; results use the current code"
        )
    if dataset is not None and dataset.digest != manifest["data_digest"]:
        found.append(
            f"warning: the images, labels or split of the dataset of {name} have changed since"
            " training; results use the current data"
        )
    return tuple(found)


def check_function(network: nn.Module, folder: Path, name: str) -> None:
    """Rejects a resume from a checkpoint whose network has since changed.

    Args:
        network: as the configuration builds it; receives the checkpoint's weights.
        folder: the checkpoint.
        name: name of the run or trial.

    Raises:
        RequestError: the code of the network, or a library, has changed.
    """
    network.load_state_dict(checkpoint.read_weights(folder))
    if not same_function(network.eval(), checkpoint.read_manifest(folder)):
        raise changed_function(name, folder.name)


def changed_function(name: str, saved: str) -> RequestError:
    """Returns the error for a network whose code has changed since a checkpoint.

    Args:
        name: of the run or trial.
        saved: name of the checkpoint.
    """
    return RequestError(
        f"{name}: its network no longer computes what it did when {saved} was saved: its code or a"
        " library has changed; choose another --name, or --no-resume to start over (the old run is"
        " kept)"
    )


def foreign_folder(config: Config, path: Path) -> Path:
    """Returns the results folder of a weights file, or of a checkpoint given by path: one per path,
    with a name that no run can have."""
    digest = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:8]
    home = checkpoint.run_of(path)
    run = home.name + "-" if (home / IDENTITY).exists() else ""
    name = path.parent.name if (path.parent / "MLmodel").exists() else path.stem
    return out_folder(config) / FOREIGN / f"{run}{name}-{digest}"


def _load_weights_file(path: Path, overrides: list[Leaf]) -> Trained:
    config = configuration.compose(overrides, methods.get)
    dataset = data.load(config.data, out_folder(config))
    network = assemble(config, dataset)
    own = not (config.model.mean or config.model.std)
    notes = models.load_weights(network, path, normalization=own)
    network.eval()
    notes += [
        *models.notes_of(network),
        _normalization(network, config),
        *_low_accuracy(network, dataset),
    ]
    folder = foreign_folder(config, path)
    return Trained(folder, config, dataset, network, None, None, tuple(notes), training_known=False)


def _normalization(network: nn.Module, config: Config) -> str:
    """Describes the normalization a network applies, and how to change it."""
    layer = next(part for part in network.modules() if isinstance(part, models.Normalize))
    chosen = config.model.mean or config.model.std
    how = "as set" if chosen else "change it with model.mean=[...] model.std=[...]"
    return f"normalization: {layer.constants}; {how}"


def _low_accuracy(network: nn.Module, dataset: Dataset) -> list[str]:
    """Returns a warning if accuracy on some test images is below twice chance."""
    count, classes = min(_SAMPLE, len(dataset.test)), len(dataset.classes)
    chosen = data.spread(len(dataset.test), count)
    hits = correct(network, dataset.test, chosen, batch=_SAMPLE, device=torch.device("cpu"))
    accuracy = float(hits.double().mean())
    if accuracy >= min(2 / classes, 1 - 0.5 / classes):
        return []
    return [
        f"warning: accuracy is {accuracy:.2f} on {count} test images of {classes} classes, barely"
        " above chance: do the normalization (model.mean, model.std), the class order and the"
        " channel order match training?"
    ]

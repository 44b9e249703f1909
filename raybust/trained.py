"""Trained networks: what a run, a checkpoint or a weights file is once it is loaded.

Also where its results go, and which results of a run are of the weights that it has now. Stage
between checkpoint and certify / evaluate.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raybust import config as configuration
from raybust import data, methods, models
from raybust.config import Config, Leaf
from raybust.data import Dataset
from raybust.disk import checkpoint
from raybust.disk.runs import IDENTITY, TRIALS, belongs, out_folder, read_identity
from raybust.errors import RequestError
from raybust.evaluate import correct
from raybust.identity import agree, fixed_images, outputs_of, state_digest
from raybust.train.objective import assemble

_TRIED = 200
"""Test images on which weights that raybust did not train are tried."""

FOREIGN = "_weights"
"""Folder of the results of what is no run; no run can have that name."""

_AFTERWARDS = (
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


@dataclass(frozen=True)
class Trained:
    """A trained network with what is needed to certify or attack it.

    Attributes:
        folder: where results about it are written; of what is no run, one below OUT/_weights.
        config: its configuration, with the overrides of this call.
        dataset: its data.
        network: in eval mode, on the CPU.
        trained_sigma: the sigma of its training noise, or None.
        uid: its key in the tracking store, or None for what is no run.
        notes: what the user has to know about it, a line each.
    """

    folder: Path
    config: Config
    dataset: Dataset
    network: nn.Module
    trained_sigma: float | None
    uid: str | None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What a person calls it: its folder's name, SWEEP/7 for a trial of a sweep."""
        if self.folder.parent.name != TRIALS:
            return self.folder.name
        return f"{self.folder.parent.parent.name}/{int(self.folder.name)}"


def load_trained(path: Path, overrides: list[Leaf]) -> Trained:
    """Returns the trained network of a run folder, a checkpoint folder or a weights file.

    Args:
        path: as `find` found it.
        overrides: key=value of this call. For a run only what comes after training may change; a
            weights file takes its whole configuration from them.

    Raises:
        RequestError: no checkpoint yet, a sweep, or an override of what is trained already.
    """
    if path.is_file():
        return _load_weights_file(path, overrides)
    folder, uid = path, None
    if (path / IDENTITY).exists():
        found = read_identity(path)
        if found.kind == "sweep":
            raise RequestError(
                f"{path.name}: is a sweep; name one of its trials, for instance {path.name}/0"
            )
        newest = checkpoint.newest(path)
        if newest is None:
            raise RequestError(f"{path.name}: has no checkpoint yet; train it first")
        folder, uid = newest, found.uid
    manifest = checkpoint.read_manifest(folder)
    for leaf in overrides:
        if not belongs(leaf.key, _AFTERWARDS):
            raise RequestError(
                f"{leaf.key}: is fixed by the training of {path.name};"
                f" after it only these may be set: {', '.join(_AFTERWARDS)}"
            )
    leaves = configuration.leaves_of(manifest["config"], f"run {path.name}")
    if uid is None:  # its results belong to whoever names it, not to where it was trained
        leaves = [leaf for leaf in leaves if leaf.key != "out"]
    config = configuration.compose([*leaves, *overrides], methods.get)
    dataset = data.load(config.data)
    network = assemble(config, dataset)
    network.load_state_dict(checkpoint.read_weights(folder))
    network.eval()
    owner = path if uid is not None else foreign_folder(config, path)
    notes = _changes(path.name, network, dataset, manifest)
    return Trained(owner, config, dataset, network, config.method.noise(), uid, notes)


def _changes(
    name: str, network: nn.Module, dataset: Dataset, manifest: dict[str, Any]
) -> tuple[str, ...]:
    """Returns a warning each where network or data are not what they were in training."""
    if "outputs" not in manifest:  # of raybust 0.1
        return ()
    found, trained = [], manifest["outputs"]
    if not agree(trained, outputs_of(network, fixed_images(manifest["shape"]))):
        found.append(
            f"warning: {name} computes something else than when it was trained: its code or a"
            " library has changed since; results are of the code at hand"
        )
    if dataset.digest != manifest["data_digest"]:
        found.append(
            f"warning: {name} was trained with other images, labels or another cut than those in"
            " its data set now; results are of those at hand"
        )
    return tuple(found)


def foreign_folder(config: Config, path: Path) -> Path:
    """Returns where results go of a weights file or a checkpoint that is named by its path: a
    folder of its own, whose name no run can have."""
    place = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:8]
    inside = path.parent.name + "-" if (path.parent / IDENTITY).exists() else ""
    return out_folder(config) / FOREIGN / f"{inside}{path.stem}-{place}"


def is_current(result: Path, header: Mapping[str, Any]) -> bool:
    """Returns whether a result in a run's folder is of the weights that the run has now.

    Args:
        result: its file, in OUT/NAME/certified and the like.
        header: what it records of its origin.
    """
    run = result.parent.parent
    if not (run / IDENTITY).exists():
        return True
    newest = checkpoint.newest(run)
    return newest is None or header.get("weights") in (None, "", _weights_of(newest))


@functools.cache
def _weights_of(folder: Path) -> str:
    return state_digest(checkpoint.read_weights(folder))


def _load_weights_file(path: Path, overrides: list[Leaf]) -> Trained:
    config = configuration.compose(overrides, methods.get)
    dataset = data.load(config.data)
    network = assemble(config, dataset)
    own = not (config.model.mean or config.model.std)
    notes = models.load_weights(network, path, normalization=own)
    network.eval()
    notes += [*models.notes_of(network), _normalization(network, config), *_doubt(network, dataset)]
    folder = foreign_folder(config, path)
    return Trained(folder, config, dataset, network, None, None, tuple(notes))


def _normalization(network: nn.Module, config: Config) -> str:
    """Returns which normalization a network applies, and how to change it."""
    layer = next(part for part in network.modules() if isinstance(part, models.Normalize))
    mean, std = (
        ", ".join(f"{value:.4g}" for value in part.flatten().tolist())
        for part in (layer.mean, layer.std)
    )
    chosen = config.model.mean or config.model.std
    how = "as set" if chosen else "model.mean=[...] model.std=[...] change it"
    return f"normalization: mean {mean}, std {std}; {how}"


def _doubt(network: nn.Module, dataset: Dataset) -> list[str]:
    """Returns a warning where weights do no better than twice chance on some test images."""
    count, classes = min(_TRIED, len(dataset.test)), len(dataset.classes)
    hits = correct(network, dataset.test, range(count), batch=_TRIED, device=torch.device("cpu"))
    accuracy = float(hits.double().mean())
    if accuracy >= min(2 / classes, 1 - 0.5 / classes):
        return []
    return [
        f"warning: accuracy is {accuracy:.2f} on {count} test images of {classes} classes, hardly"
        " above chance: is the normalization (model.mean, model.std), the order of the classes or"
        " that of the channels another than in training?"
    ]

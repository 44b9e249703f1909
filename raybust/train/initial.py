"""What a run takes from others: the weights that it starts from, and the frozen network of which
its method wants features. Both are named in the method's fields, as a run, a sweep's trial, a
checkpoint folder or a weights file. Stage between checkpoint and train.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from raybust import config as configuration
from raybust import methods, models
from raybust.config import Config
from raybust.data import Dataset
from raybust.disk import checkpoint, runs
from raybust.errors import RequestError
from raybust.numerics.transport import penultimate
from raybust.train.objective import assemble

Embedding = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to features (B, D), without a gradient."""


def check(config: Config) -> None:
    """Checks that there is what the method's fields name; reads no weights.

    Raises:
        RequestError: nothing is there, or a run without a checkpoint.
    """
    named = {
        "method.init": config.method.initial(),
        "method.embedding": config.method.embedded_by(),
    }
    for key, source in named.items():
        if source is not None:
            _find(source, key, config)


def initialize(network: nn.Module, config: Config, dataset: Dataset) -> None:
    """Reads the weights that the method starts from, where it names any, into its fresh network.

    They may be of a network with a module in front of it, or without, as this one. A weights file
    says nothing of its classes.

    Raises:
        RequestError: nothing is there, or it is of another architecture or other classes.
    """
    source = config.method.initial()
    if source is None:
        return
    path = _find(source, "method.init", config)
    if path.is_dir():
        manifest = checkpoint.read_manifest(path)
        name, classes = manifest["config"]["model"]["name"], manifest["classes"]
        if name != config.model.name:
            raise RequestError(
                f"method.init: {source} is a {name}, expected a {config.model.name}; set"
                f" model.name={name} or start from another run"
            )
        if classes != list(dataset.classes):
            raise RequestError(
                f"method.init: {source} has the {_listed(classes)}, the data the"
                f" {_listed(dataset.classes)}; start from a run on the same classes"
            )
        path = path / checkpoint.WEIGHTS
    try:
        models.load_weights(network, path)
    except RequestError as error:
        raise RequestError(*(f"method.init: {text}" for text in error.problems)) from None


def embedding(config: Config, dataset: Dataset, device: torch.device | str) -> Embedding | None:
    """Returns the penultimate features of the trained network that the method names, or None where
    it names none. A run may be of another architecture and of other classes, on images of the same
    shape; a weights file is of this run's architecture.

    Raises:
        RequestError: nothing is there, it is not for such images, or has no linear layer.
    """
    source = config.method.embedded_by()
    if source is None:
        return None
    path = _find(source, "method.embedding", config)
    if path.is_dir():
        manifest = checkpoint.read_manifest(path)
        leaves = configuration.leaves_of(manifest["config"], f"run {source}")
        config = configuration.compose(leaves, methods.get)
        dataset = dataclasses.replace(dataset, classes=tuple(manifest["classes"]))
        path = path / checkpoint.WEIGHTS
    with torch.random.fork_rng(devices=[]):
        network = assemble(config, dataset)
    models.load_weights(network, path)
    network.to(device).requires_grad_(False).eval()

    def features(images: Tensor) -> Tensor:
        return penultimate(network, images)

    try:
        features(torch.zeros(1, *dataset.shape, device=device))
    except ValueError as error:
        raise RequestError(f"method.embedding: {source}: {error}; name another network") from None
    return features


def _find(source: str, key: str, config: Config) -> Path:
    """Returns the checkpoint folder or weights file that a method's field `key` names."""
    places = runs.candidates(source, runs.out_folder(config))
    path = next((path for path in places if path.exists()), None)
    if path is None:
        raise RequestError(
            f"{key}: got {source!r}, expected a run under {config.out}, a trial SWEEP/NUMBER,"
            " a checkpoint folder or a weights file"
        )
    if path.is_file() or (path / checkpoint.MANIFEST).exists():
        return path
    folder = checkpoint.newest(path)
    if folder is None:
        raise RequestError(f"{key}: {source} has no checkpoint; train it first")
    return folder


def _listed(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes {', '.join(classes[:4])}{', ...' * (len(classes) > 4)}"

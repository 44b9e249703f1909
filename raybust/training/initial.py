"""Networks that a run takes from other runs: its initial weights, and the frozen network that
provides features to its method. The method's fields name each as a run, a sweep's trial, a
checkpoint folder or a weights file.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from raybust import config as configuration
from raybust import methods, models
from raybust.config import Config
from raybust.data import Dataset
from raybust.disk import checkpoint, runs
from raybust.disk.strip import newest_weights
from raybust.errors import RequestError
from raybust.numerics.transport import penultimate
from raybust.training.objective import assemble

Embedding = Callable[[Tensor], Tensor]
"""Maps images (B, C, H, W) to features (B, D), without gradients."""


def check(config: Config) -> None:
    """Checks that the networks named by the method exist, without reading weights.

    Raises:
        RequestError: a source does not exist, or is a run without a checkpoint.
    """
    sources = {
        "method.init": config.method.initial(),
        "method.embedding": config.method.embedded_by(),
    }
    for key, source in sources.items():
        if source is not None:
            _find(source, key, config)


def inputs_digest(config: Config, data: str) -> str:
    """Returns the digest of what a run learns from: the dataset's, and after a "+" that of the
    weights named by the method, if there are any.

    Args:
        config: names the weights.
        data: digest of the dataset.
    """
    sources = (("method.init", config.method.initial()),
               ("method.embedding", config.method.embedded_by()))  # fmt: skip
    found = []
    for key, source in sources:
        if source is not None:
            path = _find(source, key, config)
            with (path / checkpoint.WEIGHTS if path.is_dir() else path).open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest()[:16])
    return "+".join([data, *found])


def initialize(network: nn.Module, config: Config, dataset: Dataset) -> None:
    """Loads the method's initial weights, if it names any, into the fresh network.

    Either network may have a front module or not. The classes of a weights file are unknown and not
    checked.

    Raises:
        RequestError: the source does not exist, or its architecture or classes differ.
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
                f"method.init: {source} has the {_summary(classes)}, the data the"
                f" {_summary(dataset.classes)}; start from a run on the same classes"
            )
        path = path / checkpoint.WEIGHTS
    try:
        models.load_weights(network, path)
    except RequestError as error:
        raise RequestError(*(f"method.init: {text}" for text in error.problems)) from None


def embedding(config: Config, dataset: Dataset, device: torch.device | str) -> Embedding | None:
    """Returns the penultimate features of the trained network named by the method, or None without
    one. A run may differ in architecture and classes, but not in image shape; a weights file must
    match this run's architecture.

    Raises:
        RequestError: the source does not exist, rejects such images or has no linear layer.
    """
    source = config.method.embedded_by()
    if source is None:
        return None
    path = _find(source, "method.embedding", config)
    if path.is_dir():
        manifest = checkpoint.read_manifest(path)
        leaves = configuration.leaves_of(manifest["config"], f"run {source}")
        if (model := manifest["config"]["model"]["name"]) != config.model.name:
            models.check_installed(model, f"method.embedding: {source}")
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
    """Returns the checkpoint folder or weights file named by the method's field `key`."""
    candidates = runs.candidates(source, runs.out_folder(config))
    path = next((path for path in candidates if path.exists()), None)
    if path is None:
        raise RequestError(
            f"{key}: got {source!r}, expected a run under {config.out}, a trial SWEEP/NUMBER,"
            " a checkpoint folder or a weights file"
        )
    if path.is_file() or (path / checkpoint.MANIFEST).exists():
        return path
    return newest_weights(path, f"{key}: {source}")


def _summary(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes {', '.join(classes[:4])}{', ...' * (len(classes) > 4)}"

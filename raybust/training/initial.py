"""Networks that a run takes from others: its initial weights (`train.init`), and the frozen network
that provides features to its method (`method.embedding`). Each is a run, a sweep's trial, a
checkpoint folder or a weights file; initial weights may also be a library's.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from raybust import config as configuration
from raybust import methods, models
from raybust.config import Config
from raybust.data import Dataset
from raybust.disk import checkpoint, runs
from raybust.disk.strip import used_weights
from raybust.errors import RequestError
from raybust.models.normalize import Normalize
from raybust.numerics.transport import penultimate
from raybust.training.objective import assemble

Embedding = Callable[[Tensor], Tensor]
"""Maps images (B, C, H, W) to features (B, D), without gradients."""


def check(config: Config) -> None:
    """Checks that the networks named by `train` and by the method exist, without reading weights.

    Raises:
        RequestError: a source does not exist, or is a run without a checkpoint.
    """
    _places(config)


def inputs_digest(config: Config, data: str) -> str:
    """Returns the digest of what a run learns from: the dataset's, and after a "+" that of the
    weights that it takes from others, if there are any.

    Args:
        config: names the weights.
        data: digest of the dataset.
    """
    found = []
    for path in _places(config):
        with (path / checkpoint.WEIGHTS if path.is_dir() else path).open("rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest()[:16])
    return "+".join([data, *found])


def _places(config: Config) -> list[Path]:
    """Returns where the weights lie that a run takes from others."""
    sources = (("train.init", config.train.init),
               ("method.embedding", config.method.embedded_by()),
               ("method.teacher", config.method.taught_by()))  # fmt: skip
    return [_find(source, key, config) for key, source in sources if source is not None]


def initialize(network: nn.Module, config: Config, dataset: Dataset) -> list[str]:
    """Loads the weights `train.init` into the fresh network, if there are any, else lets the method
    initialize it; returns what was read, a line each.

    Either network may have a front module or not. Where a run's classes differ from the data's, or
    the last layer of a weights file has another shape, the last layer stays new. A library's
    weights bring their normalization, unless `model.mean` sets one.

    Raises:
        RequestError: the source does not exist, or its architecture differs.
    """
    source = config.train.init
    if source is None:
        config.method.initialize(network)
        return []
    path = _find(source, "train.init", config)
    name, lines = config.model.name.partition(".")[0], list[str]()
    new_head: Literal["of another shape", "always"] = "of another shape"
    library = models.pretrained(source) if models.is_pretrained(source) else None
    if library is not None and library.model != name:
        raise _another(source, library.model, config)
    if path.is_dir():
        manifest = checkpoint.read_manifest(path)
        if (made := manifest["config"]["model"]["name"]) != config.model.name:
            raise _another(source, made, config)
        if manifest["classes"] != list(dataset.classes):
            new_head = "always"
        lines = _seen_before(checkpoint.run_of(path), source, dataset)
        path = path / checkpoint.WEIGHTS
    built, own = _constants(network), config.model.mean is None
    try:
        lines += models.load_weights(network, path, new_head=new_head, normalization=own)
    except RequestError as error:
        first, *others = error.problems
        raise RequestError(f"train.init: {first}", *others) from None
    if library is not None and own:
        _normalize(network, library)
    if _constants(network) != built:
        lines.append(f"weights: their normalization, not the data's: {_constants(network)}")
    return lines


def _seen_before(run: Path, source: str, dataset: Dataset) -> list[str]:
    """Warns if a run was trained on other images or another split than those of now: images that
    are held out now may be among them."""
    known = runs.read_identity(run).data if (run / runs.IDENTITY).exists() else ""
    if not known or known.partition("+")[0] == dataset.digest:
        return []
    return [
        f"warning: train.init: {source} was trained on other images or another split; images that"
        " are held out now may be among them"
    ]


def _normalization(network: nn.Module) -> Normalize | None:
    return next((part for part in network.modules() if isinstance(part, Normalize)), None)


def _constants(network: nn.Module) -> str:
    """Returns the normalization of a network in words; "" without one."""
    layer = _normalization(network)
    return "" if layer is None else layer.constants


def _another(source: str, name: str, config: Config) -> RequestError:
    return RequestError(
        f"train.init: {source} is a {name}, expected a {config.model.name}; set model.name={name}"
        " or start from another network"
    )


def _normalize(network: nn.Module, library: models.Pretrained) -> None:
    """Sets the normalization that a library's weights were trained with, if the channels match."""
    layer = _normalization(network)
    if layer is None or layer.mean.numel() != len(library.mean):
        return
    layer.mean.copy_(torch.tensor(library.mean).reshape(-1, 1, 1))
    layer.std.copy_(torch.tensor(library.std).reshape(-1, 1, 1))


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
    network, _ = _frozen(source, "method.embedding", (config, dataset), device)

    def features(images: Tensor) -> Tensor:
        return penultimate(network, images)

    try:
        features(torch.zeros(1, *dataset.shape, device=device))
    except ValueError as error:
        raise RequestError(f"method.embedding: {source}: {error}; name another network") from None
    return features


def teacher(config: Config, dataset: Dataset, device: torch.device | str) -> Embedding | None:
    """Returns the logits of the trained network named by the method, or None without one; like
    `embedding`, but its classes must be those of the data.

    Raises:
        RequestError: the source does not exist, or has other classes.
    """
    source = config.method.taught_by()
    if source is None:
        return None
    network, classes = _frozen(source, "method.teacher", (config, dataset), device)
    if classes != dataset.classes:
        raise RequestError(
            f"method.teacher: {source} has the classes {', '.join(classes)}, expected"
            f" {', '.join(dataset.classes)}"
        )

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = network(images)
        return found

    return logits


def _frozen(
    source: str, key: str, own: tuple[Config, Dataset], device: torch.device | str
) -> tuple[nn.Module, tuple[str, ...]]:
    """Returns a trained network in eval mode, without gradients, and its classes.

    Args:
        source: a run, a checkpoint folder or a weights file.
        key: of the setting that names it.
        own: configuration and data of the run that uses it.
        device: where it goes.
    """
    config, dataset = own
    path = _find(source, key, config)
    if path.is_dir():
        manifest = checkpoint.read_manifest(path)
        leaves = configuration.leaves_of(manifest["config"], f"run {source}")
        if (model := manifest["config"]["model"]["name"]) != config.model.name:
            models.check_installed(model, f"{key}: {source}")
        config = configuration.compose(leaves, methods.get)
        dataset = dataclasses.replace(dataset, classes=tuple(manifest["classes"]))
        path = path / checkpoint.WEIGHTS
    with torch.random.fork_rng(devices=[]):
        network = assemble(config, dataset)
    models.load_weights(network, path)
    network.to(device).requires_grad_(False).eval()
    return network, dataset.classes


def _find(source: str, key: str, config: Config) -> Path:
    """Returns the checkpoint folder or weights file named by the field `key`."""
    if key == "train.init" and models.is_pretrained(source):
        return models.pretrained(source).path
    candidates = runs.candidates(source, runs.out_folder(config))
    path = next((path for path in candidates if path.exists()), None)
    if path is None:
        raise RequestError(
            f"{key}: got {source!r}, expected a run under {config.out}, a trial SWEEP/NUMBER,"
            " a checkpoint folder or a weights file"
            + ", or torchvision:NAME or timm:NAME"
            * (key == "train.init")
        )
    if path.is_file() or (path / checkpoint.MANIFEST).exists():
        return path
    return used_weights(path, f"{key}: {source}")

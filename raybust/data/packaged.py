"""Datasets read and downloaded by torchvision: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, SVHN.

torchvision verifies checksums of CIFAR and SVHN files before opening them and of MNIST files when
downloading them; CIFAR files are pickles, so the check must precede reading.
"""

from __future__ import annotations

import contextlib
import http.client
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raybust.config.inputs import Data
from raybust.data.arrays import Parts, parts_of_arrays
from raybust.disk.lock import take
from raybust.errors import RequestError
from raybust.vision import torchvision

_TYPES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}
NAMES = tuple(_TYPES)


def packaged(config: Data) -> Parts:
    """Returns the official parts of the dataset `data.name` from the folder `data.root`.

    Raises:
        RequestError: the dataset is missing, damaged, or cannot be downloaded.
    """
    if config.download:
        with _download_lock(Path(config.root)):
            train, test = _open(config, train=True), _open(config, train=False)
    else:
        train, test = _open(config, train=True), _open(config, train=False)
    names = getattr(train, "classes", tuple("0123456789"))
    return parts_of_arrays(
        _arrays(train), _arrays(test), names, f"{config.name} in {config.root}: "
    )


def _open(config: Data, *, train: bool) -> Any:
    cls = getattr(torchvision().datasets, _TYPES[config.name])
    part = {"split": "train" if train else "test"} if config.name == "svhn" else {"train": train}
    try:
        return cls(config.root, download=config.download, **part)
    except (
        # Raised by torchvision for missing or damaged files, and by downloads.
        RuntimeError,
        ValueError,
        AssertionError,
        EOFError,
        OSError,
        http.client.HTTPException,
        tarfile.TarError,
        pickle.UnpicklingError,  # an old MNIST file with more than plain tensors
    ) as error:
        if config.download:
            text = " ".join(str(error).split()) or type(error).__name__
            raise RequestError(
                f"{config.name}: cannot be downloaded to '{config.root}': {text}; copy its files "
                "there manually, or pass data.root=FOLDER"
            ) from None
        raise RequestError(
            f"{config.name} is not in '{config.root}', or its files are damaged; pass "
            "data.download=true to download it, or data.root=FOLDER if it is elsewhere"
        ) from None


@contextlib.contextmanager
def _download_lock(root: Path) -> Iterator[None]:
    """Lets one process per machine download at a time; the others then find the files."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / ".raybust.lock").open("w")
    except OSError as error:
        raise RequestError(
            f"data.root: cannot write to '{root}': {error.strerror}; pass data.root=FOLDER"
        ) from None
    with file:
        take(file, wait=True)
        yield


def _arrays(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
    return np.asarray(dataset.data), np.asarray(labels)

"""Datasets that come as arrays: scikit-learn's digits and the user's own `npz`, and the checks that
every array passes before it becomes a `Split`. Stage `data` of the arrow.

Legend: N images of shape C x H x W, K classes.
"""

from __future__ import annotations

import importlib.util
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raybust.config.schema import Data
from raybust.data.splits import Part, Split, hold_out
from raybust.errors import RequestError

DIGITS_TEST = 0.2
"""Share of the digits that is the test set: our choice, as scikit-learn publishes no cut. 359 of
the 1,797 images, stratified, by a constant seed that no option reaches."""

_DIGITS = "datasets/data/digits.csv.gz"
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True, eq=False)
class Parts:
    """What a source hands over: the official parts, not yet cut.

    Attributes:
        classes: names of the K classes.
        train: the whole official training set.
        test: the official test set.
        validation: the source's own validation set, or None where it is to be cut from `train`.
    """

    classes: tuple[str, ...]
    train: Part
    test: Part
    validation: Part | None = None


def digits(config: Data) -> Parts:
    """Returns scikit-learn's 1,797 digits of 8 x 8 pixels with values 0 to 16, cut by
    `DIGITS_TEST`; `indices` are positions among all 1,797.

    The package's file, without its import, which costs every worker of a sweep over a second.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    rows = np.loadtxt(Path(package.origin).parent / _DIGITS, delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(rows[:, :-1]).view(-1, 1, 8, 8)
    labels = torch.from_numpy(rows[:, -1].astype(np.int64))
    whole = Split(images, labels, torch.arange(len(labels)), 16.0)
    train, test = hold_out(labels, DIGITS_TEST, "digits", "test")
    return Parts(tuple("0123456789"), whole.select(train), whole.select(test))


def npz(config: Data) -> Parts:
    """Returns the arrays x_train, y_train, x_test, y_test and, if there, class_names of the file
    `data.path`.

    Raises:
        RequestError: not an npz, or arrays that are not images and labels.
    """
    arrays = _read_npz(Path(str(config.path)))
    names = arrays.get("class_names")
    classes = None if names is None else _class_names(names, f"{config.path}: class_names")
    return parts_of_arrays(
        (arrays["x_train"], arrays["y_train"]),
        (arrays["x_test"], arrays["y_test"]),
        classes,
        f"{config.path}: ",
    )


def parts_of_arrays(
    train: tuple[Any, Any], test: tuple[Any, Any], classes: Sequence[str] | None, where: str
) -> Parts:
    """Returns checked parts.

    Args:
        train: images and labels; see `check_images` and `check_labels`.
        test: the same.
        classes: names of the classes; by default "0" to the largest training label.
        where: start of an error's text, for instance "cifar.npz: ".

    Raises:
        RequestError: the arrays are not images and labels of one dataset.
    """
    count = None if classes is None else len(classes)
    splits = []
    for name, (x, y) in {"train": train, "test": test}.items():
        images, scale = check_images(np.asarray(x), f"{where}x_{name}")
        labels = check_labels(np.asarray(y), len(images), count, f"{where}y_{name}")
        count = int(labels.max()) + 1 if count is None else count
        splits.append(Split(images, labels, torch.arange(len(labels)), scale))
    if splits[0].shape != splits[1].shape:
        raise RequestError(
            f"{where}x_train has images of (C, H, W) = {splits[0].shape}, x_test of "
            f"{splits[1].shape}; expected the same shape in both"
        )
    names = tuple(map(str, range(count or 0))) if classes is None else tuple(classes)
    return Parts(names, splits[0], splits[1])


def check_images(array: np.ndarray, where: str) -> tuple[Tensor, float]:
    """Returns images uint8 or float32 (N, C, H, W), and the value of a full pixel.

    Args:
        array: uint8, or floats in [0, 1]; (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3.
            Where both the second and the last extent may be channels, the last one is.
        where: what the array is, for the error's text.

    Raises:
        RequestError: it is none of these, or empty.
    """
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise RequestError(f"{where}: got {array.dtype}, expected uint8 or floats in [0, 1]")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in (1, 3):
        raise RequestError(
            f"{where}: got shape {array.shape}, expected (N, H, W), (N, H, W, C) or (N, C, H, W) "
            "with C 1 or 3"
        )
    if array.size == 0:
        raise RequestError(f"{where}: got shape {array.shape}, expected at least one image")
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array)), 255.0
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):
        raise RequestError(
            f"{where}: got floats from {low:g} to {high:g}, expected [0, 1]; scale them, or store "
            "uint8"
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)), 1.0


def check_labels(array: np.ndarray, images: int, classes: int | None, where: str) -> Tensor:
    """Returns labels int64 (N,).

    Args:
        array: integers (N,), in [0, K).
        images: N, the number of images.
        classes: K; the largest label + 1 where not given.
        where: what the array is, for the error's text.

    Raises:
        RequestError: another type, shape or range.
    """
    if array.dtype.kind not in "iu":
        raise RequestError(f"{where}: got {array.dtype}, expected integers from 0")
    if array.shape != (images,):
        raise RequestError(
            f"{where}: got shape {array.shape}, expected ({images},), one label per image"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or (classes is not None and high >= classes):
        allowed = "from 0" if classes is None else f"from 0 to {classes - 1}"
        raise RequestError(f"{where}: got labels from {low} to {high}, expected {allowed}")
    return torch.from_numpy(array.astype(np.int64))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    broken = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError
    except broken:
        raise RequestError(
            f"data.path: '{path}' is not an npz file; write one with numpy.savez"
        ) from None
    with archive:
        missing = [name for name in _ARRAYS if name not in archive]
        if missing:
            raise RequestError(
                f"{path}: lacks {', '.join(missing)}; expected {', '.join(_ARRAYS)}, got "
                f"{', '.join(archive.files) or 'nothing'}"
            )
        arrays = {}
        for name in (*_ARRAYS, *({"class_names"} & set(archive.files))):
            try:
                arrays[name] = archive[name]
            except broken as error:
                raise RequestError(
                    f"{path}: {name} cannot be read: {' '.join(str(error).split())}; expected "
                    "numbers or texts, stored without pickle"
                ) from None
    return arrays


def _class_names(array: np.ndarray, where: str) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise RequestError(
            f"{where}: got {array.dtype} of shape {array.shape}, expected texts of shape (K,)"
        )
    return tuple(str(name) for name in array.astype(np.str_))

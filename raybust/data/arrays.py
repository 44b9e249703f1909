"""Array datasets: scikit-learn's digits and the user's own `npz`, and the checks that every array
must pass before it becomes a `Split`.

Notation: N images of shape C x H x W, K classes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raybust.config.inputs import Data
from raybust.data.labels import read_labels, read_names
from raybust.data.splits import Part, Split, hold_out
from raybust.errors import RequestError

DIGITS_TEST = 0.2
"""Test fraction of the digits: our choice, as scikit-learn publishes no split. 359 of the 1,797
images, stratified, with a fixed seed that is not configurable."""

_DIGITS = "datasets/data/digits.csv.gz"
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_VALIDATION = ("val", "valid", "validation")
_DARK = 0.25
"""Datasets are reported as dark up to this fraction of the maximum pixel value (our choice)."""
_COMPARED = 400_000_000
"""Maximum bytes of images for comparing training and test set, which takes under a second."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A source's official parts, before splitting.

    Attributes:
        classes: names of the K classes.
        train: the complete official training set.
        test: the official test set.
        validation: the source's own validation set, or None to split it from `train`.
        layout: the detected layout, "" if implied by the name.
        notes: what was converted or left out, one line each.
    """

    classes: tuple[str, ...]
    train: Part
    test: Part
    validation: Part | None = None
    layout: str = ""
    notes: tuple[str, ...] = ()


def wrong_parts(parts: object) -> str | None:
    """Returns why an object is not valid `Parts`, as the end of an error message, or None.

    Args:
        parts: the result of another package's source.
    """
    if not isinstance(parts, Parts):
        return f"a {type(parts).__name__}, expected raybust.data.Parts"
    for name in ("train", "test", "validation"):
        part = getattr(parts, name)
        if part is None and name == "validation":
            continue
        if not isinstance(part, Part):
            return f"a {name} part of type {type(part).__name__}, expected raybust.data.Split"
        labels, count = part.labels, len(parts.classes)
        if labels.dtype != torch.int64 or labels.ndim != 1 or not len(labels):
            shape = tuple(labels.shape)
            return f"labels {labels.dtype} {shape} of the {name} part, expected int64 (N,), N > 0"
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= count:
            return (
                f"labels from {low} to {high} in the {name} part, expected 0 to {count - 1}, the"
                f" {count} classes"
            )
    return None


def digits(config: Data) -> Parts:
    """Returns scikit-learn's 1,797 digits of 8 x 8 pixels with values 0 to 16, split by
    `DIGITS_TEST`; `indices` are positions among all 1,797.

    Reads the package's file without importing it, which would cost each sweep worker over a second.
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
    """Returns the arrays x_train, y_train, x_test, y_test of the file `data.path` and, if present,
    a validation part (x_val, x_valid or x_validation, with its y) and class_names.

    Raises:
        RequestError: the file is not an npz, or its arrays are not images and labels.
    """
    arrays, others = _read_npz(Path(str(config.path)).expanduser())
    names = arrays.get("class_names")
    classes = None if names is None else read_names(names, f"{config.path}: class_names")
    own = {name: (arrays[f"x_{name}"], arrays[f"y_{name}"])
           for name in _VALIDATION if f"x_{name}" in arrays}  # fmt: skip
    found = parts_of_arrays(
        (arrays["x_train"], arrays["y_train"]),
        (arrays["x_test"], arrays["y_test"]),
        classes,
        f"{config.path}: ",
        own,
    )
    left = (f"left out: the arrays {', '.join(others)}",) if others else ()
    shared = _shared_images(found)
    return dataclasses.replace(found, layout=str(config.path), notes=(*found.notes, *shared, *left))


def parts_of_arrays(
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    classes: Sequence[str] | None,
    where: str,
    own: Mapping[str, tuple[Any, Any]] | None = None,
) -> Parts:
    """Validates arrays and returns them as parts.

    Args:
        train: images and labels; see `check_images` and `read_labels`.
        test: the same.
        classes: names of the classes; by default "0" to the largest training label.
        where: prefix of error messages, for instance "cifar.npz: ".
        own: the dataset's own validation part by its name, if any.

    Raises:
        RequestError: the arrays are not images and labels of one dataset.
    """
    given = {"train": train, "test": test, **(own or {})}
    checked = {}
    for name, (x, y) in given.items():
        images, scale = check_images(np.asarray(x), f"{where}x_{name}")
        if np.asarray(y).shape[:1] != (len(images),):
            raise RequestError(
                f"{where}y_{name}: got shape {np.asarray(y).shape}, expected ({len(images)},), one"
                " label per image"
            )
        checked[name] = images, scale
    others = {name: np.asarray(y) for name, (_, y) in given.items() if name != "train"}
    labels, names, notes = read_labels(np.asarray(train[1]), others, classes, where)
    splits: dict[str, Split] = {}
    for name, (images, scale) in checked.items():
        splits[name] = Split(images, labels[name], torch.arange(len(images)), scale)
        if splits[name].shape != splits["train"].shape:
            raise RequestError(
                f"{where}x_train has images of (C, H, W) = {splits['train'].shape}, x_{name} of "
                f"{splits[name].shape}; expected the same shape in both"
            )
        notes += dark(splits[name], f"x_{name}")
    validation = next((splits[name] for name in own or ()), None)
    return Parts(names, splits["train"], splits["test"], validation, notes=tuple(notes))


def dark(split: Split, name: str) -> list[str]:
    """Returns a note if the largest value is far below the maximum pixel value."""
    largest = float(split.images.max())
    if largest > _DARK * split.scale:
        return []
    return [
        f"{name}: the largest value is {largest:g} of {split.scale:g}, nearly black; if that is"
        " full intensity, scale the images to [0, 1] as floats"
    ]


def _shared_images(parts: Parts) -> list[str]:
    """Returns a note for each two parts that have images in common, byte for byte."""
    every = {"test": parts.test, "validation": parts.validation, "training": parts.train}
    splits = {name: part for name, part in every.items() if isinstance(part, Split)}
    if sum(part.images.nbytes for part in splits.values()) > _COMPARED:
        return []
    notes = []
    for (name, one), (where, other) in itertools.combinations(splits.items(), 2):
        if one.scale != other.scale:
            continue
        known = {image.tobytes() for image in other.images.numpy()}
        count = sum(image.tobytes() in known for image in one.images.numpy())
        if count:
            also = f"the {where} {'set' if where == 'training' else 'part'}"
            notes.append(f"{count} of {len(one)} {name} images are also in {also}")
    return notes


def check_images(array: np.ndarray, where: str) -> tuple[Tensor, float]:
    """Returns images uint8 or float32 (N, C, H, W) and the maximum pixel value.

    Args:
        array: uint8, bool, or floats in [0, 1]; (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1
            or 3. If both the second and the last axis could be channels, the last one is used.
        where: name of the array, for error messages.

    Raises:
        RequestError: the array is none of these, or empty.
    """
    if array.dtype == np.bool_:
        array = array.astype(np.float32)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise RequestError(
            f"{where}: got {array.dtype}, expected uint8 or floats in [0, 1]{_range_of(array)}"
        )
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
            f"{where}: got floats from {low:g} to {high:.9g}, expected [0, 1]; scale them, or "
            "store uint8"
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)), 1.0


def _range_of(array: np.ndarray) -> str:
    """Returns the end of a message that explains how to convert integers."""
    if array.dtype.kind not in "iu" or not array.size:
        return ""
    low, high = int(array.min()), int(array.max())
    if low >= 0 and high <= 255:
        return "; values are within 0 to 255: use astype('uint8')"
    return f"; values range from {low} to {high}: divide by the maximum pixel value"


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the arrays used, and the names of the others."""
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
                f"{path}: lacks {', '.join(missing)}; it holds"
                f" {', '.join(archive.files) or 'nothing'}; write the missing ones with numpy.savez"
            )
        own = [name for name in _VALIDATION if f"x_{name}" in archive]
        if len(own) > 1:
            raise RequestError(
                f"{path}: has the validation parts {' and '.join(f'x_{name}' for name in own)}; "
                "keep one of them"
            )
        wanted = [*_ARRAYS, *(f"{axis}_{name}" for name in own for axis in "xy")]
        if missing := [name for name in wanted if name not in archive]:
            raise RequestError(f"{path}: has x_{own[0]}, but lacks {', '.join(missing)}")
        wanted += {"class_names"} & set(archive.files)
        arrays = {}
        for name in wanted:
            try:
                arrays[name] = archive[name]
            except broken as error:
                raise RequestError(
                    f"{path}: {name} cannot be read: {' '.join(str(error).split())}; expected "
                    "numbers or strings, stored without pickle"
                ) from None
        return arrays, [name for name in archive.files if name not in wanted]

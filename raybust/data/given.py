"""Data that a program holds: arrays, tensors or a torch dataset, as a `Dataset`.

Such a dataset is measured, not trained on, so its three parts are the same examples; images without
labels are predicted, not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from raybust.data.arrays import check_images, dark
from raybust.data.decode import rgb
from raybust.data.labels import class_indices
from raybust.data.splits import Dataset, Split
from raybust.errors import RequestError

_ARRAYS = ("images", "x", "x_test")
NAME = "given"
"""`Dataset.name` of data that a program passes."""

UNLABELED = -2
"""Label of an image without one; -1 is an abstention in certification logs."""


def dataset_of(data: Any, classes_for: Callable[[Tensor], Sequence[str]]) -> Dataset:
    """Returns data in memory as a dataset whose parts are all the same.

    Args:
        data: (images, labels), or a map-style torch dataset of (image, label) with images of one
            size. Images are uint8 or floats in [0, 1], as arrays, tensors or PIL images: see
            `check_images` for their shapes. Labels are class indices, class names, or one-hot.
        classes_for: float images (1, C, H, W) to the names of the network's K classes.

    Raises:
        RequestError: it is neither, or its arrays are not images and labels.
    """
    if isinstance(data, (np.ndarray, Tensor)):
        raise RequestError("data: got an array without labels, expected (images, labels)")
    images, labels = data if _is_pair(data) else _collected(data)
    pixels, scale = check_images(_array(images), "images")
    classes = classes_for(pixels[:1].to(torch.float32) / scale)
    part = Split(pixels, _labels(labels, len(pixels), classes), torch.arange(len(pixels)), scale)
    found, dark_note = empty(NAME, part.shape, classes, part), dark(part, "images")
    return replace(found, notes=("", *dark_note)) if dark_note else found


def images_of(images: Any, shape: tuple[int, int, int] | None = None) -> Split:
    """Returns images without labels as a part of a dataset.

    Args:
        images: as in `dataset_of`, or one image.
        shape: (C, H, W) of an image, if known: then one image of that shape is recognized, too.

    Raises:
        RequestError: they are not images.
    """
    array = _array(images)
    if array.ndim == 2 or (shape and array.shape in (shape, (*shape[1:], shape[0]))):
        array = array[None]
    pixels, scale = check_images(array, "images")
    count = len(pixels)
    return Split(pixels, torch.full((count,), UNLABELED), torch.arange(count), scale)


def read_array(path: Path) -> Split:
    """Returns the images of an npz file without their labels: its only array, or `images`, `x`, or
    `x_test`.

    Raises:
        RequestError: there is no such file, no such array, or it holds no images.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = [name for name in _ARRAYS if name in archive.files] or archive.files
            if len(names) != 1 and names[0] not in _ARRAYS:
                raise RequestError(
                    f"{path}: has the arrays {', '.join(names)}; name the one of the images"
                    f" {' or '.join(_ARRAYS)}"
                )
            array = archive[names[0]]
    except FileNotFoundError:
        raise RequestError(f"{path}: there is no such file") from None
    except (ValueError, OSError, EOFError, KeyError, IndexError, AttributeError, BadZipFile) as e:
        if isinstance(e, RequestError):
            raise
        raise RequestError(f"{path}: is not an npz file; write one with numpy.savez") from None
    return images_of(array)


def empty(
    name: str,
    shape: tuple[int, int, int],
    classes: Sequence[str],
    part: Split | None = None,
) -> Dataset:
    """Returns a dataset without images, or with one part used three times.

    Its normalization is the identity: a network's own comes with its weights.

    Args:
        name: of the dataset.
        shape: (C, H, W) of an image.
        classes: names of the classes.
        part: all three parts.
    """
    if part is None:
        nothing = torch.empty(0, dtype=torch.int64)
        part = Split(torch.empty(0, *shape), nothing, nothing, 1.0)
    zeros, ones = (0.0,) * shape[0], (1.0,) * shape[0]
    return Dataset(name, tuple(classes), shape, zeros, ones, "none", part, part, part)


def _is_pair(data: Any) -> bool:
    """Returns whether data are (images, labels), or an example (image, label); a list of two pairs
    is a dataset of two examples."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return False
    return not all(
        isinstance(one, (tuple, list)) and len(one) == 2 and np.ndim(one[1]) == 0 < _depth(one[0])
        for one in data
    )


def _depth(image: Any) -> int:
    return 2 if isinstance(image, Image.Image) else np.ndim(image)


def _collected(data: Any) -> tuple[Any, Any]:
    """Returns all images and labels of a torch dataset."""
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise RequestError(
            f"data: got a {type(data).__name__}, expected (images, labels), a torch dataset of"
            " (image, label), or the name of a dataset of raybust"
        )
    images, labels = [], []
    for position in range(len(data)):
        example = data[position]
        if not _is_pair(example):
            raise RequestError(
                f"data: example {position} is a {type(example).__name__}, expected (image, label)"
            )
        images.append(_array(example[0]))
        labels.append(_array(example[1]))
    if len({label.shape for label in labels}) != 1:
        raise RequestError("data: labels have several shapes, expected one index or name each")
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise RequestError(
            f"data: got images of {len(shapes)} shapes, expected one; resize them in the dataset"
        )
    return np.stack(images), np.stack(labels)


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Image.Image):
        upright = ImageOps.exif_transpose(values)
        return np.asarray(upright if upright.mode in ("L", "RGB") else rgb(upright))
    if isinstance(values, (list, tuple)) and any(isinstance(one, Image.Image) for one in values):
        arrays = [_array(one) for one in values]
        shapes = {array.shape for array in arrays}
        if len(shapes) != 1:
            raise RequestError(
                f"images: got PIL images of {len(shapes)} sizes or modes, expected one"
            )
        return np.stack(arrays)
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    return np.asarray(values)


def _labels(labels: Any, count: int, classes: Sequence[str]) -> Tensor:
    given = _array(labels)
    if given.shape[:1] != (count,):
        raise RequestError(
            f"labels: got shape {given.shape}, expected ({count},), one label per image"
        )
    return class_indices(given, classes, "labels")

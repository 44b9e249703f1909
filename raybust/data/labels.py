"""Labels of arrays: read where their meaning is certain, refused where it is not.

Nothing whose size depends on the largest label is allocated until the labels are known to be class
indices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raybust.errors import RequestError

_SHOWN = 5


def read_labels(
    train: np.ndarray,
    others: dict[str, np.ndarray],
    classes: Sequence[str] | None,
    where: str,
    array: str = "y_",
) -> tuple[dict[str, Tensor], tuple[str, ...], list[str]]:
    """Returns the labels of each part as int64 (N,), the names of the classes, and notes.

    Integers from 0 are class indices. Also read, and noted: whole numbers as floats or texts,
    columns (N, 1), one-hot rows (of as many columns in every part), other texts (sorted if no
    class names are given).

    Args:
        train: labels of the training set.
        others: labels of the other parts, by the end of their name ("test").
        classes: names of the classes; "0" to the largest training label where not given.
        where: start of an error's text, for instance "cifar.npz: ".
        array: start of the name of a part's labels.

    Raises:
        RequestError: labels that are no class indices, or are of no class that training has.
    """
    notes: list[str] = []
    named = where + array
    given = {"train": train, **others}
    columns = {name: one.shape[1] for name, one in given.items() if _is_wide(one)}
    if "train" in columns and classes is None:
        classes = [str(number) for number in range(columns["train"])]
    parts = {name: _flat(one, f"{named}{name}", notes) for name, one in given.items()}
    if classes is None and all(_numerals(part) for part in parts.values()):
        notes.append("labels are numbers as texts: read as integers")
        parts = {name: part.astype(np.int64) for name, part in parts.items()}
    if parts["train"].dtype.kind in "US":
        order = "the order of class_names" if classes else "sorted order"
        texts = classes or sorted({str(text) for text in np.unique(parts["train"])})
        parts = {name: _numbers(part, texts, f"{named}{name}") for name, part in parts.items()}
        classes = texts
        notes.append(f"labels are texts: {len(texts)} classes in {order}")
    count = _classes(parts["train"], classes, f"{named}train", notes)
    for name, width in columns.items():
        _check_columns(width, count, f"{named}{name}")
    found = {}
    for name, part in parts.items():
        if part.dtype.kind not in "iu":
            raise RequestError(f"{named}{name}: got {part.dtype}, expected integers from 0")
        low, high = int(part.min()), int(part.max())
        if low < 0 or high >= count:
            raise RequestError(
                f"{named}{name}: got labels from {low} to {high}, expected from 0 to"
                f" {count - 1}{_advice(low, high, count)}"
            )
        found[name] = torch.from_numpy(part.astype(np.int64))
    return found, tuple(classes or map(str, range(count))), notes


def class_indices(labels: np.ndarray, classes: Sequence[str], where: str) -> Tensor:
    """Returns labels of known classes as int64 (N,).

    Args:
        labels: class indices, names of classes, or one-hot rows; see `read_labels`.
        classes: names of the classes.
        where: start of an error's text.

    Raises:
        RequestError: a label is of no class.
    """
    if _is_wide(labels):
        _check_columns(labels.shape[1], len(classes), where)
    found = _flat(labels, where, [])
    if found.dtype.kind in "US":
        found = _numbers(found, classes, where)
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= len(classes):
        raise RequestError(
            f"{where}: got labels from {low} to {high}, expected from 0 to {len(classes) - 1}"
        )
    return torch.from_numpy(found.astype(np.int64))


def _flat(array: np.ndarray, where: str, notes: list[str]) -> np.ndarray:
    """Returns labels as a vector, of integers where that is certain."""
    if array.ndim == 2 and array.shape[1] == 1:
        notes.append(
            f"{_short(where)} is a column of shape {array.shape}: read as {array.shape[:1]}"
        )
        array = array[:, 0]
    if array.ndim == 2 and array.dtype.kind in "iufb" and _one_hot(array):
        notes.append(f"{_short(where)} is one-hot of shape {array.shape}: the class is its column")
        array = array.argmax(1)
    if array.ndim != 1 or not len(array):
        raise RequestError(f"{where}: got shape {array.shape}, expected (N,), one label per image")
    if array.dtype.kind == "f" and _whole(array):
        notes.append(f"{_short(where)} holds whole numbers as {array.dtype}: read as integers")
        array = array.astype(np.int64)
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    if array.dtype.kind == "S":
        array = _texts(array, where)
    if array.dtype.kind not in "iuU":
        raise RequestError(f"{where}: got {array.dtype}, expected integers from 0")
    return array


def _is_wide(array: np.ndarray) -> bool:
    return bool(array.ndim == 2 and array.shape[1] > 1)


def _check_columns(width: int, count: int, where: str) -> None:
    """Refuses one-hot labels with another number of columns than there are classes: which column is
    which class is then unknown."""
    if width != count:
        raise RequestError(
            f"{where}: got one-hot labels of {width} columns for {count} classes; give every class"
            " a column in every part"
        )


def _numerals(part: np.ndarray) -> bool:
    """Returns whether labels are texts of whole numbers, none with a leading zero."""
    if part.dtype.kind != "U":
        return False
    texts = map(str, np.unique(part))
    return all(text.isascii() and text.isdigit() and str(int(text)) == text for text in texts)


def _whole(array: np.ndarray) -> bool:
    finite = bool(np.isfinite(array).all() and np.abs(array).max() < 2**53)
    return finite and bool((array == np.rint(array)).all())


def _one_hot(array: np.ndarray) -> bool:
    return bool(np.isin(array, (0, 1)).all() and (array.sum(1) == 1).all())


def _numbers(part: np.ndarray, texts: Sequence[str], where: str) -> np.ndarray:
    numbers = {text: number for number, text in enumerate(texts)}
    strange = sorted({str(text) for text in np.unique(part)} - set(numbers))
    if strange:
        raise RequestError(
            f"{where}: got the class '{strange[0]}', which the classes lack; expected some of "
            f"{', '.join(list(texts)[:_SHOWN])}"
        )
    return np.array([numbers[str(text)] for text in part], dtype=np.int64)


def _classes(labels: np.ndarray, names: Sequence[str] | None, where: str, notes: list[str]) -> int:
    """Returns the number of classes; refuses labels that are no class indices."""
    if labels.dtype.kind not in "iu":
        raise RequestError(f"{where}: got {labels.dtype}, expected integers from 0")
    there = np.unique(labels)
    low, high = int(there[0]), int(there[-1])
    count = len(names) if names is not None else high + 1
    if low < 0 or high >= count:
        raise RequestError(
            f"{where}: got labels from {low} to {high}, expected from 0"
            f"{'' if names is None else f' to {count - 1}'}{_advice(low, high, count)}"
        )
    if names is None and low > 0:
        raise RequestError(
            f"{where}: got labels from {low} to {high}, of which {len(there)} occur; expected"
            f" class indices from 0{_advice(low, high, len(there))}"
        )
    absent = count - len(there)
    if names is None and absent > len(there):
        raise RequestError(
            f"{where}: got labels from {low} to {high}, of which {len(there)} occur; expected"
            " class indices from 0 to the number of classes; number the classes in order, and"
            " leave out images without a label"
        )
    if absent:
        first = [str(n) for n in range(count) if n not in set(there.tolist())][:_SHOWN]
        notes.append(
            f"{absent} of {count} classes have no training image:"
            f" {', '.join(names[int(n)] if names else n for n in first)}"
        )
    return count


def without_images(trained: Tensor, labels: Tensor, classes: Sequence[str], part: str) -> list[str]:
    """Returns a note on the classes that have training images but none in another part, whose
    labels may be shifted.

    Args:
        trained: int64 (N,), labels of the training part.
        labels: int64 (M,), those of the other part.
        classes: names of the classes.
        part: name of the other part.
    """
    there, known = (one.bincount(minlength=len(classes)) > 0 for one in (labels, trained))
    absent = [classes[at] for at in (known & ~there).nonzero().flatten().tolist()]
    if not absent:
        return []
    first = ", ".join(absent[:_SHOWN])
    return [f"{len(absent)} of {len(classes)} classes have no {part} image: {first}"]


def _advice(low: int, high: int, count: int) -> str:
    """Returns what is probably wrong with a range of labels, as the end of a message."""
    if low < 0:
        return "; leave out images without a label (negative labels)"
    if low == 1 and high == count:
        return "; they begin with 1: subtract 1"
    if high == 255 and count < 255:
        return "; leave out images without a label (255)"
    return ""


def read_names(array: np.ndarray, where: str) -> tuple[str, ...]:
    """Returns class names from an array of texts, or of bytes in UTF-8.

    Raises:
        RequestError: they are no texts, or not different from each other.
    """
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise RequestError(
            f"{where}: got {array.dtype} of shape {array.shape}, expected texts of shape (K,)"
        )
    names = tuple(map(str, _texts(array, where) if array.dtype.kind == "S" else array))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"{where}: got '{twice}' twice, expected a name for each class")
    return names


def _texts(array: np.ndarray, where: str) -> np.ndarray:
    try:
        return np.array([value.decode("utf-8") for value in array.tolist()])
    except UnicodeDecodeError as error:
        raise RequestError(f"{where}: {error.object!r} is not UTF-8; store texts") from None


def _short(where: str) -> str:
    return where.rpartition(": ")[2]

"""Which files of a location are which part of a dataset, and what a dataset in shards becomes.

Parts are found by the settings `data.train`, `data.validation` and `data.test`, else by the names
of the files. Without test files, `data.test=0.2` cuts a fixed share.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raybust.config.inputs import Data
from raybust.data.arrays import Parts
from raybust.data.columns import PARQUET, read_files
from raybust.data.decode import Decoding, decoding_of, enlarged, survey
from raybust.data.labels import read_labels
from raybust.data.packed import Labeled, PackedSplit
from raybust.data.places import check_location, find, joined
from raybust.data.splits import hold_out
from raybust.data.stores import File, remote
from raybust.data.tarred import TAR, read_shards
from raybust.errors import RequestError

ENDINGS = {"parquet": PARQUET, "webdataset": TAR}
"""Datasets in shards, and the endings of their files."""
_LOOKED = 256
"""Number of images per part whose headers are inspected (our choice)."""
PARTS = ("train", "validation", "test")
_WORDS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation",
    "validation": "validation", "test": "test", "testing": "test",
}  # fmt: skip
_WORD = re.compile(r"(?<![a-z])(" + "|".join(_WORDS) + r")(?![a-z])")


def kind_of(location: str) -> str:
    """Returns the `data.name` that reads a location: by its ending, or by the files in a folder."""
    path = Path(location).expanduser()
    files = [location]
    if path.is_dir():
        files = [file.name for depth in ("*", "*/*") for file in path.glob(depth)]
    for name, endings in ENDINGS.items():
        if any(file.lower().endswith(endings) for file in files):
            return name
    return "image_folder" if path.is_dir() else "npz"


def check(config: Data, *, local: bool) -> None:
    """Checks locations and parts of a dataset in shards; of files in a store, this takes requests.

    Args:
        config: the section `data`.
        local: whether the data are read on this machine.

    Raises:
        RequestError: as `check_parts`, or a location holds a credential.
    """
    for key in ("path", *PARTS):
        if isinstance(value := getattr(config, key), str):
            check_location(value, f"data.{key}")
    if local:
        check_parts(config, ENDINGS[config.name])


def check_unused(config: Data) -> None:
    """Refuses the settings of datasets in shards for another one.

    Raises:
        RequestError: a part is a pattern, or a share is cut for testing.
    """
    for key in PARTS:
        value = getattr(config, key)
        if isinstance(value, str) or (key == "test" and value is not None):
            raise RequestError(
                f"data.{key}: got {value!r}, but dataset {config.name} has its own parts; only"
                f" {' and '.join(ENDINGS)} take this"
                f"{', expected a number > 0, < 1' if key == 'validation' else ''}"
            )


def parquet(config: Data) -> Parts:
    """Returns the parts of parquet files.

    Raises:
        RequestError: as `check_parts` and `assemble`, or a file has another form.
    """
    return _sharded(config, lambda files: read_files(files, config.columns))


def webdataset(config: Data) -> Parts:
    """Returns the parts of tar shards.

    Raises:
        RequestError: as `check_parts` and `assemble`, or a file has another form.
    """
    return _sharded(config, read_shards)


def _sharded(config: Data, read: Callable[[Sequence[File]], Labeled]) -> Parts:
    found = check_parts(config, ENDINGS[config.name])
    parts = assemble(config, found, read, decoding_of(config))
    train, test = parts.train, parts.test
    assert isinstance(train, PackedSplit)
    assert isinstance(test, PackedSplit)
    looked = [
        (Path(part.named(at)), BytesIO(stored))
        for part in (train, test) for at in part.sample(_LOOKED)[:_LOOKED]
        if isinstance(stored := part.stored(at), bytes)
    ]  # fmt: skip
    traits = [f"of the files looked at, {text}" for text in survey(looked, train.decoding)]
    large = enlarged(looked, config.image_size)
    return replace(parts, notes=(*large, *traits, *sorted_notes(train), *parts.notes))


def files_of(config: Data, endings: Sequence[str]) -> dict[str, list[File]]:
    """Returns the files of each part, by its name; there is a training part.

    Args:
        config: the section `data`.
        endings: of the files.

    Raises:
        RequestError: there are no files, or it is unclear which are for training.
    """
    patterns = {name: value for name in PARTS if isinstance(value := getattr(config, name), str)}
    if patterns:
        if "train" not in patterns:
            raise RequestError(
                f"data.train: got null with data.{next(iter(patterns))} set, expected the pattern"
                " of the training files"
            )
        found = {
            name: find(joined(config.path, pattern), endings, f"data.{name}")
            for name, pattern in patterns.items()
        }
        _check_disjoint(found)
        return found
    files = find(str(config.path), endings, "data.path")
    named = [(_part_of(file.path, str(config.path)), file) for file in files]
    if all(name is None for name, _ in named):
        return {"train": files}
    for name, file in named:
        if name is None:
            raise RequestError(
                f"data.path: '{file.path}' has no part in its name, as others have; expected train,"
                " validation or test, or pass data.train=PATTERN and data.test=PATTERN"
            )
    parts = {part: [file for name, file in named if name == part] for part in PARTS}
    if not parts["train"]:
        raise RequestError(
            f"data.path: '{config.path}' has files of {' and '.join(p for p in PARTS if parts[p])},"
            " none for training; pass data.train=PATTERN"
        )
    return {part: files for part, files in parts.items() if files}


def _part_of(path: str, root: str) -> str | None:
    """Returns the part that a file's name states, or the folder next above it that states one."""
    folder = root if remote(root) else os.path.abspath(os.path.expanduser(root))
    inside = path.startswith(folder.rstrip("/") + "/")
    below = path.removeprefix(folder) if inside else path.rpartition("/")[2]
    for name in reversed(below.lower().split("/")):
        found = _WORD.search(name)
        if found:
            return _WORDS[found[1]]
    return None


def _check_disjoint(found: dict[str, list[File]]) -> None:
    owners: dict[str, str] = {}
    for name, files in found.items():
        for file in files:
            other = owners.setdefault(file.path, name)
            if other != name:
                raise RequestError(
                    f"data.{name}: '{file.path}' is also among the files of data.{other}"
                )


def check_parts(config: Data, endings: Sequence[str]) -> dict[str, list[File]]:
    """Returns `files_of`, after a check that there is something to test on.

    Raises:
        RequestError: as `files_of`; or no test set and no share to cut for it, or both.
    """
    found = files_of(config, endings)
    rest = [name for name in found if name != "train"]
    if isinstance(config.test, float) and rest:
        raise RequestError(
            f"data.test: got {config.test:g}, but there are {rest[-1]} files, '"
            f"{found[rest[-1]][0].path}' for one; expected null or a pattern"
        )
    if not rest and not isinstance(config.test, float):
        raise RequestError(
            f"data.test: there are {len(found['train'])} files for training and none for testing;"
            " pass data.test=PATTERN, or data.test=0.2 to cut a fixed fifth"
        )
    return found


def assemble(
    config: Data,
    found: dict[str, list[File]],
    read: Callable[[Sequence[File]], Labeled],
    how: Decoding,
) -> Parts:
    """Returns the parts of a dataset in shards.

    Where there is no test part, the official validation part is the test set; where there are both,
    it is the validation set. A part other than `train` without labels is left out.

    Args:
        config: the section `data`.
        found: the files of each part.
        read: what some files hold.
        how: decodes the images.

    Raises:
        RequestError: an image without a label, or labels that are no classes.
    """
    labeled, notes = _labeled(found, read)
    numbers, classes, told = _numbers(labeled, config)
    parts = {
        name: PackedSplit(
            part.shelf, torch.arange(len(part.labels)), numbers[name],
            torch.arange(len(part.labels)), config.image_size, how,
        )
        for name, part in labeled.items()
    }  # fmt: skip
    counts = " and ".join(f"{len(files)} {name}" for name, files in found.items())
    layout = f"{counts} file{'s' * (sum(map(len, found.values())) != 1)}"
    layout += f" of {config.path}" if config.path else ""
    train, own = parts["train"], None
    if "test" in parts:
        test, own = parts["test"], parts.get("validation")
    elif "validation" in parts:
        test = parts["validation"]
        notes.append("tested on the validation files")
    else:
        train, test = _cut_test(train, config)
        notes.append(f"the test set is a fixed cut of {config.test} of the training files")
    return Parts(classes, train, test, own, layout, (*told, *notes))


def _labeled(
    found: dict[str, list[File]], read: Callable[[Sequence[File]], Labeled]
) -> tuple[dict[str, Labeled], list[str]]:
    """Returns the parts that have labels, and notes on what was left out."""
    labeled, notes = dict[str, Labeled](), list[str]()
    for name, files in found.items():
        part = read(files)
        without = [at for at, label in enumerate(part.labels) if _unlabeled(label)]
        if len(without) == len(part.labels) and name != "train":
            notes.append(f"left out: the {name} files, whose images have no labels")
            continue
        if without:
            raise RequestError(
                f"data.{name}: {len(without)} of {len(part.labels)} images have no label, the first"
                f" is {part.shelf.named(without[0])}"
            )
        labeled[name] = part
        notes += [f"{name}: {note}" for note in part.notes]
    return labeled, notes


def _cut_test(train: PackedSplit, config: Data) -> tuple[PackedSplit, PackedSplit]:
    """Returns the training and the test part of the training files: a stratified cut that no seed
    of the configuration moves."""
    if not isinstance(config.test, float):
        raise RequestError(
            "data.test: no part but the training part has labels; pass data.test=0.2 to cut a"
            " fixed fifth of it"
        )
    stays, held = hold_out(train.labels, config.test, "shards", "test")
    if not len(held):
        raise RequestError(
            f"data.test: got {config.test:g} of {len(train)} images, which holds out none; pass a"
            " larger share"
        )
    return train.select(stays), train.select(held)


def _unlabeled(label: Any) -> bool:
    return label is None or (isinstance(label, int) and label == -1)


def _numbers(
    labeled: dict[str, Labeled], config: Data
) -> tuple[dict[str, Tensor], tuple[str, ...], list[str]]:
    """Returns the labels of each part as class indices, the classes, and notes."""
    given = {name: np.asarray(part.labels) for name, part in labeled.items()}
    classes = labeled["train"].classes
    for name, part in labeled.items():
        if part.classes != classes:
            raise RequestError(
                f"data.{name}: its files name other classes than those of the training part"
            )
        kinds = {type(label) for label in part.labels}
        if len(kinds) > 1:
            shown = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise RequestError(f"data.{name}: has labels of several types: {shown}")
    others = {name: part for name, part in given.items() if name != "train"}
    return read_labels(given["train"], others, classes, f"{config.name}: ", "labels of ")


def sorted_notes(part: PackedSplit) -> list[str]:
    """Returns a note if blocks hold so few classes that windows shuffle badly: less than half as
    many as images drawn evenly would have (our choice)."""
    if part.blocks is None:
        return []
    blocks = part.blocks.unique(return_inverse=True)[1]
    kinds = int(part.labels.max()) + 1
    present = len((blocks * kinds + part.labels).unique()) / len(blocks.unique())
    rows = len(part) / len(blocks.unique())
    expected = kinds * (1 - (1 - 1 / kinds) ** rows)
    if 2 * present >= expected:
        return []
    return [
        f"a row group holds {present:.1f} classes, {expected:.1f} if they were mixed: batches come"
        f" from {part.window} row groups at a time, so write the files in random order"
    ]

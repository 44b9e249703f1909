"""Listings of folders of image files: ImageNet-like class folders, Tiny ImageNet and Places365.

The layout is detected from the folder's contents. Every image is a file, which a loader process
decodes when a batch needs it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raybust.config.inputs import Data
from raybust.data import kept
from raybust.data.arrays import Parts
from raybust.data.decode import decoding_of, enlarged, survey
from raybust.data.layout import PLACES, TINY, VALIDATION, parts_of, training_folders
from raybust.data.listing import (
    LeftOut,
    class_images,
    composed,
    hidden,
    shared_images,
    shown,
)
from raybust.data.streamed import StreamedSplit
from raybust.errors import RequestError

_LOOKED = 256
"""Number of files per part whose headers are inspected (our choice)."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The N images of a part, in its official order.

    Attributes:
        files: paths below the dataset's folder.
        labels: int64 (N,).
    """

    files: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Attributes:
        classes: names of the classes.
        train: the training part.
        test: the test set; the official validation part where there is no other.
        validation: the validation part, where there is a test part besides.
        layout: what was recognized.
        notes: what was left out, a phrase each.
        listed: folders and files on which the listing depends.
    """

    classes: tuple[str, ...]
    train: Listing
    test: Listing
    validation: Listing | None
    layout: str
    notes: tuple[str, ...]
    listed: tuple[str, ...]


def scan(root: Path) -> Folder:
    """Returns the listings of a folder of images.

    A test part without labels is left aside. Where there is no other, the official validation part
    is the test set; where there are both, it is the validation set.

    Raises:
        RequestError: no known layout, a part without images, a class that the training part lacks,
            names that are not UTF-8.
    """
    if (root / PLACES).is_file():
        return _scan_places(root)
    left = LeftOut()
    folders = training_folders(root, left)
    classes = tuple(folders)
    train = _class_files(root, folders, classes, left)
    if (root / TINY).is_file():
        rows = _rows(root / TINY, separator="\t")
        test = _labeled(root / TINY, rows, "val/images", classes)
        left.listed.append(str(root / TINY))
        return _folder(root, (classes, train, test, None), "Tiny ImageNet, tested on its val", left)
    own, test_folders = parts_of(root, classes, left)
    listings = {
        name: _class_files(root, folders, classes, left)
        for name, folders in {**own, **test_folders}.items()
    }
    _note_unused(root, listings, left)
    parts = {"train": train, **listings}
    for one, other in itertools.combinations(parts, 2):
        ours, theirs = ([f"{root}/{file}" for file in parts[name].files] for name in (one, other))
        if same := shared_images(ours, theirs, left.links):
            left.parts.append(f"warning: {same} images are in '{one}' and in '{other}'")
    for name, listing in listings.items():
        lacking = sorted(set(range(len(classes))) - set(listing.labels.unique().tolist()))
        if lacking:
            names = ", ".join(classes[label] for label in lacking[:5])
            what = f"{len(lacking)} classes ({names}{', ...' * (len(lacking) > 5)})"
            what = f"the class {names}" if len(lacking) == 1 else what
            left.parts.append(f"'{name}' has no images of {what}")
    validation = listings[next(iter(own))] if own and test_folders else None
    test = listings[next(iter(test_folders or own))]
    layout = f"class folders in train and {' and '.join(listings)}"
    return _folder(root, (classes, train, test, validation), layout, left)


def _folder(
    root: Path,
    parts: tuple[tuple[str, ...], Listing, Listing, Listing | None],
    layout: str,
    left: LeftOut,
) -> Folder:
    """Returns what a folder holds: classes, training, test and validation part."""
    return Folder(*parts, layout, tuple(left.notes()), (str(root), *left.listed))


def _note_unused(root: Path, used: Iterable[str], left: LeftOut) -> None:
    """Notes the folders of a data set that are no part of it."""
    known = {"train", "test", *VALIDATION, *used}
    unused = [
        entry.name
        for entry in sorted(root.iterdir())
        if entry.is_dir() and entry.name not in known and not hidden(entry.name)
    ]
    if unused:
        names = ", ".join(f"'{shown(name)}'" for name in unused[:5])
        left.parts.append(
            f"the folders {names}{', ...' * (len(unused) > 5)} are not used; parts are train, test"
            f" and one of {', '.join(VALIDATION)}"
        )


def _class_files(
    root: Path, folders: Mapping[str, Path], classes: Sequence[str], left: LeftOut
) -> Listing:
    images, start = class_images(folders, left), len(f"{root}/")
    counts = torch.tensor([len(images.get(name, ())) for name in classes])
    files = tuple(file[start:] for name in classes for file in images.get(name, ()))
    return Listing(files, torch.arange(len(classes)).repeat_interleave(counts))


def _rows(path: Path, separator: str | None = None) -> list[tuple[str, str]]:
    """Returns the first two fields of each line of a list."""
    rows = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").splitlines(), 1
    ):
        fields = line.split(separator)
        if len(fields) < 2:
            raise RequestError(f"{path}: line {number} is {line!r}, expected a file and its class")
        rows.append((fields[0], fields[1]))
    if not rows:
        raise RequestError(f"{path}: is empty, expected one line per image")
    return rows


def _labeled(
    path: Path, rows: list[tuple[str, str]], folder: str, classes: Sequence[str]
) -> Listing:
    numbers = {name: number for number, name in enumerate(classes)}
    for _, name in rows:
        if composed(name) not in numbers:
            raise RequestError(f"{path}: names the class '{name}', which the training part lacks")
    files = tuple(f"{folder}/{file.lstrip('/')}" for file, _ in rows)
    return Listing(files, torch.tensor([numbers[composed(name)] for _, name in rows]))


def _scan_places(root: Path) -> Folder:
    """Returns the listings of Places365-Standard (Zhou et al., 2017): `FILE NUMBER` a line."""
    found: dict[str, Listing] = {}
    rows = _rows(root / PLACES)
    count = len({number for _, number in rows})
    numbers = [str(number) for number in range(count)]
    lists = {
        PLACES: ("data_256_standard", "data_256"),
        "places365_val.txt": ("val_256", "val_256"),
    }
    for name, folders in lists.items():
        if not (root / name).is_file():
            raise RequestError(f"data.path: '{root}' lacks the list '{name}' of Places365")
        folder = next((f for f in folders if (root / f).is_dir()), None)
        if folder is None:
            raise RequestError(
                f"data.path: '{root}' lacks the folder {' or '.join(dict.fromkeys(folders))} of "
                "Places365"
            )
        listed = rows if name == PLACES else _rows(root / name)
        found[name] = _labeled(root / name, listed, folder, numbers)
    scenes = {number: str(Path(file).parent).lstrip("/") for file, number in rows}
    left = LeftOut()
    left.listed += [str(root / name) for name in lists]
    classes = tuple(scenes.get(number, number) for number in numbers)
    parts = classes, found[PLACES], found["places365_val.txt"], None
    return _folder(root, parts, "Places365, tested on its val", left)


def path_of(config: Data) -> Path:
    """Returns `data.path`, with the home of its user in place of ~.

    Raises:
        RequestError: there is no such user.
    """
    try:
        return Path(str(config.path)).expanduser()
    except RuntimeError:
        raise RequestError(f"data.path: got {config.path!r}, but there is no such user") from None


def listed(root: Path) -> Folder:
    """Returns what a folder holds, from the listing that is kept of it if nothing has changed."""
    listing = kept.Listing("image_folder", os.path.abspath(root))
    with listing.locked():
        known = listing.read()
        if known is not None:
            return _restored(*known)
        found = scan(root)
        try:
            depends = kept.stamps(sorted(set(found.listed)))
        except OSError as error:
            raise RequestError(f"{shown(error.filename)}: {error.strerror} while listed") from None
        parts = {"train": found.train, "test": found.test, "validation": found.validation}
        present = {name: part for name, part in parts.items() if part is not None}
        files = [os.fsencode(file) for part in present.values() for file in part.files]
        labels = torch.cat([part.labels for part in present.values()]).numpy()
        sizes = {name: len(part) for name, part in present.items()}
        facts = {"classes": found.classes, "sizes": sizes, "layout": found.layout}
        facts |= {"notes": found.notes}
        listing.write({"file": files, "label": labels}, facts, depends)
    return found


def _restored(table: Any, facts: Mapping[str, Any]) -> Folder:
    files = tuple(map(os.fsdecode, table.column("file").to_pylist()))
    labels = torch.tensor(table.column("label").to_numpy())
    parts, start = dict[str, Listing](), 0
    for name, size in facts["sizes"].items():
        parts[name] = Listing(files[start : start + size], labels[start : start + size])
        start += size
    return Folder(
        tuple(facts["classes"]), parts["train"], parts["test"], parts.get("validation"),
        facts["layout"], tuple(facts["notes"]), tuple(path for path, *_ in facts["stamps"]),
    )  # fmt: skip


def image_folder(config: Data) -> Parts:
    """Returns the parts of the folder `data.path`.

    Raises:
        RequestError: as `scan`, or `data.path` names an unknown user.
    """
    root, how = path_of(config), decoding_of(config)
    found = listed(root)

    def part(listing: Listing) -> StreamedSplit:
        order = torch.arange(len(listing))
        return StreamedSplit(root, listing.files, listing.labels, order, config.image_size, how)

    own = None if found.validation is None else part(found.validation)
    train, test = part(found.train), part(found.test)
    sample = [
        (root / file, None)
        for one in (train, test)
        for file in one.files[:: len(one) // _LOOKED + 1]
    ]
    traits = [f"of the files looked at, {text}" for text in survey(sample, how)]
    left = [f"left out: {text}" if text[0].isdigit() else text for text in found.notes]
    files = [(root / train.files[at], None) for at in train.sample(_LOOKED)]
    notes = (*enlarged(files, config.image_size), *traits, *left)
    return Parts(found.classes, train, test, own, found.layout, notes)

"""Folders of image files, decoded on demand: a part of such a data set, and the listings of
ImageNet-like class folders, Tiny ImageNet and Places365.

The layout is detected from the folder's contents; PIL reads each image in a loader process when a
batch needs it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raybust.data.augment import center, random_view
from raybust.data.decode import PLAIN, Decoding, decode
from raybust.data.digests import digest_of, labels_digest
from raybust.data.layout import PLACES, TINY, VALIDATION, parts_of, training_folders
from raybust.data.listing import (
    LeftOut,
    class_images,
    composed,
    hidden,
    shared_images,
    shown,
)
from raybust.errors import RequestError

_SAMPLE = 10_000
"""Files of a part whose content its digest reads (our choice)."""

Listing = list[tuple[str, int]]
"""Path below the dataset's folder, label; in the order of the official part."""


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """One part of a dataset whose images stay on disk; the interface of `Split`.

    Attributes:
        root: the dataset's folder.
        files: N paths below `root`.
        labels: int64 (N,).
        indices: int64 (N,), the position of each file in the official part.
        size: side of the images that `fetch` returns, in pixels.
        decoding: how files become pixels.
    """

    root: Path
    files: tuple[str, ...]
    labels: Tensor
    indices: Tensor
    size: int
    decoding: Decoding = PLAIN

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what `fetch` returns."""
        return 3, self.size, self.size

    def fetch(self, positions: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Returns images float32 (B, 3, size, size) in [0, 1], and labels int64 (B,).

        The shorter side is resized to `size`, then the center is cropped.

        Args:
            positions: B positions in this part, in [0, N); B may be 0.

        Raises:
            RequestError: a file is no image.
        """
        at = torch.as_tensor(positions, dtype=torch.int64)
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(self.decode, at.tolist()))
        pixels = torch.stack(images) if images else torch.empty(0, *self.shape)
        return pixels.to(torch.float32).div_(255), self.labels[at]

    def decode(self, position: int, augment: str = "none", seed: int = 0) -> Tensor:
        """Returns one image, uint8 (3, size, size).

        Args:
            position: in [0, N).
            augment: "none" for the view of evaluation, else see `random_view`.
            seed: of the augmentation.

        Raises:
            RequestError: the file is no image.
        """
        image = decode(self.root / self.files[position], self.decoding)
        if augment == "none":
            view = center(image, self.size)
        else:
            view = random_view(image, self.size, augment, seed)
        return torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous()

    def select(self, positions: Tensor) -> StreamedSplit:
        """Returns the part that has only these positions, in their order."""
        files = tuple(self.files[position] for position in positions.tolist())
        return dataclasses.replace(
            self, files=files, labels=self.labels[positions], indices=self.indices[positions]
        )

    def content(self, positions: Sequence[int] | Tensor) -> str:
        """Returns the digest of the bytes of some images' files, in order, and of how they are
        decoded; their names are no part of it.

        Args:
            positions: in this part, in [0, N).

        Raises:
            RequestError: a file cannot be read.
        """
        at = torch.as_tensor(positions, dtype=torch.int64).tolist()
        with ThreadPoolExecutor() as pool:
            form = f"streamed {self.size} {self.decoding}"
            return digest_of(form, pool.map(self._file_digest, at))

    def labeling(self, positions: Sequence[int] | Tensor) -> str:
        """Returns the digest of the labels and indices of some examples, in order."""
        return labels_digest(self.labels, self.indices, positions)

    def _file_digest(self, position: int) -> bytes:
        path = self.root / self.files[position]
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise RequestError(f"{path}: cannot be read: {error.strerror or error}") from None

    def feed(self, digest: Callable[[bytes | memoryview], None]) -> None:
        """Passes paths (sorted), labels, indices and the content of all files to a hash's `update`;
        of more than 10,000, the content of a sample of so many, evenly spaced, and all sizes."""
        digest(f"streamed {self.size}".encode())
        rows = zip(self.files, self.labels.tolist(), self.indices.tolist(), strict=True)
        for file, label, index in sorted(rows):
            digest(os.fsencode(file) + f"\t{label}\t{index}\n".encode())
        digest(self.content(range(0, len(self), max(1, -(-len(self) // _SAMPLE)))).encode())
        if len(self) > _SAMPLE:
            sizes = [(self.root / file).stat().st_size for file in sorted(self.files)]
            digest(repr(sizes).encode())


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Attributes:
        classes: names of the classes.
        train: the training part.
        test: the test set; the official validation part where there is no other.
        validation: the validation part, where there is a test part besides.
        layout: what was recognized.
        left: what was left out.
    """

    classes: tuple[str, ...]
    train: Listing
    test: Listing
    validation: Listing | None
    layout: str
    left: LeftOut


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
        return Folder(classes, train, test, None, "Tiny ImageNet, tested on its val", left)
    own, test_folders = parts_of(root, classes, left)
    listings = {
        name: _class_files(root, folders, classes, left)
        for name, folders in {**own, **test_folders}.items()
    }
    _note_unused(root, listings, left)
    parts = {"train": train, **listings}
    for one, other in itertools.combinations(parts, 2):
        files = ([root / file for file, _ in parts[name]] for name in (one, other))
        if same := shared_images(*files):
            left.parts.append(f"warning: {same} images are in '{one}' and in '{other}'")
    for name, listing in listings.items():
        lacking = sorted(set(range(len(classes))) - {label for _, label in listing})
        if lacking:
            names = ", ".join(classes[label] for label in lacking[:5])
            what = f"{len(lacking)} classes ({names}{', ...' * (len(lacking) > 5)})"
            what = f"the class {names}" if len(lacking) == 1 else what
            left.parts.append(f"'{name}' has no images of {what}")
    validation = listings[next(iter(own))] if own and test_folders else None
    test = listings[next(iter(test_folders or own))]
    layout = f"class folders in train and {' and '.join(listings)}"
    return Folder(classes, train, test, validation, layout, left)


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
    numbers = {name: number for number, name in enumerate(classes)}
    return [
        (file.relative_to(root).as_posix(), numbers[name])
        for name, files in class_images(folders, left).items()
        for file in files
    ]


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
    return [(f"{folder}/{file.lstrip('/')}", numbers[composed(name)]) for file, name in rows]


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
    return Folder(
        tuple(scenes.get(number, number) for number in numbers),
        found[PLACES],
        found["places365_val.txt"],
        None,
        "Places365, tested on its val",
        LeftOut(),
    )

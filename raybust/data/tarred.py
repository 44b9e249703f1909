"""Tar shards in the form of WebDataset: `KEY.jpg` (or png, webp, ...) with `KEY.cls` or `KEY.json`
in one shard are an example.

Only the headers of a shard and its labels are read; images are read in place when they are needed,
for which each costs one read.

Notation: M images of all shards.
"""

from __future__ import annotations

import functools
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raybust.data import kept
from raybust.data.listing import ENDINGS, hidden, shown
from raybust.data.packed import Labeled, Shelf
from raybust.data.stores import File, opened, remote
from raybust.errors import RequestError

TAR = (".tar",)
_IMAGES = tuple(ending.removeprefix(".") for ending in ENDINGS)
_LABELS = ("cls", "json")
_KEYS = ("label", "cls")
"""Keys of a json file that hold the label, the first that is there."""
_LONGEST = 2**20
_BUFFER = 2**23
"""Bytes that are read at once from a store, whose requests take longer than a few images."""
_THREADS = 16


@dataclass(frozen=True, eq=False)
class TarShards(Shelf):
    """Images in tar files.

    Attributes:
        files: S shards.
        starts: number of the first image of each shard, ascending.
        offsets: int64 (M,), where the bytes of an image begin in its shard.
        lengths: int64 (M,), their number.
        names: M member names, an Arrow array, which takes no more than their characters.
    """

    files: tuple[File, ...]
    starts: Tensor
    offsets: Tensor
    lengths: Tensor
    names: Any

    def _shard(self, number: int) -> File:
        return self.files[int(torch.searchsorted(self.starts, number, right=True)) - 1]

    def named(self, number: int) -> str:
        """Returns shard and member."""
        return f"{self._shard(number).path}: {shown(os.fsdecode(self.names[number].as_py()))}"

    def read(self, number: int) -> bytes:
        """Returns the bytes of a member.

        Raises:
            RequestError: it cannot be read, or its shard has changed.
        """
        shard = opened(self._shard(number))
        return shard.read(int(self.offsets[number]), int(self.lengths[number]))

    def sizes(self) -> bytes:
        """Returns places and lengths of all members."""
        return self.offsets.numpy().tobytes() + self.lengths.numpy().tobytes()


@dataclass
class Shard:
    """The examples of one shard.

    Attributes:
        names: of the images' members.
        offsets: where the bytes of each image begin.
        lengths: their number.
        labels: of the images, None where there is none.
        left: what was left out, a phrase and its count.
    """

    names: list[str]
    offsets: list[int]
    lengths: list[int]
    labels: list[int | str | None]
    left: Counter[str]


class _Reader(io.RawIOBase):
    """A file of a store or of this machine as a stream, for `tarfile`."""

    def __init__(self, file: File) -> None:
        self._file, self._at = opened(file), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.file.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._file.file.size - self._at))
        buffer[:length] = self._file.read(self._at, length)
        self._at += length
        return length


def read_shards(files: Sequence[File]) -> Labeled:
    """Returns the examples of tar shards, in the order of the files and of their members.

    Raises:
        RequestError: a file is no uncompressed tar file, or holds no examples.
    """
    import pyarrow as pa

    listing = kept.Listing("webdataset", *(file.path for file in files))
    now: kept.Stamps = [[file.path, file.size, file.changed] for file in files]
    with listing.locked():
        known = listing.read(now)
        if known is not None:
            return _restored(files, *known)
        with ThreadPoolExecutor(_THREADS if remote(files[0].path) else 1) as pool:
            shards = list(pool.map(read_shard, files))
        columns = {
            "offset": [offset for shard in shards for offset in shard.offsets],
            "length": [length for shard in shards for length in shard.lengths],
            "name": [os.fsencode(name) for shard in shards for name in shard.names],
            "label": [json.dumps(label) for shard in shards for label in shard.labels],
        }
        left = sum((shard.left for shard in shards), Counter[str]())
        facts = {"counts": [len(shard.names) for shard in shards], "left": left}
        table = pa.table(columns)
        listing.write({name: table.column(name) for name in columns}, facts, now)
    return _restored(files, table, facts)


def _restored(files: Sequence[File], table: Any, facts: Mapping[str, Any]) -> Labeled:
    counts = torch.tensor(facts["counts"])
    shelf = TarShards(
        tuple(files),
        counts.cumsum(0) - counts,
        torch.tensor(table.column("offset").to_numpy()),
        torch.tensor(table.column("length").to_numpy()),
        table.column("name").combine_chunks(),
    )
    read = functools.cache(json.loads)
    labels = [read(text) for text in table.column("label").to_pylist()]
    left = tuple(f"left out: {count} {what}" for what, count in facts["left"].items())
    return Labeled(shelf, labels, None, left)


def read_shard(file: File) -> Shard:
    """Returns the examples of one shard.

    Raises:
        RequestError: it is no uncompressed tar file, or holds no images.
    """
    raw = _Reader(file)
    stream: Any = io.BufferedReader(raw, _BUFFER) if remote(file.path) else raw
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, tarfile.TarInfo] = {}
    left: Counter[str] = Counter()
    try:
        with tarfile.open(fileobj=stream, mode="r:", errors="surrogateescape") as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]
                if member.isfile():
                    _sort_in(member, images, labels, left, file)
            _check_end(archive, stream)
            found: list[int | str | None] = [
                _label_of(labels[key], stream, file) if key in labels else None for key in images
            ]
    except tarfile.TarError as error:
        raise RequestError(
            f"{file.path}: cannot be read as a tar file ({error}); images are read in place, so"
            " decompress it if it is compressed, and replace it if it was cut"
        ) from None
    if not images:
        raise RequestError(
            f"{file.path}: has no images; expected members KEY.jpg, KEY.png or KEY.webp with"
            " KEY.cls or KEY.json"
        )
    if alone := len(labels.keys() - images.keys()):
        left["labels without an image"] = alone
    return Shard(
        [member.name for member in images.values()],
        [member.offset_data for member in images.values()],
        [member.size for member in images.values()],
        found,
        left,
    )


def _check_end(archive: tarfile.TarFile, stream: Any) -> None:
    """Refuses a shard without the zeros that close a tar file, as `tarfile` ends in silence.

    Raises:
        tarfile.ReadError: it has none.
    """
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("unexpected end of data")


def _sort_in(
    member: tarfile.TarInfo,
    images: dict[str, tarfile.TarInfo],
    labels: dict[str, tarfile.TarInfo],
    left: Counter[str],
    file: File,
) -> None:
    """Adds a member to the images or to the labels, by its key."""
    folder, _, name = member.name.rpartition("/")
    stem, _, ending = name.partition(".")
    key, ending = f"{folder}/{stem}", ending.lower()
    if any(hidden(part) for part in member.name.removeprefix("./").split("/")):
        left["hidden or system files"] += 1
    elif ending in _IMAGES:
        if key in images:
            raise RequestError(
                f"{file.path}: has two images of one key, '{shown(images[key].name)}' and"
                f" '{shown(member.name)}'"
            )
        images[key] = member
    elif ending in _LABELS:
        if key not in labels or ending == _LABELS[0]:
            labels[key] = member
    else:
        left[f"files {'.' + shown(ending) if ending else 'without an ending'}"] += 1


def _label_of(member: tarfile.TarInfo, stream: Any, file: File) -> int | str | None:
    """Returns the label that a member holds.

    Raises:
        RequestError: it holds none.
    """
    where = f"{file.path}: {shown(member.name)}"
    if member.size > _LONGEST:
        raise RequestError(f"{where}: has {member.size:,} bytes, expected a label")
    stream.seek(member.offset_data)
    content = stream.read(member.size)
    try:
        text = content.decode().strip()
        value = json.loads(text) if member.name.lower().endswith(".json") else _number(text)
    except ValueError:
        raise RequestError(f"{where}: is not readable, expected a label in UTF-8") from None
    if isinstance(value, dict):
        value = next((value[key] for key in _KEYS if key in value), None)
    if value is None or (isinstance(value, (int, str)) and not isinstance(value, bool)):
        return value
    raise RequestError(f"{where}: has the label {value!r}, expected an integer or a name")


def _number(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdigit() and text.isascii() else text

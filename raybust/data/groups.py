"""Parquet files, read by row groups: each process keeps the newest, and the images of an epoch are
shuffled within windows of several groups.

Notation: M images of all files, G row groups.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raybust.data.packed import Shelf
from raybust.data.stores import File, attempted, opened, remote, store_of
from raybust.errors import RequestError

WINDOW_BYTES = 128 * 2**20
"""Bytes of row groups among which images are shuffled; a process keeps twice as many (our
choice)."""
_LEAST = 2
"""Row groups of a window at least (our choice)."""


@dataclass(frozen=True, eq=False)
class ParquetFiles(Shelf):
    """Images in a column of parquet files.

    Attributes:
        files: in order.
        column: path of the column that holds the images, for instance "image.bytes".
        starts: int64 (G,), number of the first image of each row group.
        owners: int64 (G, 2), file and place in it of each row group.
        extents: int64 (G,), size of the column in each row group.
    """

    files: tuple[File, ...]
    column: str
    starts: Tensor
    owners: Tensor
    extents: Tensor

    @functools.cached_property
    def window(self) -> int:  # type: ignore[override]
        """Row groups that fit into `WINDOW_BYTES`, two at least."""
        largest = max(1, int(self.extents.max()))
        return max(_LEAST, WINDOW_BYTES // largest)

    def blocks(self, numbers: Tensor) -> Tensor:
        """Returns the row group of each image."""
        return torch.searchsorted(self.starts, numbers, right=True) - 1

    def _place(self, number: int) -> tuple[int, int]:
        """Returns row group and row in it."""
        group = int(torch.searchsorted(self.starts, number, right=True)) - 1
        return group, number - int(self.starts[group])

    def named(self, number: int) -> str:
        """Returns file and row, counted from 0 in the file."""
        file = int(self.owners[self._place(number)[0], 0])
        first = int(self.starts[(self.owners[:, 0] == file).nonzero()[0, 0]])
        return f"{self.files[file].path}: row {number - first}"

    def read(self, number: int) -> bytes | np.ndarray:
        """Returns the cell of an image.

        Raises:
            RequestError: it is empty, no image, or its file cannot be read or has changed.
        """
        group, row = self._place(number)
        file, inside = self.owners[group].tolist()
        if not remote(self.files[file].path):
            opened(self.files[file]).check()
        cells = _recent(os.getpid()).get(
            (self.files[file], inside, self.column),
            lambda: read_group(self.files[file], inside, self.column),
        )
        cell = cells[row].as_py()
        if cell is None:
            raise RequestError(f"{self.named(number)}: has no image in the column {self.column}")
        if isinstance(cell, bytes):
            return cell
        leaf = cells.type
        while hasattr(leaf, "value_type"):
            leaf = leaf.value_type
        try:
            return np.array(cell, dtype=leaf.to_pandas_dtype())
        except ValueError:
            raise RequestError(f"{self.named(number)}: has rows of different lengths") from None

    def sizes(self) -> bytes:
        """Returns the sizes of all row groups."""
        return b"".join(part.numpy().tobytes() for part in (self.starts, self.owners, self.extents))


class _Recent:
    """The newest row groups of a process, up to a number of bytes; one thread reads each, the
    others wait for it."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._kept: OrderedDict[Any, Future[Any]] = OrderedDict()

    def get(self, key: Any, read: Callable[[], Any]) -> Any:
        """Returns what `read` returns, kept under a key."""
        with self._lock:
            known = self._kept.get(key)
            own = known is None
            if known is None:
                known = self._kept[key] = Future()
            self._kept.move_to_end(key)
        if own:
            try:
                known.set_result(read())
            except BaseException as error:
                known.set_exception(error)
                with self._lock:
                    self._kept.pop(key, None)
            self._forget()
        return known.result()

    def _forget(self) -> None:
        with self._lock:
            total = sum(one.result().nbytes for one in self._kept.values() if _done(one))
            while total > self._most and len(self._kept) > _LEAST:
                _, oldest = self._kept.popitem(last=False)
                total -= oldest.result().nbytes if _done(oldest) else 0


def _done(one: Future[Any]) -> bool:
    return one.done() and one.exception() is None


@functools.lru_cache(maxsize=1)
def _recent(process: int) -> _Recent:
    return _Recent(2 * WINDOW_BYTES)


def open_parquet(file: File) -> Any:
    """Returns a parquet file of pyarrow.

    Raises:
        RequestError: it is none, cannot be read, or has changed since it was found.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened(file).check()
    footer, source = _footer(os.getpid(), file), _source(file)
    try:
        return pq.ParquetFile(source, metadata=footer, pre_buffer=remote(file.path))
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(file, error) from None


def _source(file: File) -> Any:
    """Returns what pyarrow reads a file from."""
    if not remote(file.path):
        return file.path
    store, path = store_of(file.path)
    return attempted(lambda: store.open_input_file(path), file.path)


@functools.lru_cache(maxsize=64)
def _footer(process: int, file: File) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(_source(file))
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(file, error) from None


def _damaged(file: File, error: Exception) -> RequestError:
    reason = " ".join(str(error).split())[:200]
    return RequestError(f"{file.path}: cannot be read as a parquet file ({reason})")


def read_group(file: File, group: int, column: str) -> Any:
    """Returns a column of a row group as one Arrow array.

    Args:
        file: a parquet file.
        group: in it.
        column: path of the column.

    Raises:
        RequestError: the file cannot be read, is damaged, or has changed since it was found.
    """
    import pyarrow as pa

    with open_parquet(file) as source:
        try:
            table = source.read_row_group(group, columns=[column], use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RequestError(
                f"{file.path}: row group {group} cannot be read ({reason})"
            ) from None
    opened(file).check()
    cells = table.column(0).combine_chunks()
    if pa.types.is_struct(cells.type):
        cells = cells.field(column.rpartition(".")[2])
    return getattr(cells, "storage", cells)

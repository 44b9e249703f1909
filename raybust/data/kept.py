"""Listings that are kept beside the runs, so that ranks, trials and later commands need not list
the same files again.

A listing is a parquet file in `OUT/_data`. It states what it depends on, folders or files with the
times of their last changes, and is used only while all of them are the same. Nothing is kept before
the folder of the runs exists, nor of files that changed a moment ago.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from raybust.disk.lock import take

FOLDER = "_data"
"""Folder of the listings below that of the runs; no run can have that name."""

Stamps = list[list[Any]]
"""What a listing depends on: path, size (0 for folders) and time of its last change in ns."""

_FORM = 1
_FACTS = b"raybust"
_SETTLED_NS = 2_000_000_000
"""Age from which a time tells one change from the next, on any file system (our choice)."""

_out: ContextVar[Path | None] = ContextVar("out", default=None)


@contextlib.contextmanager
def beside(out: Path | None) -> Iterator[None]:
    """Keeps listings below a folder of runs; None keeps none."""
    token = _out.set(out if out is not None and out.is_dir() else None)
    try:
        yield
    finally:
        _out.reset(token)


def stamps(paths: list[str]) -> Stamps:
    """Returns folders or files of this machine with their times."""
    return [[path, 0, os.stat(path).st_mtime_ns] for path in paths]


class Listing:
    """The listing of one data set: read with `read`, and if that finds none, written with `write`
    by one process while others wait.

    Args:
        keys: what is listed; equal keys have one listing.
    """

    def __init__(self, *keys: str) -> None:
        out, text = _out.get(), "\x1f".join(keys)
        self._began = 0
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
        self._path = None if out is None else out / FOLDER / f"{keys[0]}-{digest}.parquet"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lets one process at a time look for the listing and write it."""
        with contextlib.ExitStack() as stack:
            if self._path is not None:
                with contextlib.suppress(OSError):  # read-only runs: nothing is kept
                    self._path.parent.mkdir(exist_ok=True)
                    lock = self._path.with_suffix(".lock").open("w")
                    take(stack.enter_context(lock), wait=True)
            self._began = time.time_ns()
            yield

    def read(self, now: Stamps | None = None) -> tuple[Any, dict[str, Any]] | None:
        """Returns the Arrow table of the listing and its facts; None if there is none, or if
        anything that it depends on has changed.

        Args:
            now: what it has to depend on; by default the folders that it names, as they are.
        """
        if self._path is None or not self._path.is_file():
            return None
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self._path, use_threads=False)
            facts = json.loads(table.schema.metadata[_FACTS])
            current = stamps([path for path, _, _ in facts["stamps"]]) if now is None else now
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
            return None  # torn, of another form, or of a folder that is gone: listed anew
        same = facts.get("form") == _FORM and current == facts["stamps"]
        return (table, facts) if same else None

    def write(self, columns: Mapping[str, Any], facts: Mapping[str, Any], known: Stamps) -> None:
        """Keeps a listing, unless something that it depends on changed since or a moment before
        `locked` began.

        Args:
            columns: Arrow arrays.
            facts: what else belongs to it, as JSON can hold it.
            known: what it depends on.
        """
        newest = max((changed for _, _, changed in known), default=0)
        unknown = any(not changed for _, _, changed in known)
        if self._path is None or unknown or self._began - newest < _SETTLED_NS:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        text = json.dumps({**facts, "stamps": known, "form": _FORM})
        table = pa.table(dict(columns)).replace_schema_metadata({_FACTS: text})
        with contextlib.suppress(OSError):  # a full or read-only disk: listed again next time
            handle, scratch = tempfile.mkstemp(dir=self._path.parent)
            os.close(handle)
            pq.write_table(table, scratch, compression="zstd")
            os.replace(scratch, self._path)

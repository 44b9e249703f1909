"""A lock on a run's folder, so that two commands never write to the same run."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raybust.errors import RequestError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a run; the lock ends with the process at the latest.

    Raises:
        RequestError: another command holds the lock, or the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        handle = (folder.parent / f".{folder.name}.lock").open("w")
    except OSError as error:
        raise RequestError(
            f"out: {folder.parent} cannot be written: {error.strerror};"
            " choose another folder with --out"
        ) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(
                f"{folder.name}: another command is running it; wait for it,"
                " or choose another --name"
            ) from None
        yield

"""A lock on a run's folder, so that two commands never write to the same run."""

from __future__ import annotations

import fcntl
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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
        if not take(handle):
            raise RequestError(
                f"{folder.name}: another command is running it; wait for it,"
                " or choose another --name"
            )
        yield


def take(file: IO[Any], *, wait: bool = False) -> bool:
    """Locks an open file until it is closed; returns False if another process holds the lock.

    Some network file systems have no locks. There it succeeds, with one warning per process.

    Args:
        file: open.
        wait: wait for the other process instead.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        _warn_once(f"{Path(file.name).parent}: its file system has no locks ({error.strerror})")
    return True


@functools.cache
def _warn_once(what: str) -> None:
    print(f"warning: {what}; never start two commands on one run", file=sys.stderr)

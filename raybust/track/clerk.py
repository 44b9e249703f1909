"""A process beside the command that talks to MLflow for it.

Importing MLflow takes seconds, which the command has for its own imports and for its work. The
process ends with the command; if it dies first, the command calls MLflow itself.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raybust.beside import live_with
from raybust.track.client import load_mlflow
from raybust.track.flush import Flusher

if TYPE_CHECKING:
    from joblib.externals.loky import ProcessPoolExecutor

_Result = TypeVar("_Result")
_processes: list[ProcessPoolExecutor] = []
_flushers: dict[str, Flusher] = {}
"""In the process: by journal."""


def engage() -> None:
    """Starts the process, which imports MLflow, unless it runs."""
    from joblib.externals.loky import ProcessPoolExecutor

    if not _processes:
        _processes.append(ProcessPoolExecutor(1, initializer=live_with, initargs=(os.getpid(),)))
        _processes[0].submit(load_mlflow)
        atexit.register(_dismiss)


def call(function: Callable[..., _Result], *arguments: Any, **keywords: Any) -> _Result:
    """Returns the result of a function of this package, called in the process.

    Args:
        function: the function; it and its arguments are pickled.
        arguments: of the function.
        keywords: of the function.

    Raises:
        Exception: raised by the function.
    """
    from joblib.externals.loky.process_executor import BrokenProcessPool

    engage()
    try:
        work = _processes[0].submit(_called, dict(os.environ), function, arguments, keywords)
        found: _Result = work.result()
    except BrokenProcessPool:
        _dismiss()
        return function(*arguments, **keywords)
    return found


class Following:
    """A `Flusher` in the process.

    Args:
        journal: see `Flusher`.
        uri: see `Flusher`.
    """

    def __init__(self, journal: str | Path, uri: str) -> None:
        self._journal = str(Path(journal).absolute())
        call(_follow, self._journal, uri)

    def close(self, deadline_s: float = 10.0) -> bool:
        """See `Flusher.close`."""
        return call(_close, self._journal, deadline_s)


def _dismiss() -> None:
    while _processes:
        _processes.pop().shutdown(kill_workers=True)


def _called(
    environment: dict[str, str],
    function: Callable[..., _Result],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
) -> _Result:
    """Calls a function with the command's environment, which may have changed since the start."""
    if environment != dict(os.environ):
        os.environ.clear()
        os.environ.update(environment)
        load_mlflow()
    return function(*arguments, **keywords)


def _follow(journal: str, uri: str) -> None:
    _flushers[journal] = Flusher(journal, uri)


def _close(journal: str, deadline_s: float) -> bool:
    flusher = _flushers.pop(journal, None)
    return flusher is not None and flusher.close(deadline_s)

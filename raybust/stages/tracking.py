"""The MLflow store of a stage: opened before the work, synchronized after it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raybust import track
from raybust.config import Config
from raybust.errors import WorkError
from raybust.stages.bars import Echo

_RESTORE_S = 60.0
"""Time limit for sending everything to a new store; the next command continues."""


def open_store(config: Config, out: Path, echo: Echo) -> str:
    """Prepares the store and returns its URI; warns if the server is unreachable."""
    uri = track.resolve_uri(config.track, out)
    warning = track.call(track.prepare, uri, out, config.track.experiment)
    if warning:
        echo(f"warning: {warning}")
    elif missing := track.call(track.lost, out, uri):
        echo(f"this MLflow store lacks runs that were sent to another one: sending {len(missing)}")
        deadline = time.monotonic() + _RESTORE_S
        for path in missing:
            left = max(deadline - time.monotonic(), 0)
            track.call(track.sync, path, uri, out, deadline_s=left)
    return uri


@contextmanager
def sending_rest(folder: Path, uri: str, out: Path, echo: Echo) -> Iterator[None]:
    """Sends what workers left unsent, even after a failure; warns about what remains unsent."""
    failure = None
    try:
        yield
    except WorkError as error:
        failure = error
    result = track.call(track.sync, folder, uri, out)
    for journal, reason in result.left:
        echo(
            f"warning: {journal} is not in MLflow yet ({reason}); rerun the same command to send it"
        )
    if failure is not None:
        raise failure

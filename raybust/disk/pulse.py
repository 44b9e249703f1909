"""Where in its epoch a run is: a small file in its folder, for the progress that a command shows.

The worker may be another process or another machine, so a file of the shared folder carries it. It
is deleted when the run ends; one that a kill left is deleted at the next start.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from raybust.disk.files import replace_text

FILE = "pulse.json"
_EVERY_S = 1.0
_PROGRESS_ALONE = contextlib.suppress(OSError)
"""A full or read-only disk must neither end a run for its progress nor hide what ended it."""


@dataclass(frozen=True)
class Pulse:
    """A moment of a run.

    Attributes:
        epoch: under way, from 1.
        step: completed steps of the epoch.
        steps: of the epoch; when all are done, validation begins.
        share: spent fraction of the run's budget.
    """

    epoch: int
    step: int
    steps: int
    share: float


class Recorder:
    """Records a run's pulse: at most once a second, and when validation begins.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._last = time.monotonic()

    def __call__(self, pulse: Pulse) -> None:
        """Replaces the recorded pulse."""
        now = time.monotonic()
        if now - self._last >= _EVERY_S or pulse.step == pulse.steps:
            self._last = now
            with _PROGRESS_ALONE:
                replace_text(self._path, json.dumps(asdict(pulse)))


def read(folder: Path) -> Pulse | None:
    """Returns a run's recorded pulse; None before the first."""
    try:
        return Pulse(**json.loads((folder / FILE).read_text()))
    except FileNotFoundError:
        return None


def forget(folder: Path) -> None:
    """Deletes a run's recorded pulse."""
    with _PROGRESS_ALONE:
        (folder / FILE).unlink(missing_ok=True)

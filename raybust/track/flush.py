"""Decides when journals are delivered: by a thread during training, and by a replay afterwards.

`Flusher` sends about once a second and backs off while the store is unreachable; `sync` replays
every journal under a folder once a command's work is done. Neither blocks training, and unsent
entries stay in the journals.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from raybust.track.ack import Ack, load_ack
from raybust.track.client import open_client, store_identity
from raybust.track.delivery import BusyError, Delivery, UndeliveredError
from raybust.track.journal import SUFFIX, Journal

_FIRST_DELAY = 0.25
_LONGEST_DELAY = 30.0
_BUSY = 10.0
"""Seconds for which `sync` waits for other processes that deliver (our choice)."""


class Flusher:
    """Delivers one journal from its own thread, which starts immediately.

    Args:
        journal: the journal's file; it may not exist yet.
        uri: the store.
        out: see `Delivery`.
        interval_s: seconds between polls of the journal.
    """

    def __init__(
        self, journal: str | Path, uri: str, out: str | Path | None = None, interval_s: float = 1.0
    ) -> None:
        self.problem: str | None = None
        """Why the last attempt failed, in one line; None if it succeeded."""
        self.drained = False
        self._delivery = Delivery(journal, uri, out)
        self._interval = interval_s
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="raybust-flusher", daemon=True)
        self._thread.start()

    @property
    def rejected(self) -> int:
        """Number of permanently rejected items; `<journal>.rejected` has the reasons."""
        return self._delivery.rejected

    def close(self, deadline_s: float = 10.0) -> bool:
        """Sends the remaining entries until the deadline; the rest is left to `sync`.

        Args:
            deadline_s: seconds after which this returns, whatever the store does.

        Returns:
            Whether the whole journal was delivered.
        """
        self._deadline = time.monotonic() + deadline_s
        self._closing.set()
        self._thread.join(deadline_s)
        return self.drained

    def __enter__(self) -> Flusher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        failures = 0
        while True:
            closing = self._closing.is_set()
            done = False
            try:
                done = self._delivery.step()
                failures, self.problem = 0, None
            except UndeliveredError as error:
                failures, self.problem = failures + 1, str(error)
            left = self._deadline - time.monotonic()
            if closing and (done or left <= 0):
                self.drained = done
                return
            if failures and closing:
                time.sleep(min(backoff(failures, 1.0), max(left, 0.0)))
            elif failures:
                self._closing.wait(max(self._interval, backoff(failures)))
            elif done:
                self._closing.wait(self._interval)


@dataclasses.dataclass(frozen=True)
class SyncResult:
    """The outcome of a replay.

    Attributes:
        journals: number of journals with unsent entries.
        rejected: number of items that MLflow rejected permanently.
        left: journals that are still undelivered, each with the reason.
    """

    journals: int = 0
    rejected: int = 0
    left: tuple[tuple[Path, str], ...] = ()


def unsent(root: str | Path) -> list[Path]:
    """Returns the journals under a folder with unsent entries or files."""
    return [path for path, ack in _journals(root) if not _is_sent(path, ack)]


def lost(root: str | Path, uri: str) -> list[Path]:
    """Returns the journals under a folder that a store lacks though they were sent: it was deleted,
    or replaced by another one at the same URI.

    Args:
        root: the folder.
        uri: the store; one that does not answer lacks nothing.
    """
    try:
        identity = store_identity(open_client(uri))
    except Exception:  # sending reports it
        return []
    return [
        path
        for path, ack in _journals(root)
        if ack is not None and identity and ack.identity != identity and _is_sent(path, ack)
    ]


def _journals(root: str | Path) -> Iterator[tuple[Path, Ack | None]]:
    for path in sorted(Path(root).rglob(f"*{SUFFIX}")):
        if path.stat().st_size:
            yield path, load_ack(path)


def _is_sent(path: Path, ack: Ack | None) -> bool:
    return ack is not None and ack.done(path.stat().st_size)


def sync(
    root: str | Path, uri: str, out: str | Path | None = None, deadline_s: float = 60.0
) -> SyncResult:
    """Replays every journal under a folder with unsent entries.

    Args:
        root: the folder, or one journal.
        uri: the store.
        out: see `Delivery`; defaults to `root`.
        deadline_s: seconds for all journals together; a request in flight at the deadline may
            finish. A journal is skipped after three failures in a row, and the store counts as
            unreachable after two failed journals in a row. Journals that another process delivers
            are tried again at the end, for ten seconds together: a stopped worker dies meanwhile.
    """
    root = Path(root)
    paths = [root] if root.is_file() else unsent(root)
    deadline = time.monotonic() + deadline_s
    left: list[tuple[Path, str]] = []
    busy: list[Delivery] = []
    rejected = failed_in_a_row = 0
    for path in paths:
        if time.monotonic() > deadline or failed_in_a_row >= 2:
            left.append((path, left[-1][1] if left else f"not within {deadline_s:g} s"))
            continue
        delivery = Delivery(path, uri, out or (root if root.is_dir() else None))
        failure = _deliver(delivery, deadline)
        if isinstance(failure, BusyError):
            busy.append(delivery)
            continue
        rejected += delivery.rejected
        failed_in_a_row = 0 if failure is None else failed_in_a_row + 1
        if failure is not None:
            left.append((path, str(failure)))
    deadline = min(deadline, time.monotonic() + _BUSY)
    for delivery in busy:
        while isinstance(failure := _deliver(delivery, deadline), BusyError):
            if time.monotonic() > deadline:
                break
            time.sleep(_FIRST_DELAY)
        rejected += delivery.rejected
        if failure is not None:
            left.append((delivery.journal, str(failure)))
    return SyncResult(len(paths), rejected, tuple(left))


def log_to_run(
    journal: str | Path,
    uri: str,
    run_key: str,
    experiment: str,
    *,
    metrics: Mapping[str, float] | None = None,
    step: int = 0,
    artifacts: Iterable[str | Path] = (),
    folder: str = "",
    tags: Mapping[str, object] | None = None,
    deadline_s: float = 30.0,
) -> SyncResult:
    """Adds results, such as certificates, to a run after training, through a separate journal that
    keeps them for `sync` while the server is unreachable.

    Args:
        journal: that journal's file, ending in "journal.jsonl"; use one per protocol, because a
            journal records each metric at each step only once.
        uri: the store.
        run_key: the run's key; a missing run is created.
        experiment: the run's experiment.
        metrics: values to add.
        step: their step.
        artifacts: files and folders to upload.
        folder: their artifact folder.
        tags: tags to set.
        deadline_s: seconds after which the rest is left to `sync`.
    """
    with Journal(journal) as addition:
        addition.attach(run_key, experiment)
        addition.metrics(metrics or {}, step)
        if tags:
            addition.tags(tags)
        for path in artifacts:
            addition.artifact(path, folder)
        path = addition.path
    return sync(path, uri, deadline_s=deadline_s)


def backoff(failures: int, longest: float = _LONGEST_DELAY) -> float:
    """Returns the seconds to wait after consecutive failures: doubling, with jitter."""
    return min(longest, _FIRST_DELAY * 2.0 ** min(failures - 1, 20)) * random.uniform(0.5, 1.0)


def _deliver(delivery: Delivery, deadline: float) -> UndeliveredError | None:
    """Delivers a whole journal; returns why it could not, or None."""
    failures = 0
    while True:
        try:
            if delivery.step():
                return None
            failures = 0
        except BusyError as error:
            return error
        except UndeliveredError as error:
            failures += 1
            if failures >= 3 or time.monotonic() > deadline:
                return error
            time.sleep(backoff(failures, 2.0))
        if time.monotonic() > deadline:
            return UndeliveredError("the deadline passed")

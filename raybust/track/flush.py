"""When journals are delivered: a thread beside the training of a run, and a replay of what is left.

In the arrow: track. `Flusher` sends about once a second and backs off while the store is away;
`sync` replays every journal under a folder, at a driver's start and at a sweep's end. Neither is in
training's way, and what neither could send stays in the journals.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from raybust.track.ack import load_ack
from raybust.track.delivery import BusyError, Delivery, UndeliveredError
from raybust.track.journal import SUFFIX, Journal

_FIRST_DELAY = 0.25
_LONGEST_DELAY = 30.0


class Flusher:
    """Delivers one journal from a thread of its own, which starts at once.

    Args:
        journal: the journal's file; it may not exist yet.
        uri: the store.
        out: see `Delivery`.
        interval_s: seconds between two looks at the journal.
    """

    def __init__(
        self, journal: str | Path, uri: str, out: str | Path | None = None, interval_s: float = 1.0
    ) -> None:
        self.problem: str | None = None
        """Why the last try failed, in one line; None while all is well."""
        self.drained = False
        self._delivery = Delivery(journal, uri, out)
        self._interval = interval_s
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="raybust-flusher", daemon=True)
        self._thread.start()

    @property
    def rejected(self) -> int:
        """Number of items that MLflow refused for ever; `<journal>.rejected` has the reasons."""
        return self._delivery.rejected

    def close(self, deadline_s: float = 10.0) -> bool:
        """Sends what is left, at most until the deadline; the rest is for `sync`.

        Args:
            deadline_s: seconds after which this returns, whatever the store does.

        Returns:
            Whether all of the journal arrived.
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
    """What a replay did.

    Attributes:
        journals: journals that had something left to send.
        rejected: items that MLflow refused for ever, over all of them.
        left: journals that are still not delivered, each with the reason.
    """

    journals: int = 0
    rejected: int = 0
    left: tuple[tuple[Path, str], ...] = ()


def unsent(root: str | Path) -> list[Path]:
    """Returns the journals under a folder that have entries or files left to send."""
    found = []
    for path in sorted(Path(root).rglob(f"*{SUFFIX}")):
        size = path.stat().st_size
        ack = load_ack(path)
        if size and (ack is None or not ack.done(size)):
            found.append(path)
    return found


def sync(
    root: str | Path, uri: str, out: str | Path | None = None, deadline_s: float = 60.0
) -> SyncResult:
    """Replays every journal under a folder that has entries left.

    Args:
        root: the folder, or one journal.
        uri: the store.
        out: see `Delivery`; `root` where not given.
        deadline_s: seconds over all journals. A journal that fails three times in a row is left,
            and a store that fails two journals in a row is taken to be away; a request in flight
            at the deadline is waited for.
    """
    root = Path(root)
    paths = [root] if root.is_file() else unsent(root)
    deadline = time.monotonic() + deadline_s
    left: list[tuple[Path, str]] = []
    rejected = failed_in_a_row = 0
    for path in paths:
        if time.monotonic() > deadline or failed_in_a_row >= 2:
            left.append((path, left[-1][1] if left else f"not within {deadline_s:g} s"))
            continue
        delivery = Delivery(path, uri, out or (root if root.is_dir() else None))
        failure = _deliver(delivery, deadline)
        rejected += delivery.rejected
        if failure is None:
            failed_in_a_row = 0
        else:
            failed_in_a_row += not isinstance(failure, BusyError)
            left.append((path, str(failure)))
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
    """Adds to a run after its training, such as its certificates, through a journal of the
    addition's own: while the server is away it stays there for `sync`.

    Args:
        journal: file of that journal, ending in "journal.jsonl"; one per protocol, because a
            metric that a journal has at a step is not recorded again.
        uri: the store.
        run_key: the run's key; a run that is not there yet is made.
        experiment: the run's experiment.
        metrics: values to add.
        step: their step.
        artifacts: files and folders to upload.
        folder: artifact folder that they come into.
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
    """Returns the seconds to wait after that many failures in a row: doubling, with jitter."""
    return min(longest, _FIRST_DELAY * 2.0 ** min(failures - 1, 20)) * random.uniform(0.5, 1.0)


def _deliver(delivery: Delivery, deadline: float) -> UndeliveredError | None:
    """Delivers a journal to its end; returns why it could not, or None."""
    failures = 0
    while True:
        try:
            if delivery.step():
                return None
            failures = 0
        except UndeliveredError as error:
            failures += 1
            if failures >= 3 or time.monotonic() > deadline:
                return error
            time.sleep(backoff(failures, 2.0))
        if time.monotonic() > deadline:
            return UndeliveredError("the deadline passed")

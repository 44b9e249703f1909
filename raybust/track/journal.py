"""The journal of a run: a local file that records everything to be tracked.

Rank 0 (for a sweep's parent, the driver) appends one JSON line per event; `raybust.track.delivery`
sends them to MLflow. So training never waits for the network, and nothing is lost while a server is
unreachable. This module does not use MLflow.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args
from urllib.parse import quote

from raybust.config.measured import SELECTED, standing
from raybust.errors import RequestError

SUFFIX = "journal.jsonl"
"""`sync` replays files with this suffix; a copy kept in a checkpoint needs another name."""

NOTE = "mlflow.note.content"
"""Tag that MLflow's pages show as a run's description, in Markdown."""

RUN_ID = "{mlflow run id}"
"""Stands in a tag for the id of the run, which the store gives when the journal is delivered."""

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended."""


class Journal:
    """Append-only record of one run, written by one process at a time.

    Opening an existing file continues it: a last line truncated by a kill is dropped, and entries
    already in the file (a metric at a step, an unchanged text) are not appended again, so epochs
    recomputed after a resume leave no duplicate points.

    Args:
        path: the file, in the run's folder; its name must end in "journal.jsonl".
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        if not self.path.name.endswith(SUFFIX):
            raise RequestError(f"{self.path}: expected a file name that ends in '{SUFFIX}'")
        self.run_key: str | None = None
        self.attempt = 0
        self._points: set[tuple[str, int]] = set()
        self._texts: dict[str, str] = {}
        self._registered: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._recall()

    def start(
        self,
        run_key: str,
        experiment: str,
        name: str,
        *,
        tags: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
        parent_key: str | None = None,
        dataset: Mapping[str, str] | None = None,
    ) -> None:
        """Starts the run. If the journal was already started, only increments the attempt (tag
        `raybust.attempt`) and sets the run's status to RUNNING again.

        Args:
            run_key: identifies the MLflow run, whoever delivers to it.
            experiment: MLflow's experiment.
            name: the run's name in MLflow.
            tags: tags; values become text.
            params: parameters, flat; values become text, truncated at MLflow's limit.
            parent_key: run key of the sweep that the run belongs to.
            dataset: `name`, `digest` and `source` of what the run learns from.

        Raises:
            RequestError: the journal belongs to another run.
        """
        self._claim(run_key)
        if self.attempt:
            self._append({"e": "resume", "attempt": self.attempt + 1})
        else:
            self._append(
                {
                    "e": "start",
                    "run": run_key,
                    "experiment": experiment,
                    "name": name,
                    "parent": parent_key,
                    "tags": _texts(tags or {}),
                    "params": _texts(params or {}),
                    **({"dataset": dict(dataset)} if dataset else {}),
                }
            )
        self.attempt += 1

    def attach(self, run_key: str, experiment: str) -> None:
        """Starts an additional journal of a run, such as for certificates after training; changes
        neither the run's status nor its attempts.

        Raises:
            RequestError: the journal belongs to another run.
        """
        self._claim(run_key)
        if self.run_key is None:
            self._append({"e": "attach", "run": run_key, "experiment": experiment})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Records values at a step; ignores a (key, step) that is already recorded.

        Args:
            values: name to number; NaN and infinities are kept.
            step: the step, an epoch in training.
        """
        fresh = {key: v for key, v in values.items() if (key, int(step)) not in self._points}
        if fresh:
            numbers = {key: _number(value) for key, value in fresh.items()}
            self._append({"e": "metrics", "step": int(step), "values": numbers})

    def artifact(self, path: str | Path, folder: str = "") -> None:
        """Records a file or folder for upload under `folder`. It is read on delivery, so it must
        stay in place. Recording it again sends it again."""
        full = Path(path).absolute()
        inside = full.is_relative_to(self.path.parent)
        kept = full.relative_to(self.path.parent) if inside else full
        self._append({"e": "artifact", "path": str(kept), "folder": folder})

    def files(self, paths: Sequence[str | Path], folder: str) -> None:
        """Records files and folders for upload into `folder`, each under its own name."""
        for path in paths:
            name = Path(path).name
            self.artifact(path, f"{folder}/{name}" if Path(path).is_dir() else folder)

    def text(self, content: str, name: str) -> None:
        """Records a text, such as the resolved configuration, as the artifact `name`."""
        if not self.has_text(content, name):
            self._append({"e": "text", "content": content, "name": name})

    def has_text(self, content: str, name: str) -> bool:
        """Returns whether this is the last text recorded under a name."""
        return self._texts.get(name) == content

    def register(
        self,
        model: str,
        files: Sequence[str | Path],
        *,
        folder: str,
        digest: str,
        description: str = "",
        tags: Mapping[str, object] | None = None,
    ) -> None:
        """Records files for upload and then registration as a version of a model, unless the latest
        registration is identical.

        Args:
            model: name of the registered model.
            files: files and folders; the first, a file, shows whether the version is complete.
            folder: artifact folder of the files, the version's source.
            digest: of the weights; identifies the version within the run.
            description: of the version.
            tags: of the version; values become text.
        """
        entry = {
            "e": "register",
            "model": model,
            "folder": folder,
            "file": Path(files[0]).name,
            "digest": digest,
            "description": description,
            "tags": _texts(tags or {}),
        }
        if entry != self._registered:
            self.files(files, folder)
            self._append(entry)

    def tags(self, tags: Mapping[str, object]) -> None:
        """Sets tags; the last value of a key wins."""
        self._append({"e": "tags", "tags": _texts(tags)})

    def end(self, status: Status, reason: str = "") -> None:
        """Ends the run; `reason` (finished, pruned, failed, lost) becomes `raybust.stop_reason`."""
        if status not in get_args(Status):
            raise ValueError(f"got status {status!r}, expected one of {get_args(Status)}")
        self._append({"e": "end", "status": status, "reason": reason or status.lower()})

    def close(self) -> None:
        """Closes the file; calls after the first do nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _claim(self, run_key: str) -> None:
        if self.run_key not in (None, run_key):
            raise RequestError(f"{self.path}: belongs to run '{self.run_key}', not '{run_key}'")

    def _append(self, entry: dict[str, Any]) -> None:
        if self.run_key is None and entry["e"] not in ("start", "attach"):
            raise RuntimeError(f"{self.path}: start() or attach() comes first")
        entry = {"t": int(time.time() * 1000), **entry}
        line = json.dumps(entry, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)  # on resume, no checkpoint may be ahead of the journal
            self._remember(entry)

    def _recall(self) -> None:
        with self.path.open("rb") as file:
            content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
        for line in content[:whole].splitlines():
            entry = decode(line)
            if entry is not None:
                self._remember(entry)
                self.attempt += entry["e"] in ("start", "resume")

    def _remember(self, entry: Mapping[str, Any]) -> None:
        if entry["e"] in ("start", "attach"):
            self.run_key = entry["run"]
        elif entry["e"] == "metrics":
            self._points.update((key, entry["step"]) for key in entry["values"])
        elif entry["e"] == "text":
            self._texts[entry["name"]] = entry["content"]
        elif entry["e"] == "register":
            self._registered = {key: value for key, value in entry.items() if key != "t"}


def text_of(path: Path, name: str) -> str | None:
    """Returns the last text recorded under a name in a journal, or None."""
    lines = path.read_bytes().splitlines() if path.exists() else ()
    entries = [entry for entry in map(decode, lines) if entry is not None]
    found = [e["content"] for e in entries if e["e"] == "text" and e["name"] == name]
    return str(found[-1]) if found else None


def picture(text: str, path: str) -> str:
    """Returns Markdown that shows an artifact of the run in its description.

    Args:
        text: what it shows.
        path: of the artifact, an image.
    """
    return f"![{text}](get-artifact?path={quote(path, safe='')}&run_uuid={RUN_ID})"


def metrics_of(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Returns step and values of each entry of metrics in a journal; none if it does not exist."""
    lines = path.read_bytes().splitlines() if path.exists() else ()
    entries = [entry for entry in map(decode, lines) if entry is not None]
    return [
        (entry["step"], {key: float(value) for key, value in entry["values"].items()})
        for entry in entries
        if entry["e"] == "metrics"
    ]


def standing_of(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Like `metrics_of`, but with the metrics by which the run counted after each epoch; see
    `config.measured.standing`."""
    known: dict[int, dict[str, float]] = {}
    found = []
    for epoch, values in metrics_of(path):
        known[epoch] = values
        chosen = known.get(int(values.get(SELECTED, epoch)), values)
        found.append((epoch, standing(values, chosen)))
    return found


def decode(line: bytes) -> dict[str, Any] | None:
    """Returns the entry of one line, or None if it is damaged."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "e" in entry and "t" in entry else None


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {str(key): str(value) for key, value in values.items()}


def _number(value: float) -> float | str:
    """Returns the number, or for strict JSON the text NaN, Infinity or -Infinity."""
    number = float(value)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number

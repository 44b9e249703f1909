"""Delivers one journal to one MLflow run in steps: read, send, acknowledge.

`raybust.track.flush` decides when. A step sends the entries after the acknowledged offset, one
request at a time. After a kill between sending and acknowledging, the next step sends them again,
which is harmless: the run is found by its key, tags and params are equal, and MLflow merges metrics
of equal key, step, time and value. Items that MLflow rejects permanently go to a file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from raybust.disk.lock import take
from raybust.errors import WorkError
from raybust.track.ack import Ack, load_ack, record_rejected, save_ack
from raybust.track.client import (
    RUN_KEY,
    ensure_experiment,
    ensure_run,
    is_gone,
    is_permanent,
    load_mlflow,
    open_client,
    reason_of,
    store_identity,
    store_lock,
)
from raybust.track.journal import RUN_ID, decode
from raybust.track.names import (
    DATASET_LIMIT,
    DIGEST_LIMIT,
    KEY_LIMIT,
    PARAM_LIMIT,
    TAG_LIMIT,
    safe_key,
    safe_number,
    safe_run_key,
    safe_value,
)
from raybust.track.registry import register_version
from raybust.track.uri import safe_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_READ_BYTES = 2_000_000
_REQUEST_CHARACTERS = 400_000
_REQUEST_ITEMS = {"Metric": 1000, "Param": 100, "RunTag": 100}


class UndeliveredError(WorkError):
    """A step failed for now; delivered entries are acknowledged, the rest stays in the journal."""


class BusyError(UndeliveredError):
    """Another process is delivering the journal."""


@dataclasses.dataclass
class _Batch:
    """A section of the journal in MLflow's terms."""

    name: str | None = None
    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    params: dict[str, str] = dataclasses.field(default_factory=dict)
    metrics: list[tuple[str, float, int, int]] = dataclasses.field(default_factory=list)
    files: list[int] = dataclasses.field(default_factory=list)
    dataset: Mapping[str, str] | None = None
    status: str | None = None
    time: int = 0

    def add(self, entry: Mapping[str, Any], offset: int) -> None:
        """Adds one entry; later tags and statuses override earlier ones."""
        kind = entry["e"]
        if kind == "metrics":
            self.metrics += [
                (safe_key(key), safe_number(value), entry["t"], entry["step"])
                for key, value in entry["values"].items()
            ]
        elif kind in ("artifact", "text", "register"):
            self.files.append(offset)
        elif kind == "tags":
            self._tag(entry["tags"])
        elif kind == "start":
            self.name, self.status = safe_value(entry["name"], KEY_LIMIT), "RUNNING"
            self.params |= {
                safe_key(key): safe_value(value, PARAM_LIMIT)
                for key, value in entry["params"].items()
            }
            self.dataset = entry.get("dataset")
            own = {RUN_KEY: safe_run_key(entry["run"]), "raybust.attempt": "1"}
            self._tag({**entry["tags"], **own})
        elif kind == "resume":
            self.status = "RUNNING"
            self._tag({"raybust.attempt": str(entry["attempt"])})
        elif kind == "end":
            self.status, self.time = entry["status"], entry["t"]
            self._tag({"raybust.stop_reason": entry["reason"]})

    def _tag(self, tags: Mapping[str, str]) -> None:
        self.tags |= {safe_key(key): safe_value(value, TAG_LIMIT) for key, value in tags.items()}


class Delivery:
    """Delivers one journal, without a thread and without waiting between attempts.

    Args:
        journal: the journal's file; it may not exist yet.
        uri: the store.
        out: folder of a new experiment's artifacts if the store is a database other than SQLite;
            defaults to the journal's folder.
    """

    def __init__(self, journal: str | Path, uri: str, out: str | Path | None = None) -> None:
        self.journal = Path(journal).absolute()
        self.rejected = 0
        self._uri = uri
        self._out = self.journal.parent if out is None else out
        self._client: MlflowClient | None = None
        self._ack: Ack | None = None
        self._sent: dict[str, set[int]] | None = None

    def step(self) -> bool:
        """Delivers the next section; returns whether the whole journal is delivered.

        Raises:
            UndeliveredError: delivery failed for now, with the reason in one line.
        """
        try:
            if not self.journal.exists():
                return True
            if self._ack is not None and self._ack.done(self.journal.stat().st_size):
                return True
            with self.journal.open("r+b") as file:
                if not take(file):
                    raise BusyError(f"{self.journal}: another process is delivering it")
                return self._step(file)
        except UndeliveredError:
            raise
        except Exception as error:
            if is_gone(error) and self._ack is not None:
                self._ack = Ack(self._ack.store, self._ack.began)
                save_ack(self.journal, self._ack)
            raise UndeliveredError(reason_of(error, self._uri)) from error

    def _step(self, file: BinaryIO) -> bool:
        line = file.readline()
        if not line.endswith(b"\n"):
            return True
        head = decode(line)
        if head is None or head["e"] not in ("start", "attach"):
            raise UndeliveredError(f"{self.journal}: does not begin with a run's start entry")
        ack = load_ack(self.journal)
        if ack is None or (ack.store, ack.began) != (safe_uri(self._uri), head["t"]):
            ack = Ack(safe_uri(self._uri), head["t"])
        if self._client is None or not ack.run_id:
            ack = self._open(head, ack)
        self._ack = ack
        batch, offset = self._read(file, ack.offset)
        self._send(ack.run_id, batch)
        self._ack = dataclasses.replace(
            ack, offset=offset, pending=tuple(dict.fromkeys([*ack.pending, *batch.files]))
        )
        if self._ack != ack:
            save_ack(self.journal, self._ack)
        self._upload(file)
        return self._ack.done(self.journal.stat().st_size)

    def _open(self, head: Mapping[str, Any], ack: Ack) -> Ack:
        """Opens the client and finds or creates the run and its parent."""
        load_mlflow()
        with store_lock(self._uri):
            client = self._client = open_client(self._uri)
            experiment = ensure_experiment(client, self._uri, head["experiment"], self._out)
            identity = store_identity(client)
            if ack.run_id and ack.identity == identity:
                return ack
            name = safe_value(head.get("name") or head["run"], KEY_LIMIT)
            run_id, existed = ensure_run(client, experiment, head["run"], name, head["t"])
            parent = head.get("parent")
            if parent:
                parent_id, _ = ensure_run(client, experiment, parent, parent, head["t"])
                client.set_tag(run_id, "mlflow.parentRunId", parent_id)
        self._sent = {} if existed and head["e"] == "start" else None
        return Ack(ack.store, ack.began, run_id, identity=identity)

    def _read(self, file: BinaryIO, offset: int) -> tuple[_Batch, int]:
        file.seek(offset)
        batch, end = _Batch(), offset
        for line in file:
            if not line.endswith(b"\n"):
                break
            entry = decode(line)
            if entry is None:
                self._reject({"line at byte": end}, "not a journal entry: the file is damaged here")
            else:
                batch.add(entry, end)
            end += len(line)
            if end - offset > _READ_BYTES:
                break
        return batch, end

    def _send(self, run_id: str, batch: _Batch) -> None:
        from mlflow.entities import Metric, Param, RunTag

        assert self._client is not None
        if batch.name is not None:
            self._client.update_run(run_id, name=batch.name)
        items: list[Any] = [
            RunTag(key, value.replace(RUN_ID, run_id)) for key, value in batch.tags.items()
        ]
        items += [Param(key, value) for key, value in batch.params.items()]
        items += [
            Metric(key, value, time, step)
            for key, value, time, step in batch.metrics
            if step not in self._steps_of(run_id, key)
        ]
        for request in _requests(items):
            self._send_items(run_id, request)
        if batch.dataset is not None:
            self._send_dataset(run_id, batch.dataset)
        if batch.status == "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        elif batch.status is not None:
            self._client.set_terminated(run_id, batch.status, batch.time)

    def _send_dataset(self, run_id: str, dataset: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        assert self._client is not None
        name = safe_value(dataset["name"], DATASET_LIMIT)
        sent = Dataset(
            name, dataset["digest"][:DIGEST_LIMIT], "local", json.dumps({"uri": dataset["source"]})
        )
        try:
            context = InputTag("mlflow.data.context", "training")
            self._client.log_inputs(run_id, [DatasetInput(sent, [context])])
        except Exception as error:
            if not is_permanent(error):
                raise
            self._reject({"dataset": name}, reason_of(error, self._uri))

    def _steps_of(self, run_id: str, key: str) -> set[int]:
        """Returns the steps of a metric already in the store, if the acknowledgment was lost."""
        if self._sent is None:
            return set()
        if key not in self._sent:
            assert self._client is not None
            self._sent[key] = {m.step for m in self._client.get_metric_history(run_id, key)}
        return self._sent[key]

    def _send_items(self, run_id: str, items: Sequence[Any]) -> None:
        """Sends one request; bisects an invalid one until the offending item is found."""
        assert self._client is not None
        kinds: dict[str, list[Any]] = {kind: [] for kind in _REQUEST_ITEMS}
        for item in items:
            kinds[type(item).__name__].append(item)
        try:
            self._client.log_batch(run_id, kinds["Metric"], kinds["Param"], kinds["RunTag"])
        except Exception as error:
            if not is_permanent(error):
                raise
            if len(items) == 1:
                self._reject({type(items[0]).__name__: items[0].key}, reason_of(error, self._uri))
                return
            middle = len(items) // 2
            self._send_items(run_id, items[:middle])
            self._send_items(run_id, items[middle:])

    def _upload(self, file: BinaryIO) -> None:
        """Uploads the pending files in order. One that fails for now does not block other files,
        only later registrations."""
        assert self._ack is not None
        failed: Exception | None = None
        for offset in self._ack.pending:
            file.seek(offset)
            entry = json.loads(file.readline())
            if failed is not None and entry["e"] == "register":
                continue
            try:
                self._upload_entry(self._ack.run_id, entry)
            except Exception as error:
                if not (is_permanent(error) or isinstance(error, FileNotFoundError)):
                    failed = error
                    continue
                key = {"text": "name", "artifact": "path", "register": "model"}[entry["e"]]
                kind = "model" if entry["e"] == "register" else "artifact"
                self._reject({kind: entry[key]}, reason_of(error, self._uri))
            pending = tuple(other for other in self._ack.pending if other != offset)
            self._ack = dataclasses.replace(self._ack, pending=pending)
            save_ack(self.journal, self._ack)
        if failed is not None:
            raise UndeliveredError(reason_of(failed, self._uri)) from failed

    def _upload_entry(self, run_id: str, entry: Mapping[str, Any]) -> None:
        assert self._client is not None
        if entry["e"] == "text":
            self._client.log_text(run_id, entry["content"], safe_key(entry["name"]))
            return
        if entry["e"] == "register":
            with store_lock(self._uri):
                register_version(self._client, run_id, entry)
            return
        path = self.journal.parent / entry["path"]
        if not path.exists():
            raise FileNotFoundError(f"{path}: no longer exists")
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        send(run_id, str(path), safe_key(entry["folder"]) if entry["folder"] else None)

    def _reject(self, what: dict[str, Any], reason: str) -> None:
        self.rejected += 1
        record_rejected(self.journal, what, reason)


def _requests(items: Sequence[Any]) -> Iterator[list[Any]]:
    """Yields the items in batches that fit MLflow's limits for one request: 1000 items, 100 params,
    100 tags, one megabyte."""
    request: list[Any] = []
    counts = dict.fromkeys(_REQUEST_ITEMS, 0)
    characters = 0
    for item in items:
        kind = type(item).__name__
        size = len(item.key) + len(str(item.value)) + 60
        full = counts[kind] >= _REQUEST_ITEMS[kind] or len(request) >= _REQUEST_ITEMS["Metric"]
        if request and (full or characters + size > _REQUEST_CHARACTERS):
            yield request
            request, counts, characters = [], dict.fromkeys(_REQUEST_ITEMS, 0), 0
        request.append(item)
        counts[kind] += 1
        characters += size
    if request:
        yield request

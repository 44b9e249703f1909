"""MLflow's client: opens it lazily and quietly, classifies its errors, creates each run just once.

A run is looked up by its tag `raybust.run_key` before it is created. Processes on one machine
serialize with a lock file. Processes on several machines number the run they created, as in
Lamport's bakery algorithm, and keep the lowest; this holds as long as their clocks differ by less
than a search takes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybust.disk.lock import take
from raybust.errors import WorkError
from raybust.track.names import safe_run_key
from raybust.track.uri import artifact_root, is_database, redact, safe_uri, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_KEY = "raybust.run_key"
STORE = "raybust.store"
_DEFAULT = "0"
_NUMBER = "raybust.number"
_NO_NUMBER = 2**63
_NUMBER_SECONDS = 5.0
_LOCK_SECONDS = 60.0
_AROUND = re.compile(
    r"\(raised as a result of Query-invoked autoflush.*?\)\s|\s*(\[SQL:|\(Background on this).*",
    re.DOTALL,
)
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


def load_mlflow() -> None:
    """Imports MLflow quietly and without telemetry; the first call takes about a second.

    MLflow reads retries and timeouts from the environment at each request. Unless the user has set
    them, they become one attempt of 15 s, because `raybust.track` retries itself.
    """
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    import mlflow  # noqa: F401

    if not os.environ.get("MLFLOW_LOGGING_LEVEL"):
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def open_client(uri: str) -> MlflowClient:
    """Returns a client of the store. The first client of a SQLite file creates the schema, so hold
    the lock."""
    load_mlflow()
    import mlflow

    if is_database(uri):
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 1  # otherwise an unreachable database blocks for 102 s
        # MLflow's own does not unescape the URI and creates a stray folder.
        utils._make_parent_dirs_if_sqlite = _make_parent
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def _make_parent(db_uri: str) -> None:
    """Creates the folder of a SQLite file."""
    file = sqlite_file(db_uri)
    if file is not None and str(file) != ":memory:":
        file.parent.mkdir(parents=True, exist_ok=True)


def reason_of(error: BaseException, uri: str) -> str:
    """Returns an error as one line of at most 500 characters, without the URI's password and
    SQLAlchemy's boilerplate."""
    text = _AROUND.sub("", redact(str(error) or type(error).__name__, uri))
    return text if len(text) <= 500 else text[:497] + "..."


def is_permanent(error: BaseException) -> bool:
    """Whether a request can never succeed: MLflow read it and found it invalid.

    Everything else is transient: 5xx, no connection, locks, the 400 of a server whose pool of
    database connections is exhausted, and a deleted run, which can be restored.
    """
    code = getattr(error, "error_code", None)
    passing = ("QueuePool limit", "must be in the 'active' state")
    return code == "INVALID_PARAMETER_VALUE" and not any(text in str(error) for text in passing)


def is_gone(error: BaseException) -> bool:
    """Whether the store reports that the requested object does not exist."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


@contextlib.contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """Holds the store's lock on this machine; the lock file is next to a SQLite file, otherwise in
    the temporary folder."""
    file = sqlite_file(uri)
    if file is None:
        name = f"raybust-{os.getuid()}-{hashlib.sha256(uri.encode()).hexdigest()[:12]}.lock"
        lock = Path(tempfile.gettempdir()) / name
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_name(file.name + ".lock")
    with lock.open("a") as handle:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not take(handle):
            if time.monotonic() > deadline:
                raise WorkError(f"{lock}: locked by another process for {_LOCK_SECONDS:.0f} s")
            time.sleep(0.05)
        yield


def ensure_experiment(client: MlflowClient, uri: str, name: str, out: str | Path) -> str:
    """Returns the id of an experiment, creating it if it is missing.

    Args:
        client: client of the store.
        uri: the store.
        name: the experiment's name.
        out: folder of a new experiment's artifacts if the store is a database.

    Raises:
        WorkError: the experiment has been deleted in MLflow.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_root(uri, out)))
        except Exception:
            found = client.get_experiment_by_name(name)  # perhaps another machine was faster
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise WorkError(
            f"experiment '{name}' is deleted in {safe_uri(uri)}: restore it there, or choose"
            " another with track.experiment"
        )
    return str(found.experiment_id)


def store_identity(client: MlflowClient) -> str:
    """Returns what tells this store from another one at the same URI: a random tag of MLflow's
    default experiment, set when it is missing; "" where the store does not allow that."""
    try:
        found = client.get_experiment(_DEFAULT)
        if STORE not in found.tags:
            client.set_experiment_tag(_DEFAULT, STORE, uuid.uuid4().hex)
            found = client.get_experiment(_DEFAULT)
    except Exception as error:
        if not (is_gone(error) or is_permanent(error)):
            raise
        return ""
    return str(found.tags.get(STORE, ""))


def find_key(client: MlflowClient, experiment_id: str, run_key: str) -> Any | None:
    """Returns the run with a key, the lowest-numbered one of several, or None. Waits for a run that
    another machine has just created to get its number."""
    text = f"tags.`{RUN_KEY}` = '{safe_run_key(run_key)}'"
    deadline = time.monotonic() + _NUMBER_SECONDS
    while True:
        runs = client.search_runs([experiment_id], text, max_results=100)
        numbers = {r.info.run_id: int(r.data.tags.get(_NUMBER, _NO_NUMBER)) for r in runs}
        if _NO_NUMBER not in numbers.values() or time.monotonic() > deadline:
            return min(runs, key=lambda r: (numbers[r.info.run_id], r.info.run_id), default=None)
        time.sleep(0.05)


def ensure_run(
    client: MlflowClient, experiment_id: str, run_key: str, name: str, start_ms: int
) -> tuple[str, bool]:
    """Returns the id of a key's run and whether it already existed; the caller holds the lock."""
    found = find_key(client, experiment_id, run_key)
    if found is not None:
        if _NUMBER not in found.data.tags:  # its creator died before numbering it
            client.set_tag(found.info.run_id, _NUMBER, str(time.time_ns()))
        return str(found.info.run_id), True
    tags = {RUN_KEY: safe_run_key(run_key)}
    made = client.create_run(experiment_id, start_time=start_ms, tags=tags, run_name=name)
    client.set_tag(made.info.run_id, _NUMBER, str(time.time_ns()))
    first = find_key(client, experiment_id, run_key) or made
    if first.info.run_id != made.info.run_id:
        client.delete_run(made.info.run_id)
        return str(first.info.run_id), True
    return str(made.info.run_id), False

"""The driver's use of the store: prepares it before workers start, searches it, shows it in a UI.

For `train`, `tune`, `certify RUN` and `ui`. An unreachable server is only a warning, because
journals keep what it misses.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybust.errors import RequestError, WorkError, unknown
from raybust.track.client import (
    RUN_KEY,
    ensure_experiment,
    is_gone,
    is_permanent,
    open_client,
    reason_of,
    store_lock,
)
from raybust.track.moved import follow
from raybust.track.uri import is_database, safe_uri, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SEARCHED = 1000


def prepare(uri: str, out: str | Path, experiment: str) -> str | None:
    """Prepares the store: creates schema and experiment before any worker needs them.

    Args:
        uri: the store, from `resolve_uri`.
        out: the output folder.
        experiment: the experiment's name.

    Returns:
        None, or a one-line warning that the server is unreachable: the journals keep everything,
        and `sync` sends it later.

    Raises:
        RequestError: the database cannot be opened or written, or the experiment is deleted.
    """
    shown = safe_uri(uri)
    try:
        with store_lock(uri):
            _check_writable(uri)
            follow(uri, out)
            ensure_experiment(open_client(uri), uri, experiment, out)
    except WorkError as error:
        raise RequestError(str(error)) from None
    except Exception as error:
        reason = reason_of(error, uri)
        if is_database(uri) or is_permanent(error):
            raise RequestError(f"{shown}: the MLflow store cannot be used: {reason}") from None
        return (
            f"MLflow at {shown} cannot be used now ({reason}); the journals keep everything and"
            " send it once the server is back"
        )
    return None


@dataclasses.dataclass(frozen=True)
class FoundRun:
    """A run in the store.

    Attributes:
        run_id: MLflow's id.
        run_key: raybust's key, "" for a run that raybust did not create.
        name: its name.
        experiment: its experiment's name.
        status: RUNNING, FINISHED, FAILED or KILLED.
        tags: its tags, without MLflow's own.
        params: its parameters.
        metrics: the last value of each metric.
    """

    run_id: str
    run_key: str
    name: str
    experiment: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]


def find_run(uri: str, name_or_id: str) -> FoundRun:
    """Returns a run by MLflow id, name, or run key; the newest of several.

    Raises:
        RequestError: no run matches (names the closest of the newest 1000 runs), or the store
            cannot be reached.
    """
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise RequestError(f"unknown run '{name_or_id}': the store {file} does not exist yet")
    try:
        client = open_client(uri)
        names = {e.experiment_id: e.name for e in client.search_experiments()}
        try:
            found = [client.get_run(name_or_id)]
        except Exception as error:
            if not (is_gone(error) or is_permanent(error)):
                raise
            found = _search(client, list(names), name_or_id)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"{safe_uri(uri)}: {reason_of(error, uri)}") from None
    run = found[0]
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    return FoundRun(
        run_id=run.info.run_id,
        run_key=tags.get(RUN_KEY, ""),
        name=run.info.run_name,
        experiment=names.get(run.info.experiment_id, ""),
        status=run.info.status,
        tags=tags,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
    )


def _search(client: MlflowClient, experiments: list[str], name: str) -> list[Any]:
    """Returns the runs with a name or key, at least one, newest first."""
    newest = ["attributes.start_time DESC"]
    quote = '"' if "'" in name else "'"
    for field in ("attributes.run_name", f"tags.`{RUN_KEY}`"):
        text = f"{field} = {quote}{name}{quote}"
        found = client.search_runs(experiments, text, order_by=newest) if '"' not in name else []
        if found:
            return list(found)
    known = client.search_runs(experiments, max_results=_SEARCHED, order_by=newest)
    raise unknown("run", name, {str(run.info.run_name) for run in known})


def ui_command(uri: str, out: str | Path, port: int = 5000) -> tuple[list[str], dict[str, str]]:
    """Returns the command that serves a store's UI on 127.0.0.1, and environment variables to add
    for it. They include the URI, so that no process list shows it.

    Raises:
        RequestError: the store is a server, which serves its own UI, or the SQLite file does not
            exist yet.
    """
    if not is_database(uri):
        raise RequestError(f"the store is a server with its own UI: open {safe_uri(uri)}")
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise RequestError(f"{file}: there is nothing to show yet; train or tune first")
    artifacts = (file.parent if file else Path(out).absolute()) / "mlartifacts"
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", "localhost:*,127.0.0.1:*"]  # against DNS rebinding
    command += ["--uvicorn-opts", "--log-level warning"]  # a line for each request otherwise
    return command, {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_ARTIFACTS_DESTINATION": str(artifacts),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "PYTHONWARNINGS": "ignore",
    }


def _check_writable(uri: str) -> None:
    """Raises if a SQLite file can be read but not written."""
    file = sqlite_file(uri)
    if file is not None:
        import sqlite3

        connection = sqlite3.connect(file, timeout=5)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE raybust_probe (x)")
            connection.rollback()
        finally:
            connection.close()

"""The store as the driver sees it: made ready before workers start, searched, shown in a UI.

In the arrow: track; for `train`, `tune`, `certify RUN` and `ui`. A server that is away is a warning
here, because journals keep what it misses.
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
from raybust.track.uri import is_database, safe_uri, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SEARCHED = 1000


def prepare(uri: str, out: str | Path, experiment: str) -> str | None:
    """Makes the store ready: schema and experiment exist before any worker asks for them.

    Args:
        uri: the store, from `resolve_uri`.
        out: the folder in which everything lands.
        experiment: the experiment's name.

    Returns:
        None, or one line that warns of a server that is away: training goes on, the journals keep
        everything, and `sync` sends it later.

    Raises:
        RequestError: a database that cannot be opened or written, or a deleted experiment.
    """
    shown = safe_uri(uri)
    try:
        with store_lock(uri):
            _check_writable(uri)
            ensure_experiment(open_client(uri), uri, experiment, out)
    except WorkError as error:
        raise RequestError(str(error)) from None
    except Exception as error:
        reason = reason_of(error, uri)
        if is_database(uri) or is_permanent(error):
            raise RequestError(f"{shown}: the MLflow store cannot be used: {reason}") from None
        return (
            f"MLflow at {shown} cannot be used now ({reason}); the runs are kept in their journals"
            " and sent when it is back"
        )
    return None


@dataclasses.dataclass(frozen=True)
class FoundRun:
    """A run as the store has it.

    Attributes:
        run_id: MLflow's id.
        run_key: raybust's key, "" for a run that raybust did not make.
        name: its name.
        experiment: its experiment's name.
        status: RUNNING, FINISHED, FAILED or KILLED.
        tags: its tags, MLflow's own left out.
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
    """Returns a run by MLflow's id, by its name, or by its run key; the newest of several.

    Raises:
        RequestError: there is none, with the nearest names of the newest 1000 runs; or the store
            cannot be reached.
    """
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise RequestError(f"unknown run '{name_or_id}': there is no store at {file} yet")
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
    """Returns the runs of that name or key, newest first; there is at least one."""
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
    """Returns the command that shows a store's UI on 127.0.0.1, and what it needs in the
    environment on top of the caller's; the URI goes there, where no process list shows it.

    Raises:
        RequestError: the store is a server, which has its UI at its own address; or the SQLite
            file does not exist yet.
    """
    if not is_database(uri):
        raise RequestError(f"the store is a server with its own UI: open {safe_uri(uri)}")
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise RequestError(f"{file}: there is nothing to show yet; train or tune first")
    artifacts = (file.parent if file else Path(out).absolute()) / "mlartifacts"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", "localhost:*,127.0.0.1:*"]  # no page's own name for 127.0.0.1
    return command, {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_ARTIFACTS_DESTINATION": str(artifacts),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _check_writable(uri: str) -> None:
    """Raises where a SQLite file can be read but not written."""
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

"""`raybust ui`: MLflow's pages of the runs, and Optuna's dashboard of a sweep, on this machine.

The first link leads to a table with the columns that matter, sorted by the metric of the newest
sweep, or of the sweep that was named. Both servers end with the command.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path
from typing import NoReturn

from raybust import config as configuration
from raybust import methods, track
from raybust.config import Config
from raybust.disk import runs
from raybust.errors import RequestError, WorkError
from raybust.search import dashboard
from raybust.search.board import SEARCH
from raybust.stages.bars import Echo

_START_S, _END_S, _POLL_S = 120.0, 10.0, 0.2
_LAST_PORT = 65535


def browse(config: Config, sweep: Path | None, port: int, echo: Echo, *, opened: bool) -> int:
    """Serves the pages until Ctrl-C; returns MLflow's exit code if its server ends by itself.

    Args:
        config: sets the store and its experiment.
        sweep: folder of a sweep whose trials are to be shown; None for all runs.
        port: of MLflow, on 127.0.0.1; the dashboard takes the next one, or after the last port the
            one before.
        echo: prints a line.
        opened: open the first page in a browser, where there is a screen.

    Raises:
        RequestError: there is no store yet, a port is taken, or `sweep` is no sweep.
        WorkError: MLflow's server did not start.
    """
    folder = runs.out_folder(config)
    uri = track.resolve_uri(config.track, folder)
    command, environment = track.ui_command(uri, folder, port)
    key = None if sweep is None else _key(sweep)
    _check_free(port)
    address = f"http://127.0.0.1:{port}"
    signal.signal(signal.SIGTERM, _end)
    server = subprocess.Popen(  # noqa: S603
        command, env={**os.environ, **environment}, start_new_session=True
    )
    try:
        pages = track.links(uri, config.track.experiment, key)
        found = {what: f"{address}{page}" for what, page in pages.items()}
        found |= _dashboard(sweep, port + 1 if port < _LAST_PORT else port - 1, echo)
        _wait(server, f"{address}/health")
        echo(f"MLflow of {track.safe_uri(uri)} (Ctrl-C to stop)")
        wide = max(map(len, found))
        for what, page in found.items():
            echo(f"{what:<{wide}}  {page}")
        if opened and _has_screen():
            webbrowser.open(next(iter(found.values())))
        return server.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(_END_S)


def _end(number: int, frame: object) -> NoReturn:
    """Ends the command, and so the servers, on SIGTERM."""
    raise SystemExit(128 + number)


def _key(sweep: Path) -> str:
    """Returns a sweep's key in the tracking store."""
    identity = runs.read_identity(sweep)
    if identity.kind != "sweep":
        raise RequestError(f"{sweep.name}: is a {identity.kind}, expected a sweep")
    return identity.uid


def _dashboard(sweep: Path | None, port: int, echo: Echo) -> dict[str, str]:
    """Serves Optuna's dashboard of a sweep if it is installed; returns its page."""
    if sweep is None:
        return {}
    if not dashboard.installed():
        echo("Optuna's dashboard of the sweep needs: pip install 'raybust[dashboard]'")
        return {}
    identity = runs.read_identity(sweep)
    plain = {key: value for key, value in identity.config.items() if key != SEARCH}
    config = configuration.from_dict(plain, methods.get)
    return {"Optuna": dashboard.serve(config, sweep, identity.uid, port)}


def _check_free(port: int) -> None:
    """Raises a RequestError if something listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise RequestError(
                f"--port: {port} cannot be used ({error.strerror}); choose another"
            ) from None


def _wait(server: subprocess.Popen[bytes], health: str) -> None:
    """Waits until a server answers."""
    deadline = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(health, timeout=5):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_S)
    if server.poll() is not None:
        code = server.returncode
        raise WorkError(f"MLflow's server ended with code {code}; see its output above")
    raise WorkError(f"MLflow's server did not start within {_START_S:.0f} s; see its output above")


def _has_screen() -> bool:
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )

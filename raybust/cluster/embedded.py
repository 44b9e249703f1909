"""Ray on this machine, for one command: on loopback, with a token and a folder of its own.

Ray itself listens on every interface, keeps one token for all of a user's sessions in the home
folder, and takes the temporary folder as it is. If one of its servers dies, the command ends in one
line instead of Ray's abort.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from raybust.errors import RequestError, WorkError

LOOPBACK = "127.0.0.1"
_SERVERS = ("gcs_server", "raylet")
_LONGEST_FOLDER = 40
"""Characters of a folder in which Ray's sockets have names of at most 107 bytes."""
_WATCH_S = 0.5
_STARTS = 3
"""Attempts to start Ray, which gives its servers 30 s; a busy machine may need more."""


@contextmanager
def embedded(ray: Any, **options: Any) -> Iterator[None]:
    """Starts Ray and stops it at the end.

    Args:
        ray: the module, not connected.
        options: of `ray.init`.

    Raises:
        RequestError: no folder can hold Ray's sockets.
        WorkError: Ray does not start.
    """
    _start(ray, options)
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(over,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()
        ray.shutdown()


def _start(ray: Any, options: dict[str, Any]) -> None:
    folder = session_folder()
    options = {"_node_ip_address": LOOPBACK, "dashboard_host": LOOPBACK, **options}
    for left in reversed(range(_STARTS)):
        before = psutil.Process().children(recursive=True)
        try:
            with _environment(), _on_loopback(), _without(_unused(options)):
                ray.init(address="local", _temp_dir=str(folder), **options)
            return
        except Exception as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            if left and "timed out" in text:
                _kill(set(psutil.Process().children(recursive=True)) - set(before))
                continue
            raise WorkError(
                f"Ray did not start on this machine: {text}; rerun the same command, or see the"
                f" logs in {folder}/session_latest/logs"
            ) from error


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def _environment() -> Iterator[None]:
    """Gives the processes of a Ray started inside the context its address and a secret token, the
    user's own if one is in the environment.

    Without the address, the State API in those processes expects exactly one Ray on the machine and
    fails if there are several: a multi-worker trial that is stopped would keep its CPUs.
    """
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = str(free.getsockname()[1])
    own = {
        "RAY_GCS_SERVER_PORT": port,
        "RAY_ADDRESS": f"{LOOPBACK}:{port}",
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
    }
    keys = (*own, "RAY_AUTH_MODE")  # Ray sets the mode
    before = {key: os.environ.get(key) for key in keys}
    os.environ.update(own)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Keeps Ray from replacing the loopback address by that of a network interface."""
    from ray._private import services

    before = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = before


def _unused(options: Mapping[str, Any]) -> list[str]:
    """Returns which servers of Ray's nobody asks here, as the methods that start them: the
    autoscaler's; that which forwards the workers' output, unless it is shown; without a dashboard
    its server, which then only reports usage, while `ray.init` waits for it."""
    asked = {
        "start_monitor": False,
        "start_log_monitor": options.get("log_to_driver", True),
        "start_api_server": options.get("include_dashboard", True),
    }
    return [start for start, used in asked.items() if not used]


@contextmanager
def _without(starts: Iterable[str]) -> Iterator[None]:
    """Keeps Ray from starting some of its servers inside the context."""
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in starts}
    for name in before:
        setattr(Node, name, lambda node, **options: None)
    try:
        yield
    finally:
        for name, start in before.items():
            setattr(Node, name, start)


def session_folder() -> Path:
    """Returns the folder of Ray's sessions, this user's own: `RAY_TMPDIR` if set, else in the
    temporary folder, or where that is too long or cannot be written, in /tmp or in memory.

    Raises:
        RequestError: none can be used.
    """
    named = os.environ.get("RAY_TMPDIR")
    places = [named] if named else [os.environ.get("TMPDIR") or "/tmp", "/tmp", "/dev/shm"]  # noqa: S108
    tried = []
    for place in dict.fromkeys(places):
        folder = Path(place).absolute() / f"ray-{os.getuid()}"
        if len(os.fsencode(folder)) > _LONGEST_FOLDER:
            tried.append(f"{place} is longer than {_LONGEST_FOLDER - 10} characters")
            continue
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            tried.append(f"{place}: {error.strerror}")
    raise RequestError(
        f"no folder for Ray's sockets: {'; '.join(tried)}; set RAY_TMPDIR to a short folder of your"
        " own"
    )


def _watch(over: threading.Event) -> None:
    """Ends this process with one line if one of Ray's servers dies."""
    own = psutil.Process()
    servers = [child for child in own.children() if child.name() in _SERVERS]
    while not over.wait(_WATCH_S):
        dead = [server.name() for server in servers if _is_dead(server)]
        if dead and not over.is_set():
            print(
                f"raybust: Ray's {dead[0]} died on this machine; finished work is kept; rerun the"
                " same command to resume",
                file=sys.stderr,
                flush=True,
            )
            _kill(own.children(recursive=True))
            os._exit(1)


def _is_dead(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True

"""Optuna's dashboard of a sweep's study, on loopback, from the extra `dashboard`.

It reads the study that the sweep writes, so it also shows a sweep that is running. Whoever can
reach the port on this machine can rename and delete the study.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from raybust.config import Config
from raybust.errors import RequestError
from raybust.search.database import load_study

_HOST = "127.0.0.1"
_OWN_NAMES = (_HOST, "localhost")


def installed() -> bool:
    """Returns whether the extra is installed."""
    return find_spec("optuna_dashboard") is not None


def serve(config: Config, folder: Path, uid: str, port: int) -> str:
    """Serves the dashboard from a thread of this process until that ends; returns its address.

    Args:
        config: of the sweep.
        folder: the sweep's.
        uid: the sweep's key.
        port: on 127.0.0.1.

    Raises:
        RequestError: there is no study, or the port is taken.
    """
    from optuna_dashboard import wsgi

    study = load_study(config, folder, uid)
    number = study._study_id
    application = _for_own_names(wsgi(study._storage))
    try:
        server = make_server(_HOST, port, application, _Server, _Quiet)
    except OSError as error:
        raise RequestError(f"port {port}: {error.strerror}; choose another with --port") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://{_HOST}:{port}/dashboard/studies/{number}"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Logs nothing."""


def _for_own_names(application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Refuses requests for another host's name, against DNS rebinding."""

    def checked(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environment.get("HTTP_HOST", "").partition(":")[0] not in _OWN_NAMES:
            start("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"only for 127.0.0.1 and localhost\n"]
        return application(environment, start)

    return checked

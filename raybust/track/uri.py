"""Tracking URIs: resolves them, locates their artifacts, removes passwords for display.

Workers and driver have different working directories, so local paths become absolute here, before
the driver starts.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

from raybust.errors import RequestError

_SQLITE = "sqlite:///"
_SPECIAL = "?%#"
_REMOTE = ("http", "https", "databricks")
_DATABASES = ("postgresql", "mysql", "mssql", "sqlite")
_ADVICE = (
    "expected sqlite:///PATH/mlflow.db, http(s)://HOST:PORT, or a database such as"
    " postgresql://HOST/NAME"
)


class _Track(Protocol):
    @property
    def uri(self) -> str | None: ...


def resolve_uri(track: _Track, out: str | Path) -> str:
    """Returns the tracking URI: `track.uri`, then $MLFLOW_TRACKING_URI, then OUT/mlflow.db.

    Args:
        track: the section `track` of the configuration.
        out: the output folder.

    Raises:
        RequestError: a file store, a bare path, an unknown scheme, or an in-memory database.
    """
    source, uri = "track.uri", track.uri
    if not uri:
        source, uri = "MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        if "://" in str(out):
            raise RequestError(
                f"track.uri: not set, and out={safe_uri(str(out))} cannot hold a database;"
                f" {_ADVICE}"
            )
        return sqlite_uri(Path(out).absolute() / "mlflow.db")
    scheme = uri.partition(":")[0].partition("+")[0].lower() if ":" in uri else ""
    if scheme in ("", "file") or scheme not in _REMOTE + _DATABASES:
        what = "a file store, which MLflow dropped" if scheme in ("", "file") else "unknown"
        raise RequestError(f"{source}: got '{safe_uri(uri)}', {what}; {_ADVICE}")
    return _absolute_sqlite(uri, source) if scheme == "sqlite" else uri


def sqlite_uri(file: Path) -> str:
    """Returns the URI of a SQLite file, with ?, % and # in the path escaped.

    Args:
        file: absolute path.
    """
    path = str(file)
    return f"{_SQLITE}{quote(path) if set(path) & set(_SPECIAL) else path}"


def sqlite_file(uri: str) -> Path | None:
    """Returns the file of a SQLite URI, or None for any other store."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(unquote(uri[len(_SQLITE) :].partition("?")[0]).removeprefix("file:"))


def is_database(uri: str) -> bool:
    """Whether the client opens the database directly, without a server in between."""
    return uri.partition(":")[0].partition("+")[0].lower() in _DATABASES


def artifact_root(uri: str, out: str | Path) -> str | None:
    """Returns where a new experiment's artifacts go: next to a SQLite file, under `out` for other
    databases; None if the server decides."""
    if not is_database(uri):
        return None
    file = sqlite_file(uri)
    if file is None and "://" in str(out):
        return f"{str(out).rstrip('/')}/mlartifacts"
    root = (file.parent if file else Path(out).absolute()) / "mlartifacts"
    return root.as_uri() if set(str(root)) & set(_SPECIAL) else str(root)


def safe_uri(uri: str) -> str:
    """Returns the URI without password and token, for messages and logs."""
    shown = re.sub(r"(://[^/\s:@]*):\S*@", r"\1:***@", uri)
    return re.sub(
        r"(?i)([?&][^=&\s]*(?:password|passwd|token|secret)[^=&\s]*=)[^&\s]*", r"\1***", shown
    )


def redact(text: str, uri: str) -> str:
    """Returns third-party text, such as an error, as one line without the URI's password."""
    shown = safe_uri(" ".join(text.replace(uri, safe_uri(uri)).split()))
    userinfo = re.match(r"[^:]+://[^/:@]*:(.+)@", uri)
    if userinfo:
        for secret in (userinfo[1], unquote(userinfo[1])):
            shown = shown.replace(secret, "***")
    return shown


def _absolute_sqlite(uri: str, source: str) -> str:
    rest, _, query = uri.removeprefix(_SQLITE).partition("?")
    if not uri.startswith(_SQLITE) or rest in ("", ":memory:"):
        raise RequestError(f"{source}: got '{uri}', expected a file: sqlite:///PATH/mlflow.db")
    if rest.startswith("file:"):
        return uri
    return f"{_SQLITE}{Path(rest).expanduser().absolute()}" + (f"?{query}" if query else "")

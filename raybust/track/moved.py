"""Follows an embedded MLflow store whose folder was moved or copied.

MLflow records the absolute path of every artifact in its database, so artifacts and registered
versions would be looked for where the folder was. MLflow has no call to change them; tables and
columns below are those of MLflow 3.17.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from raybust.track.uri import artifact_root, sqlite_file

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
_FOLDER = "mlartifacts"


def follow(uri: str, out: str | Path) -> None:
    """Points an embedded store to the artifacts beside its file, if they are there and it names
    those of another folder.

    Args:
        uri: the store; any other than a SQLite file is left alone.
        out: the output folder.
    """
    file, root = sqlite_file(uri), artifact_root(uri, out)
    if file is None or root is None or not (file.parent / _FOLDER).is_dir() or not file.exists():
        return
    with closing(sqlite3.connect(file, timeout=5)) as database, database:
        names = "select name from sqlite_master where type = 'table'"
        tables = {name for (name,) in database.execute(names)}
        if "experiments" not in tables:
            return
        known = {
            place for (place,) in database.execute("select artifact_location from experiments")
        }
        for old in (place for place in known if place.endswith(f"/{_FOLDER}") and place != root):
            for table, column in _COLUMNS:
                if table in tables:
                    database.execute(
                        f"update {table} set {column} = ? || substr({column}, ?)"  # noqa: S608
                        f" where {column} = ? or substr({column}, 1, ?) = ?",
                        (root, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )

"""Files of results: put in their place at once, read whole, earlier versions kept beside them.

A kill or a full disk leaves what was there; a reader never finds half of a file. Used by all
stages that write results.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from raybust.errors import RequestError


def replace_text(path: Path, text: str) -> None:
    """Puts a file in its place at once: whole, or as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object that a result's file holds.

    Raises:
        RequestError: it holds none.
    """
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    except (OSError, ValueError):
        pass
    raise RequestError(f"{path}: is no whole result; the command that made it makes it again")


def put_aside(path: Path) -> None:
    """Keeps a file, if it is there, beside itself, under the time of its last change in ns."""
    if path.exists():
        path.rename(path.with_suffix(f".{path.stat().st_mtime_ns}{path.suffix}"))


def kept_aside(path: Path) -> int:
    """Returns how many earlier versions of a file were put aside: the step of its metrics, so that
    those of the newest are the last ones."""
    name = re.compile(rf"{re.escape(path.stem)}\.\d{{10,}}{re.escape(path.suffix)}")
    return sum(name.fullmatch(other.name) is not None for other in path.parent.iterdir())

"""Files of results: put in their place at once, read whole, earlier versions kept beside them.

A kill or a full disk leaves what was there; a reader never finds half of a file. Used by all
stages that write results.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from raybust.errors import RequestError

STEPS = ".steps"
_ASIDE = re.compile(r"\.\d{15,}(\.|$)")
_MADE = re.compile(r"(\.robustbench-[^.]*(\.\d+)?)?\.(tsv|jsonl|json|md|png)")


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
    """Keeps a result, if it is there, beside itself, under the time of its last change in ns: the
    file and what was made of it, such as its table and picture. Its journal stays, because what it
    has sent is not to be sent again."""
    if not path.exists():
        return
    aside = f"{path.stem}.{path.stat().st_mtime_ns}"
    for file in sorted(path.parent.iterdir()):
        rest = file.name.removeprefix(path.stem)
        if rest != file.name and _MADE.fullmatch(rest):
            file.rename(file.with_name(aside + rest))


def is_aside(path: Path) -> bool:
    """Returns whether a file was put aside: it is of an earlier result."""
    return _ASIDE.search(path.name) is not None


def step_of(path: Path, header: str) -> int:
    """Returns the step of a result's metrics in MLflow: each protocol has its own, in the order in
    which they came. The file `.steps` beside the results keeps them.

    Args:
        path: a file of the result; its folder holds those of the other protocols of the run.
        header: all that the result depends on.
    """
    ledger = path.with_name(STEPS)
    steps: dict[str, int] = read_json(ledger) if ledger.exists() else {}
    key = hashlib.sha256(header.encode()).hexdigest()[:16]
    if key not in steps:
        # Results that raybust 0.1 left here, without a ledger, have the steps below.
        earlier = len(list(path.parent.glob(f"*{path.suffix}"))) - 1
        steps[key] = 1 + max(steps.values(), default=earlier - 1)
        replace_text(ledger, json.dumps(steps, indent=1) + "\n")
    return steps[key]

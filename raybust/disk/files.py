"""Result files: atomic writes, checked reads, earlier versions kept next to them.

A kill or a full disk leaves the old file intact; readers never see a partial one. Used by all
stages that write results.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

from raybust.errors import RequestError

STEPS = ".steps"
_ASIDE = re.compile(r"\.\d{15,}(\.|$)")
_SUFFIX = re.compile(r"(\.robustbench-[^.]*(\.\d+)?)?\.(tsv|jsonl|json|md|png)")


def replace_text(path: Path, text: str) -> None:
    """Writes a file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def to_json(plain: Any) -> str:
    """Returns data as strict JSON, see `strict`."""
    return json.dumps(strict(plain), indent=1, allow_nan=False)


def strict(plain: Any) -> Any:
    """Returns data that JSON has: numbers that it does not have (NaN, infinity) become None, tuples
    lists, paths text."""
    if isinstance(plain, dict):
        return {key: strict(value) for key, value in plain.items()}
    if isinstance(plain, (list, tuple)):
        return [strict(value) for value in plain]
    if isinstance(plain, float) and not math.isfinite(plain):
        return None
    return str(plain) if isinstance(plain, Path) else plain


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a result file.

    Raises:
        RequestError: there is none.
    """
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    except (OSError, ValueError):
        pass
    raise RequestError(f"{path}: is not a complete result; rerun the command that made it")


def digest_of(plain: Any) -> str:
    """Returns a digest of JSON data without its own key `digest`, by which an edited result is
    told. It is the same before and after writing."""
    read = json.loads(json.dumps(plain))  # keys are text in files, tuples lists
    if isinstance(read, dict):
        read.pop("digest", None)
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]


def check_digest(path: Path, whole: dict[str, Any], command: str) -> None:
    """Rejects a result that was changed after it was written; those without a digest are of raybust
    0.1.

    Args:
        path: of the result.
        whole: its content.
        command: writes it again.

    Raises:
        RequestError: it was changed.
    """
    if whole.get("digest") not in (None, digest_of(whole)):
        raise RequestError(f"{path}: was changed after it was written; run `{command}` again")


def put_aside(path: Path) -> None:
    """Renames a result, if it exists, and the files made from it, such as its table and plot, by
    adding its modification time in ns. Its journal stays, so that nothing is sent twice."""
    if not path.exists():
        return
    aside = f"{path.stem}.{path.stat().st_mtime_ns}"
    for file in sorted(path.parent.iterdir()):
        rest = file.name.removeprefix(path.stem)
        if rest != file.name and _SUFFIX.fullmatch(rest):
            file.rename(file.with_name(aside + rest))


def is_aside(path: Path) -> bool:
    """Returns whether a file belongs to a result that was put aside."""
    return _ASIDE.search(path.name) is not None


def step_of(path: Path, header: str) -> int:
    """Returns the MLflow step of a result's metrics: one per protocol, the newest measurement last.
    A protocol that is measured again after another one gets a further step. The file `.steps` next
    to the results records them, the last one last.

    Args:
        path: a file of the result; its folder holds the run's other protocols.
        header: everything the result depends on.
    """
    ledger = path.with_name(STEPS)
    steps: dict[str, int] = read_json(ledger) if ledger.exists() else {}
    key = hashlib.sha256(header.encode()).hexdigest()[:16]
    if key not in steps or key != list(steps)[-1]:
        # Results of raybust 0.1, which kept no ledger, take the steps below.
        earlier = len(list(path.parent.glob(f"*{path.suffix}"))) - 1
        steps.pop(key, None)
        steps[key] = 1 + max(steps.values(), default=earlier - 1)
        replace_text(ledger, json.dumps(steps, indent=1) + "\n")
    return steps[key]

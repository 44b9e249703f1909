"""What stays on disk of a trial that has ended: its metrics and manifest, and the weights of the
best.

Whoever reads weights asks here, and gets the command that trains a trial without them again.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from raybust.disk import checkpoint, runs
from raybust.disk.files import replace_text
from raybust.errors import RequestError

AGAIN = "trial.yaml"
"""Configuration of a trial without weights."""


def strip(folder: Path, *, weights: bool) -> None:
    """Removes a trial's checkpoints but the newest and the one that it uses, optimizer state and,
    unless kept, weights. Removes nothing if that was done before.

    Args:
        folder: of the trial, which will not be resumed.
        weights: whether they stay.
    """
    there = checkpoint.folders(folder) + checkpoint.folders(folder / checkpoint.SELECTED)
    gone = (checkpoint.STATE,) if weights else (checkpoint.STATE, checkpoint.WEIGHTS)
    newest, used = checkpoint.newest(folder), checkpoint.used(folder)
    stay = [path for path in there if path in (newest, used)]
    if there == stay and not any((path / name).exists() for path in there for name in gone):
        return
    if newest is None:
        return
    if not weights:
        _write_configuration(folder)
    for path in stay:
        if checkpoint.torn(path) is None:
            _remove(path, gone)
    for path in there:
        if path not in stay:
            shutil.rmtree(path, ignore_errors=True)


def _remove(saved: Path, gone: Sequence[str]) -> None:
    """Removes files of a checkpoint, which stays intact."""
    manifest = json.loads((saved / checkpoint.MANIFEST).read_text())
    removed = {name: manifest["files"].pop(name) for name in gone if name in manifest["files"]}
    manifest["removed"] = {**manifest.get("removed", {}), **removed}
    checkpoint.write_manifest(saved, manifest)  # first, so that a kill leaves it intact
    for name in gone:
        (saved / name).unlink(missing_ok=True)


def used_weights(folder: Path, name: str, warn: Callable[[str], None] = lambda text: None) -> Path:
    """Returns the checkpoint whose network a run uses, which has weights.

    Args:
        folder: of the run.
        name: of the run, for messages.
        warn: receives a message for each torn checkpoint skipped.

    Raises:
        RequestError: there is none, it is torn, or its weights were removed.
    """
    used = checkpoint.used(folder, warn)
    if used is None:
        raise RequestError(f"{name}: has no checkpoint yet; train it first")
    last = checkpoint.newest(folder)
    if used != last and (problem := checkpoint.torn(used)) is not None:
        raise RequestError(
            f"{name}: the checkpoint {checkpoint.SELECTED}/{used.name} is torn ({problem}), which"
            f" train.select chose; name another one, such as {last}"
        )
    if not checkpoint.has_weights(used):
        again = runs.display_name(folder).replace("/", "-")
        command = f"raybust train {shlex.quote(str(folder / AGAIN))} --name {shlex.quote(again)}"
        raise RequestError(
            f"{name}: its weights were not kept, only those of the sweep's best trials (tune.keep);"
            f" train it again with `{command}`"
        )
    return used


def _write_configuration(folder: Path) -> None:
    """Writes a trial's configuration as a file for `raybust train`."""
    plain = dict(runs.read_identity(folder).config)
    for key in ("name", "out", "tune", "track"):
        plain.pop(key, None)
    replace_text(folder / AGAIN, yaml.safe_dump(plain, sort_keys=False))

"""Checkpoints: safetensors weights, a JSON manifest, resumable state. Loading runs no code.

A checkpoint is a folder, written under a temporary name, the manifest last and with the digests of
the other files, then renamed. Older ones are removed only once the new one is complete. Torn
folders (a kill, a full disk) fail their digests and are skipped. Stage after train.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import raybust
from raybust.config.measured import standing
from raybust.disk.files import replace_text
from raybust.errors import RequestError

FORMAT = 1
WEIGHTS = "model.safetensors"
STATE = "state.pt"
MANIFEST = "manifest.json"
SELECTED = "selected"
"""Folder in a run's with the networks of the epochs that `train.select` chose, newest last; no
`train.keep` removes them."""

_NAME = re.compile(r"epoch-(\d{6,})")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def folder_name(epoch: int) -> str:
    """Returns the folder name of the checkpoint after `epoch` epochs."""
    return f"epoch-{epoch:06d}"


def write(
    folder: Path,
    weights: dict[str, Tensor],
    state: dict[str, Any] | None,
    manifest: dict[str, Any],
) -> None:
    """Writes the files of a checkpoint into an existing folder, the manifest last.

    Args:
        folder: a temporary folder that the caller renames or uploads.
        weights: state dict of the network to certify and deploy.
        state: what else resuming needs; plain containers and tensors only. None for a checkpoint
            from which nothing resumes.
        manifest: JSON data: configuration, metrics; digests and versions are added.
    """
    write_weights(weights, folder / WEIGHTS)
    names = [WEIGHTS]
    if state is not None:
        content = io.BytesIO()
        torch.save(state, content)
        # Says what is wrong; torch's writer does not.
        (folder / STATE).write_bytes(content.getbuffer())
        names.append(STATE)
    digests = {name: digest_of(folder / name) for name in names}
    versions = {"raybust": raybust.__version__, "torch": torch.__version__}
    record = {"format": FORMAT, "files": digests, "versions": versions, **manifest}
    write_manifest(folder, record)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes or replaces a checkpoint's manifest."""
    replace_text(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Writes a state dict as safetensors.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, path)
    except SafetensorError as error:  # wraps the system's error as text
        found = _OS_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None


def commit(root: Path, name: str, fill: Callable[[Path], None], keep: int) -> Path:
    """Writes a checkpoint atomically under `root`, then removes all but the newest `keep`.

    Args:
        root: folder of the run.
        name: from `folder_name`.
        fill: writes the checkpoint into a given folder.
        keep: number of checkpoints to keep.

    Returns:
        The folder of the checkpoint.
    """
    temporary = root / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)
    for file in temporary.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    final = root / name
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for old in folders(root)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def folders(root: Path) -> list[Path]:
    """Returns a run's checkpoint folders, newest first, including torn ones."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=epoch_of, reverse=True)


def epoch_of(folder: Path | str) -> int:
    """Returns the epoch in a checkpoint folder's name."""
    match = _NAME.fullmatch(Path(folder).name)
    assert match, f"{folder} is not a checkpoint folder"
    return int(match[1])


def newest(root: Path, warn: Callable[[str], None] = lambda text: None) -> Path | None:
    """Returns the newest intact checkpoint of a run, or None.

    Args:
        root: folder of the run.
        warn: receives a message for each torn checkpoint skipped.
    """
    for folder in folders(root):
        problem = torn(folder)
        if problem is None:
            return folder
        warn(f"checkpoint {folder.name} is torn ({problem}); using the previous one")
    return None


def used(root: Path, warn: Callable[[str], None] = lambda text: None) -> Path | None:
    """Returns the checkpoint whose network a run uses: the one that `train.select` chose so far,
    else the newest intact one; None if there is none.

    Args:
        root: folder of the run.
        warn: receives a message for each torn checkpoint skipped.
    """
    latest = newest(root, warn)
    if latest is None:
        return None
    selected = json.loads((latest / MANIFEST).read_text()).get("selected")
    if selected is None or selected["epoch"] == epoch_of(latest):
        return latest
    return root / SELECTED / folder_name(selected["epoch"])


def run_of(folder: Path) -> Path:
    """Returns the folder of the run that a checkpoint is in."""
    return folder.parents[1] if folder.parent.name == SELECTED else folder.parent


def standing_of(folder: Path) -> dict[str, float]:
    """Returns the metrics by which a run counts that ends with a checkpoint; see
    `config.measured.standing`.

    Raises:
        RequestError: the checkpoint is torn.
    """
    manifest = read_manifest(folder)
    return standing(manifest["metrics"], manifest.get("selected", {}).get("metrics", {}))


def torn(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint's files, or None if it is intact."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        written, digests = manifest["format"], manifest["files"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is missing or damaged"
    if written != FORMAT:
        return f"format {written}, but this version reads {FORMAT}"
    for name, digest in digests:
        if not (folder / name).is_file() or digest_of(folder / name) != digest:
            return f"{name} is missing or damaged"
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint.

    Raises:
        RequestError: the checkpoint is torn.
    """
    problem = torn(folder)
    if problem is not None:
        raise RequestError(f"{folder}: not a complete checkpoint: {problem}")
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return manifest


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint, on the CPU."""
    return load_file(folder / WEIGHTS)


def has_weights(folder: Path) -> bool:
    """Returns whether a checkpoint has weights; those of most trials of a sweep are removed."""
    return (folder / WEIGHTS).exists()


def read_state(folder: Path) -> dict[str, Any]:
    """Returns the resumable state of a checkpoint, on the CPU; unpickles plain data only."""
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return state


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

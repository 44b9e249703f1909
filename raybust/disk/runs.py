"""Run folders: what a run is on disk, how RUN on the command line is found, how it comes back.

    OUT/NAME/run.json           identity: uid, kind, configuration
    OUT/NAME/journal.jsonl      what goes to MLflow
    OUT/NAME/epoch-000012/      checkpoints
    OUT/NAME/certified/*.tsv    certificates
    OUT/SWEEP/trials/0007/      the same for trial 7 of a sweep
    OUT/_weights/FILE-1a2b3c4d/ results of a weights file, or of a checkpoint that is named

Stage between checkpoint and certify / evaluate.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybust import config as configuration
from raybust.config import Config
from raybust.disk import checkpoint
from raybust.disk.files import replace_text
from raybust.errors import RequestError, unknown

IDENTITY = "run.json"
JOURNAL = "journal.jsonl"
TRIALS = "trials"
_RESUMABLE = (
    "name",
    "out",
    "cluster",
    "track",
    "certify",
    "evaluate",
    "corruptions",
    "tune.trials",
    "tune.finalists",
    "tune.concurrent",
)
_SCORING = ("certify.sigma", "certify.seed")
"""What `certified_fast` takes of `certify`: epochs and trials that it compares must share it."""


@dataclass(frozen=True)
class Identity:
    """What `run.json` holds.

    Attributes:
        uid: the run's key in the tracking store, for good.
        kind: "train", "trial" or "sweep".
        config: the resolved configuration, plain.
        data: digest of the data with which it was begun; "" where that is not known.
    """

    uid: str
    kind: str
    config: dict[str, Any]
    data: str = ""


def identify(
    folder: Path, kind: str, plain: dict[str, Any], resume: bool = True, data: str = ""
) -> Identity:
    """Returns the identity of a run folder: made if it is new, checked if it is not. A run that
    failed before anything of it was kept makes room for one of other settings.

    Args:
        folder: the run's folder.
        kind: "train", "trial" or "sweep".
        plain: the configuration of what is to run in it, as plain data.
        resume: False moves an existing folder aside (NAME.1, NAME.2, ...) and begins anew.
        data: digest of the data set; "" is not compared.

    Raises:
        RequestError: the folder holds another experiment (the difference is named), or cannot be
            written.
    """
    fresh = (folder / IDENTITY).exists() and _nothing_kept(folder)
    if folder.exists() and (not resume or (fresh and _difference(folder, kind, plain, data))):
        aside = next(
            path
            for n in range(1, 10**6)
            if not (path := folder.with_name(f"{folder.name}.{n}")).exists()
        )
        folder.rename(aside)
    path = folder / IDENTITY
    if path.exists():
        check_same(folder, kind, plain, data)
        return read_identity(folder)
    found = Identity(uuid.uuid4().hex, kind, plain, data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(vars(found), indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise RequestError(
            f"out: {folder} cannot be written: {error.strerror}; choose another folder with --out"
        ) from None
    return found


def check_same(folder: Path, kind: str, plain: dict[str, Any], data: str = "") -> None:
    """Refuses to go on in a folder that belongs to another experiment; a new folder is fine, and
    so is one of which nothing was kept.

    Args:
        folder: the run's folder.
        kind: "train", "trial" or "sweep".
        plain: the configuration of what is to run in it.
        data: digest of the data set; "" is not compared.

    Raises:
        RequestError: with every key in which the two differ.
    """
    if not (folder / IDENTITY).exists() or _nothing_kept(folder):
        return
    wrong = _difference(folder, kind, plain, data)
    if wrong:
        raise RequestError(f"{folder.name}: {wrong}")


def _nothing_kept(folder: Path) -> bool:
    """Returns whether a run, or every trial of a sweep, ended before its first checkpoint."""
    trials = (folder / TRIALS).glob("*") if (folder / TRIALS).is_dir() else ()
    started = (folder / JOURNAL).exists()
    if read_identity(folder).config.get("cluster", {}).get("storage"):
        return False  # its checkpoints are elsewhere until it ends
    return started and not any(checkpoint.folders(place) for place in (folder, *trials))


def _difference(folder: Path, kind: str, plain: dict[str, Any], data: str) -> str:
    """Returns why a folder's experiment is another one, with the ways on; "" where it is not."""
    found = read_identity(folder)
    if found.kind != kind:
        return f"is a {found.kind}, not a {kind}; choose another --name"
    if found.data and data and found.data != data:
        return (
            f"was begun with other images, labels or another cut than the data set has now (digest"
            f" {found.data} -> {data}); choose another --name, or --no-resume to begin anew (the"
            " old one is kept aside)"
        )
    differing = {
        text.partition(":")[0]: text for text in configuration.difference(found.config, plain)
    }
    changed = [key for key in differing if _fixed(key)]
    if not changed:
        return ""
    advice = "choose another --name, or --no-resume to begin anew (the old one is kept aside)"
    if set(changed) <= set(_SCORING):
        run = f"{folder.name}/NUMBER" if kind == "sweep" else folder.name
        given = " ".join(f"{key}=..." for key in changed)
        advice = (
            "each epoch's certified_fast goes by it: leave it as it was, and when all is trained,"
            f" `raybust certify {run} {given}`; or {advice}"
        )
    texts = "; ".join(differing[key] for key in changed)
    return f"exists with another configuration ({texts}); {advice}"


def fixed_digits(plain: dict[str, Any]) -> str:
    """Returns 8 hexadecimal digits of what may not change when a run is gone on with.

    Args:
        plain: the configuration, as plain data; of a sweep with its space.
    """
    leaves = configuration.leaves_of(plain, "")
    fixed = {leaf.key: leaf.value for leaf in leaves if _fixed(leaf.key)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]


def _fixed(key: str) -> bool:
    """Tells whether a key may not change when a run is gone on with."""
    return key in _SCORING or not belongs(key, _RESUMABLE)


def check_writable(folder: Path, key: str = "out") -> None:
    """Checks that a folder can be written or made, and makes nothing.

    Args:
        folder: absolute.
        key: the configuration key that names it.

    Raises:
        RequestError: it cannot.
    """
    above = next(path for path in (folder, *folder.parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RequestError(f"{key}: {folder} cannot be written; choose another folder")


def read_identity(folder: Path) -> Identity:
    """Returns what `run.json` of a folder holds.

    Raises:
        RequestError: there is none, or it is not readable.
    """
    try:
        return Identity(**json.loads((folder / IDENTITY).read_text()))
    except (OSError, ValueError, TypeError):
        raise RequestError(f"{folder}: not a run of raybust: no readable {IDENTITY}") from None


def find(run: str, out: Path) -> Path:
    """Returns the run folder, checkpoint folder or weights file that RUN names.

    Args:
        run: a run's name (SWEEP/7 for trial 7 of a sweep), or a path.
        out: the folder of all runs.

    Raises:
        RequestError: nothing of that name; the message has the nearest spelling.
    """
    for path in candidates(run, out):
        if (path / IDENTITY).exists() or (path / checkpoint.MANIFEST).exists() or path.is_file():
            return path
    raise unknown("run", run, names(out) or ["(none yet)"])


def candidates(run: str, out: Path) -> list[Path]:
    """Returns where the run that a name or path means may be: a run, any path, a sweep's trial."""
    sweep, _, trial = run.rpartition("/")
    found = [out / run, Path(run)]
    if sweep and trial.isdigit():
        found.append(out / sweep / TRIALS / f"{int(trial):04d}")
    return found


def names(out: Path) -> list[str]:
    """Returns the names of all runs and sweeps under `out`."""
    return sorted(path.parent.name for path in out.glob(f"*/{IDENTITY}"))


def out_folder(config: Config) -> Path:
    """Returns the absolute folder under which everything of a configuration lands.

    Raises:
        RequestError: it is in the home of a user that there is not.
    """
    try:
        return Path(os.path.abspath(Path(config.out).expanduser()))
    except RuntimeError:
        raise RequestError(
            f"out: got {config.out!r}, but there is no user {config.out[1:].partition('/')[0]!r};"
            " choose another folder with --out"
        ) from None


def belongs(key: str, sections: tuple[str, ...]) -> bool:
    """Returns whether a key is one of `sections` or inside one."""
    return any(key == section or key.startswith(section + ".") for section in sections)

"""Run folders: their layout, identity, and lookup of RUN on the command line.

    OUT/NAME/run.json           identity: uid, kind, configuration
    OUT/NAME/journal.jsonl      records for MLflow
    OUT/NAME/epoch-000012/      checkpoints
    OUT/NAME/certified/*.tsv    certificates
    OUT/SWEEP/trials/0007/      the same for trial 7 of a sweep; 0007.1/ for its second seed
    OUT/_weights/FILE-1a2b3c4d/ results of a weights file, or of a checkpoint given by path

Stage between checkpoint and certify / evaluate.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
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
RAY_RECORD = "checkpoint_manager_snapshot.json"
"""Ray Train's list of a run's checkpoints, in the run's folder."""
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
    "tune.keep",
    "tune.concurrent",
    "tune.seeds",
    "tune.race_level",
)
SCORING = ("certify.sigma", "certify.seed")
"""Settings of `certify` that `certified_fast` uses: comparable epochs and trials share them."""


@dataclass(frozen=True)
class Identity:
    """The content of `run.json`.

    Attributes:
        uid: the run's permanent key in the tracking store.
        kind: "train", "trial" or "sweep".
        config: the resolved configuration, as plain data.
        data: digest of the data at the start; "" if unknown.
    """

    uid: str
    kind: str
    config: dict[str, Any]
    data: str = ""


def identify(
    folder: Path, kind: str, plain: dict[str, Any], resume: bool = True, data: str = ""
) -> Identity:
    """Creates or checks the identity of a run folder, and returns it. A run that failed before its
    first checkpoint makes room for one with other settings.

    Args:
        folder: the run's folder.
        kind: "train", "trial" or "sweep".
        plain: the configuration to run in it, as plain data.
        resume: False moves an existing folder aside (NAME.1, NAME.2, ...) and starts over.
        data: digest of the dataset; "" skips the comparison.

    Raises:
        RequestError: the folder holds another experiment (the message lists the differences), or
            cannot be written.
    """
    fresh = (folder / IDENTITY).exists() and _has_no_checkpoint(folder)
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
    """Rejects a folder that holds another experiment; accepts new ones, and runs that ended before
    their first checkpoint.

    Args:
        folder: the run's folder.
        kind: "train", "trial" or "sweep".
        plain: the configuration to run in it, as plain data.
        data: digest of the dataset; "" skips the comparison.

    Raises:
        RequestError: the experiments differ; the message lists every differing key.
    """
    if not (folder / IDENTITY).exists() or _has_no_checkpoint(folder):
        return
    wrong = _difference(folder, kind, plain, data)
    if not wrong and (original := original_of(folder)) is not None:
        wrong = (
            f"is a copy of {original}, into whose MLflow run it would write; continue there, or"
            " choose another --name"
        )
    if wrong:
        raise RequestError(f"{folder.name}: {wrong}")


def _has_no_checkpoint(folder: Path) -> bool:
    """Returns whether a run, or every trial of a sweep, ended before its first checkpoint."""
    trials = (folder / TRIALS).glob("*") if (folder / TRIALS).is_dir() else ()
    started = (folder / JOURNAL).exists()
    if read_identity(folder).config.get("cluster", {}).get("storage"):
        return False  # its checkpoints are elsewhere until it ends
    return started and not any(checkpoint.folders(run) for run in (folder, *trials))


def _difference(folder: Path, kind: str, plain: dict[str, Any], data: str) -> str:
    """Returns how a folder's experiment differs and what to do about it; "" if it does not."""
    found = read_identity(folder)
    if found.kind != kind:
        return f"is a {found.kind}, not a {kind}; choose another --name"
    if found.data and data and found.data != data:
        images, _, _ = found.data.partition("+")
        what = "the images, labels or split of its dataset have changed since it started"
        if images == data.partition("+")[0]:
            what = "the weights of train.init or method.embedding have changed since it started"
        return (
            f"{what} (digest {found.data} -> {data}); choose another --name, or --no-resume to"
            " start over (the old run is kept)"
        )
    differing = {
        text.partition(":")[0]: text for text in configuration.difference(found.config, plain)
    }
    changed = [key for key in differing if _fixed(key)]
    if not changed:
        return ""
    advice = "choose another --name, or --no-resume to start over (the old run is kept)"
    if set(changed) <= set(SCORING):
        run = f"{folder.name}/NUMBER" if kind == "sweep" else folder.name
        given = " ".join(f"{key}=..." for key in changed)
        advice = (
            "every epoch's certified_fast depends on it: keep it, and after training run"
            f" `raybust certify {run} {given}`; or {advice}"
        )
    texts = "; ".join(differing[key] for key in changed)
    return f"exists with another configuration ({texts}); {advice}"


def fixed_digits(plain: dict[str, Any]) -> str:
    """Returns a hash of the settings that must not change on resume.

    Args:
        plain: the configuration, as plain data; for a sweep, with its space.
    """
    leaves = configuration.leaves_of(plain, "")
    fixed = {leaf.key: leaf.value for leaf in leaves if _fixed(leaf.key)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]


def _fixed(key: str) -> bool:
    """Returns whether a key must not change on resume."""
    return key in SCORING or not belongs(key, _RESUMABLE)


def check_writable(folder: Path, key: str = "out") -> None:
    """Checks that a folder can be written or created, without creating it.

    Args:
        folder: its absolute path.
        key: the configuration key that names it.

    Raises:
        RequestError: it cannot be written.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise RequestError(f"{key}: {folder} cannot be written; choose another folder")


def check_no_run(folder: Path) -> None:
    """Checks that a folder for a report is no run's.

    Raises:
        RequestError: it is the folder of a run.
    """
    if (folder / IDENTITY).exists():
        raise RequestError(
            f"name: {folder.name} is a run in {folder.parent}, into which no report is written;"
            " choose another --name"
        )


def read_identity(folder: Path) -> Identity:
    """Returns the content of a folder's `run.json`.

    Raises:
        RequestError: it is missing or unreadable.
    """
    try:
        return Identity(**json.loads((folder / IDENTITY).read_text()))
    except (OSError, ValueError, TypeError):
        raise RequestError(f"{folder}: not a raybust run: no readable {IDENTITY}") from None


def original_of(folder: Path) -> Path | None:
    """Returns the run that a folder is a copy of: the one where it was trained or, if that was
    renamed, the oldest one beside it with the same key."""
    try:
        with (folder / JOURNAL).open(encoding="utf-8") as file:
            place = Path(json.loads(next(file, "{}")).get("tags", {})["raybust.folder"])
        uid = read_identity(folder).uid
        if place.exists():
            same = place.samefile(folder) or read_identity(place).uid != uid
            return None if same else place
        beside = [path.parent for path in folder.parent.glob(f"*/{IDENTITY}")]
        mine = [path for path in beside if read_identity(path).uid == uid]
        oldest = min(mine, key=lambda path: (path / IDENTITY).stat().st_ctime_ns)
        return None if oldest.samefile(folder) else oldest
    except (OSError, ValueError, KeyError, AttributeError, RequestError):
        return None


def trial_folder(sweep: Path, number: int, seed: int = 0) -> Path:
    """Returns the folder of a trial of a sweep, or of one of its further seeds."""
    return sweep / TRIALS / (f"{number:04d}" + f".{seed}" * bool(seed))


def trial_name(number: int, seed: int = 0) -> str:
    """Returns how commands name a trial of a sweep, "7", or one of its further seeds, "7.1"."""
    return f"{number}.{seed}" if seed else str(number)


def trial_of(folder: Path) -> str:
    """Returns the name in its sweep, as `trial_name`, of the trial or seed that a folder holds."""
    number, _, seed = folder.name.partition(".")
    return trial_name(int(number), int(seed or 0))


def seed_folders(sweep: Path, number: int) -> list[Path]:
    """Returns the folders of a trial and of its further seeds, those that exist, in order."""
    first = trial_folder(sweep, number)
    further = sorted(first.parent.glob(f"{first.name}.*"), key=lambda path: int(path.suffix[1:]))
    return [path for path in (first, *further) if path.exists()]


def display_name(folder: Path) -> str:
    """Returns the name of a run as commands take it: its folder's, SWEEP/7 for a trial, SWEEP/7.1
    for its second seed."""
    if folder.parent.name != TRIALS:
        return folder.name
    return f"{folder.parent.parent.name}/{trial_of(folder)}"


def by_uid(recorded: Path, uid: str, out: Path) -> Path:
    """Returns the folder of a run: the recorded one or, if that is gone because the runs were
    moved, the one below `out` with the run's key.

    Args:
        recorded: where it was trained.
        uid: its key.
        out: the folder of all runs.
    """
    if (recorded / IDENTITY).exists():
        return recorded
    for place in (*out.glob(f"*/{IDENTITY}"), *out.glob(f"*/{TRIALS}/*/{IDENTITY}")):
        if read_identity(place.parent).uid == uid:
            return place.parent
    return recorded


def find(run: str, out: Path) -> Path:
    """Returns the run folder, checkpoint folder or weights file that RUN names.

    Args:
        run: a run's name (SWEEP/7 for trial 7 of a sweep), or a path.
        out: the folder of all runs.

    Raises:
        RequestError: there is no such run; the message suggests the nearest spelling.
    """
    for path in candidates(run, out):
        if (path / IDENTITY).exists() or (path / checkpoint.MANIFEST).exists() or path.is_file():
            return path
    raise unknown("run", run, names(out) or ["(none yet)"])


def candidates(run: str, out: Path) -> list[Path]:
    """Returns the paths that RUN may mean: a run, any path, a sweep's trial."""
    sweep, _, trial = run.rpartition("/")
    found = [out / run, Path(run)]
    if sweep and (named := re.fullmatch(r"(\d+)(?:\.([1-9]\d*))?", trial)):
        found.append(trial_folder(out / sweep, int(named[1]), int(named[2] or 0)))
    return found


def names(out: Path) -> list[str]:
    """Returns the names of all runs and sweeps under `out`."""
    return sorted(path.parent.name for path in out.glob(f"*/{IDENTITY}"))


def out_folder(config: Config) -> Path:
    """Returns the absolute path of a configuration's output folder.

    Raises:
        RequestError: it is in the home of an unknown user.
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

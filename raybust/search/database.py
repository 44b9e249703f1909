"""Creates, finds and opens the study of a sweep.

The file in a sweep's folder holds just its study. In a shared storage (`tune.storage`) the study is
named after the folder and the sweep's key and found by the key, so the folder may be moved or set
aside.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from raybust.config import Config
from raybust.errors import RequestError
from raybust.track import safe_uri
from raybust.track.uri import sqlite_file, sqlite_uri

UNUSABLE = (SQLAlchemyError, OSError, optuna.exceptions.StorageInternalError)
"""Raised by a storage that cannot be read or written."""
_JOURNAL, _SQLITE = "journal:", "sqlite:///"
_LOCKED_S = 20


def check_form(storage: str) -> None:
    """Checks that a storage is `journal:FILE` or the URL of a known database; opens nothing.

    Raises:
        RequestError: it is neither.
    """
    try:
        if storage.startswith(_JOURNAL):
            known = bool(Path(storage.removeprefix(_JOURNAL)).name)
        else:
            known = bool(make_url(storage).get_dialect())
    except ArgumentError:
        known = False
    if not known:
        raise RequestError(
            f"tune.storage: got {storage!r}, expected a database URL such as"
            " sqlite:///FILE or postgresql://HOST/NAME, or journal:FILE"
        )


def check_storage(config: Config) -> None:
    """Checks that a shared storage is writable by creating and deleting a study.

    Raises:
        RequestError: it is not.
    """
    place = _expanded(config.tune.storage)
    if place is None:
        return
    with one_line():
        storage = _connect(place)
        probe = optuna.create_study(storage=storage, study_name=f"raybust-{uuid.uuid4().hex}")
        optuna.delete_study(storage=storage, study_name=probe.study_name)


def open_study(config: Config, folder: Path, uid: str) -> optuna.Study:
    """Opens or creates the study of a sweep.

    Args:
        config: sets storage and objectives.
        folder: the sweep's.
        uid: the sweep's key.

    Raises:
        RequestError: the storage cannot be opened.
    """
    names = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
    with one_line():
        storage = _connect(_place(config, folder))
        new = folder.name if config.tune.storage is None else f"{folder.name}-{uid}"
        directions = config.tune.directions()
        study = optuna.create_study(
            storage=storage,
            study_name=_find(storage, config, uid) or new,
            directions=[names[mode] for mode in directions.values()],
            load_if_exists=True,
        )
        if study.metric_names != list(directions):
            study.set_metric_names(list(directions))  # which Optuna's pages show
        return study


def load_study(config: Config, folder: Path, uid: str) -> optuna.Study:
    """Opens an existing study for reading; creates nothing. See `open_study`.

    Raises:
        RequestError: there is no such study, or the storage cannot be opened.
    """
    place = _place(config, folder)
    file = _file(place)
    if file is None or file.exists():  # otherwise Optuna would create the file
        with one_line():
            storage = _connect(place)
            name = _find(storage, config, uid)
            if name is not None:
                return optuna.load_study(storage=storage, study_name=name)
    raise RequestError(
        f"tune.storage: {safe_uri(place)} has no study of sweep {folder.name} (key {uid}); restore"
        " it, or rerun the sweep's command to start over"
    )


@contextmanager
def one_line() -> Iterator[None]:
    """Turns errors of an unusable storage into a one-line RequestError."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        yield
    except RuntimeError as error:  # a table `alembic_version` of another Optuna, or of MLflow
        if f"set up by optuna {optuna.__version__})" not in str(error):
            raise RequestError(f"tune.storage: {error}") from None
        raise RequestError(
            "tune.storage: the database contains other tables; Optuna needs its own database,"
            " separate from MLflow's"
        ) from None
    except (*UNUSABLE, ImportError, ValueError) as error:
        text = " ".join(str(error.__cause__ or error).split("\n")[0].split())
        raise RequestError(
            f"tune.storage: the study cannot be opened: {text}; wait until no other process locks"
            " it, or choose another storage"
        ) from None


def _place(config: Config, folder: Path) -> str:
    """Returns a sweep's storage, with `~` at the start of a file expanded."""
    return _expanded(config.tune.storage) or sqlite_uri(folder / "study.db")


def _expanded(storage: str | None) -> str | None:
    for scheme in (_JOURNAL, _SQLITE):
        if storage is not None and storage.startswith(f"{scheme}~"):
            return f"{scheme}{Path(storage.removeprefix(scheme)).expanduser()}"
    return storage


def _find(storage: optuna.storages.BaseStorage, config: Config, uid: str) -> str | None:
    """Returns the name of a sweep's study in a storage, or None."""
    names = optuna.get_all_study_names(storage)
    shared = config.tune.storage is not None
    return next((name for name in names if not shared or name.endswith(f"-{uid}")), None)


def _connect(place: str) -> optuna.storages.BaseStorage:
    if place.startswith(_JOURNAL):
        backend = JournalFileBackend(place.removeprefix(_JOURNAL))
        return optuna.storages.JournalStorage(backend)
    sqlite = {"connect_args": {"timeout": _LOCKED_S}} if place.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(place, engine_kwargs=sqlite)


def _file(place: str) -> Path | None:
    """Returns the file of a storage, None for a server."""
    if place.startswith(_JOURNAL):
        return Path(place.removeprefix(_JOURNAL))
    return sqlite_file(place)

"""Tracking: a journal that training appends to, and its delivery to MLflow.

Only this package imports mlflow, and only inside functions, so importing `raybust.track` is cheap.
"""

from raybust.track.clerk import Following, call, engage
from raybust.track.client import load_mlflow
from raybust.track.environment import environment, source_tags
from raybust.track.flush import Flusher, SyncResult, log_to_run, lost, sync, unsent
from raybust.track.journal import NOTE, Journal, Status, picture
from raybust.track.model import REGISTRY, fetch_model
from raybust.track.registry import BOUNDS, DATA, FIDELITY, METRIC, MODE, VALUE
from raybust.track.store import FoundRun, find_run, prepare, ui_command
from raybust.track.uri import is_database, redact, resolve_uri, safe_uri
from raybust.track.views import links

__all__ = [
    "BOUNDS",
    "DATA",
    "FIDELITY",
    "METRIC",
    "MODE",
    "NOTE",
    "REGISTRY",
    "VALUE",
    "Flusher",
    "Following",
    "FoundRun",
    "Journal",
    "Status",
    "SyncResult",
    "call",
    "engage",
    "environment",
    "fetch_model",
    "find_run",
    "is_database",
    "links",
    "load_mlflow",
    "log_to_run",
    "lost",
    "picture",
    "prepare",
    "redact",
    "resolve_uri",
    "safe_uri",
    "source_tags",
    "sync",
    "ui_command",
    "unsent",
]

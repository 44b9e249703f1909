"""raybust: train, search, certify and attack robust image classifiers on Ray.

The package is a pipeline: config -> data -> method -> train -> checkpoint -> certify / evaluate ->
track -> tune -> report. Importing it loads nothing heavy: stages are imported on use.
"""

from typing import TYPE_CHECKING, Any

from raybust.errors import RequestError, WorkError

if TYPE_CHECKING:
    from raybust.api import attack, certify, compare, corrupt, load, predict, report, train, tune

__version__ = "0.1.0"
__all__ = [
    "RequestError",
    "WorkError",
    "attack",
    "certify",
    "compare",
    "corrupt",
    "load",
    "predict",
    "report",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Imports a function of the package when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from raybust import api

    return getattr(api, name)

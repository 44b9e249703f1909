"""Robust-training methods, one per file; the file name is the method's key.

Other packages register methods in the entry-point group `raybust.methods`: each entry-point name
is a key and each value a `Method` class.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import EntryPoint

from raybust import plugins
from raybust.errors import RequestError, unknown
from raybust.methods.base import Method, Round, StepContext

__all__ = ["Method", "Round", "StepContext", "get", "names"]

_GROUP = "raybust.methods"
_KEYS: dict[type[Method], str] = {}
"""Loaded classes of other packages and their keys."""


def names() -> list[str]:
    """Returns the sorted keys of all methods."""
    return sorted(_own() | plugins.points(_GROUP).keys())


def get(name: str) -> type[Method]:
    """Returns the class of a method.

    Raises:
        RequestError: the method does not exist (the message suggests the nearest spelling), its
            package cannot be imported, or two packages register the name.
    """
    point = plugins.find(_GROUP, name, _own())
    if point is not None:
        return _load(point)
    if name not in _own():
        raise unknown("method", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
    ]
    assert len(found) == 1, (
        f"{module.__name__} must define exactly one method, but defines {len(found)}"
    )
    return found[0]


def _own() -> set[str]:
    """Returns the keys of raybust's own methods."""
    return {module.name for module in pkgutil.iter_modules(__path__)} - {"base"}


def _load(point: EntryPoint) -> type[Method]:
    """Loads the method class of an entry point and sets its key."""
    cls = plugins.load(point)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise RequestError(
            f"{plugins.described(point)} is not a subclass of raybust.methods.Method"
        )
    own = cls.__module__.startswith(f"{__name__}.")
    taken = cls.key if own else _KEYS.setdefault(cls, point.name)
    if taken != point.name:
        raise RequestError(
            f"{plugins.described(point)} is already the method '{taken}'; register a subclass"
        )
    cls.key = point.name
    return cls

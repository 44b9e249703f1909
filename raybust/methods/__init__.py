"""Robust-training methods, one file each: the file's name is the method's key.

Packages outside add theirs through the entry-point group `raybust.methods`, whose names are keys
and whose values are `Method` classes.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from raybust.errors import RequestError, unknown
from raybust.methods.base import Method, StepContext

__all__ = ["Method", "StepContext", "get", "names"]


@lru_cache(maxsize=1)
def _outside() -> dict[str, EntryPoint]:
    """Returns the entry points of installed packages; to read them all takes 20 ms."""
    return {point.name: point for point in entry_points(group="raybust.methods")}


def names() -> list[str]:
    """Returns the keys of all methods, sorted."""
    own = {module.name for module in pkgutil.iter_modules(__path__)} - {"base"}
    return sorted(own | _outside().keys())


def get(name: str) -> type[Method]:
    """Returns the class of a method.

    Raises:
        RequestError: there is no such method; the message has the nearest spelling.
    """
    if name in _outside():
        return _loaded(_outside()[name])
    if name not in names():
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
        f"{module.__name__} must define exactly one method, it defines {len(found)}"
    )
    return found[0]


def _loaded(point: EntryPoint) -> type[Method]:
    """Returns the method of an entry point; its name is the key."""
    try:
        cls = point.load()
    except (ImportError, AttributeError) as error:
        raise RequestError(
            f"method '{point.name}' of the entry point {point.value} cannot be loaded: {error}"
        ) from None
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise RequestError(
            f"method '{point.name}': the entry point {point.value} is no subclass of"
            " raybust.methods.Method"
        )
    cls.key = point.name
    return cls

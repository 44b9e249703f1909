"""Robust-training methods, one file each: the file's name is the method's key.

Packages outside add theirs through the entry-point group `raybust.methods`, whose names are keys
and whose values are `Method` classes.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points

from raybust.errors import unknown
from raybust.methods.base import Method, StepContext

__all__ = ["Method", "StepContext", "get", "names"]


def names() -> list[str]:
    """Returns the keys of all methods, sorted."""
    own = {module.name for module in pkgutil.iter_modules(__path__)} - {"base"}
    return sorted(own | {point.name for point in entry_points(group="raybust.methods")})


def get(name: str) -> type[Method]:
    """Returns the class of a method.

    Raises:
        RequestError: there is no such method; the message has the nearest spelling.
    """
    for point in entry_points(group="raybust.methods"):
        if point.name == name:
            loaded: type[Method] = point.load()
            loaded.key = name
            return loaded
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

"""Entry points through which installed packages register methods, networks and data sets.

A package names each object in a group such as `raybust.models`. Listing names reads metadata and
imports nothing. Only the requested entry point is imported, so a broken package does not hide
others, and no file can cause the import of anything but an installed entry point. Each name has one
owner: a name that raybust or a second package also uses is refused, never shadowed.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from raybust.errors import RequestError, WorkError


@lru_cache
def points(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Returns the entry points of a group by name, sorted; scanning takes 20 ms.

    Args:
        group: "raybust.methods", "raybust.models" or "raybust.datasets".
    """
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, origin(point))):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def find(group: str, name: str, own: Container[str]) -> EntryPoint | None:
    """Returns the entry point of a name without importing it, or None if no package registers it.

    Args:
        group: as in `points`.
        name: requested name.
        own: raybust's own names.

    Raises:
        RequestError: the name has two owners.
    """
    known = points(group).get(name, ())
    if not known:
        return None
    kind, first = _kind(group), known[0]
    if name in own:
        raise RequestError(
            f"{kind} '{name}': package {origin(first)} registers this name ({first.value}), but it"
            " is one of raybust's own; rename it there or uninstall the package"
        )
    if len(known) > 1:
        owners = " and ".join(f"{origin(point)} ({point.value})" for point in known)
        raise RequestError(
            f"{kind} '{name}': packages {owners} register this name; uninstall one of them"
        )
    return first


def load(point: EntryPoint) -> Any:
    """Imports the object of an entry point.

    Raises:
        RequestError: it cannot be imported.
    """
    with one_line(f"{described(point)} cannot be loaded"):
        return point.load()


def described(point: EntryPoint) -> str:
    """Returns a description of an entry point to start an error message with."""
    kind = _kind(point.group)
    return f"{kind} '{point.name}': entry point {point.value} of package {origin(point)}"


def origin(point: EntryPoint) -> str:
    """Returns the name and version of the package that registers an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "(unknown)"


def summary(point: EntryPoint, thing: Any) -> str:
    """Returns the first paragraph of a function's or class's docstring, with its package.

    Args:
        point: entry point.
        thing: its object.
    """
    text = " ".join((getattr(thing, "__doc__", None) or "").strip().split("\n\n")[0].split())
    return f"{text} ({origin(point)})" if text else origin(point)


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turns any exception but raybust's own into the error "what: type: first line"."""
    try:
        yield
    except (RequestError, WorkError):
        raise
    except (Exception, SystemExit) as error:
        text = str(error).strip().partition("\n")[0]
        raise RequestError(f"{what}: {type(error).__name__}: {text}".rstrip(": ")) from error


def _kind(group: str) -> str:
    """Returns what a group holds, in the singular: "method", "model", "dataset"."""
    return group.rpartition(".")[2].removesuffix("s")

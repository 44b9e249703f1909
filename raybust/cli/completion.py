"""What the shell completes: keys and values of settings, runs, search spaces.

A shell asks at each tab, so nothing slow is imported: methods are the files of their package, runs
the folders of `runs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import get_args, get_type_hints

import click
from click.shell_completion import CompletionItem

from raybust.request import spaces

_OUT = "runs"
_NO_METHODS = {"__init__", "base"}


def settings(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completes key=value; bash passes key, "=" and value as words of their own."""
    words = [word for word in context.params.get(parameter.name or "") or () if word != "="]
    key, equals, value = incomplete.partition("=")
    if equals:
        return _items(f"{key}={one}" for one in _values(key) if one.startswith(value))
    if words and "=" not in words[-1] and (found := _values(words[-1])):
        return _items(one for one in found if one.startswith(incomplete))
    return _items(f"{one}=" for one in _keys() if one.startswith(incomplete))


def runs(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completes the names of runs in the folder `runs`, and `SWEEP/best`."""
    found = []
    for path in sorted(Path(_OUT).glob("*/run.json")):
        found.append(path.parent.name)
        if json.loads(path.read_text()).get("kind") == "sweep":
            found.append(f"{path.parent.name}/best")
    return _items(one for one in found if one.startswith(incomplete))


def search_spaces(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completes the packaged search spaces and files."""
    named = _items(one for one in spaces() if one.startswith(incomplete) and one[0] != "_")
    return [*named, CompletionItem(incomplete, type="file")]


def _items(texts: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(text) for text in texts]


def _keys() -> list[str]:
    from raybust.cli.keys import section_types

    found = [f"{name}.{field}" for name, kind in section_types().items()
             for field in get_type_hints(kind)]  # fmt: skip
    return sorted(["method.name", "name", "out", "seed", *found])


def _values(key: str) -> list[str]:
    from raybust.cli.keys import section_types

    if key == "method.name":
        files = (Path(__file__).parents[1] / "methods").glob("*.py")
        return sorted({path.stem for path in files} - _NO_METHODS)
    section, _, field = key.partition(".")
    kind = section_types().get(section)
    hint = None if kind is None else get_type_hints(kind).get(field)
    if hint is bool:
        return ["true", "false"]
    return [one for one in get_args(hint) if isinstance(one, str)]

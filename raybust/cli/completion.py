"""What the shell completes: keys and values of settings, runs, search spaces.

A shell asks at each tab, so little is imported: methods are the files of their package, runs the
folders of `runs`. Only names of networks and datasets, and a method's fields, take a second.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
from click.shell_completion import CompletionItem

from raybust.request import spaces

_OUT = "runs"


def settings(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completes key=value; bash passes key, "=" and value as words of their own."""
    typed = context.params.get(parameter.name or "") or ()
    words = [part for word in typed for part in word.split("=", 1) if part]
    key, equals, value = incomplete.partition("=")
    if equals:
        return _items(f"{key}={one}" for one in _values(key) if one.startswith(value))
    from raybust.cli.keys import names

    if words and words[-1] in names():
        found = _items(one for one in _values(words[-1]) if one.startswith(incomplete))
        is_text = str in (kind := _hint(words[-1]), *get_args(kind))
        return found or [CompletionItem(incomplete, type="file")] * is_text
    keys = [*names(), *(_fields(words) if incomplete.startswith("method.") else ())]
    return _items(f"{one}=" for one in keys if one.startswith(incomplete))


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
    return [CompletionItem(incomplete, type="file"), *named]  # after a file, bash keeps names


def _items(texts: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(text) for text in texts]


def _fields(words: list[str]) -> list[str]:
    """Returns the keys of the method that the words name, if they do."""
    from raybust import methods

    named = [value for key, value in pairwise(words) if key == "method.name"]
    if not named or named[-1] not in methods.names():
        return []
    fields = dataclasses.fields(methods.get(named[-1]))
    return sorted(f"method.{field.name}" for field in fields)


def _values(key: str) -> list[str]:
    if key == "method.name":
        files = (Path(__file__).parents[1] / "methods").glob("*")
        return sorted({path.stem for path in files if path.stem[0] not in "._"} - {"base"})
    if key == "model.name":
        from raybust import models

        return models.names()
    if key == "data.name":
        from raybust import data

        return data.names()
    hint = _hint(key)
    if hint is bool:
        return ["true", "false"]
    return [one for one in get_args(hint) if isinstance(one, str)]


def _hint(key: str) -> Any:
    """Returns the type of a key of the schema, None for those of methods."""
    from raybust.cli.keys import section_types
    from raybust.config import Config

    section, _, field = key.rpartition(".")
    kind = section_types().get(section) if section else Config
    return None if kind is None else get_type_hints(kind).get(field)

"""Stages the pages of the documentation for zensical: `python docs/generate.py FOLDER`.

Copies docs/ and the pages of the root, and replaces each line `<!-- generate: KIND NAME -->` by
what the package itself says: the options of a command, the keys of a configuration section, the
fields of a method, the packaged search spaces. Adds a page for each public package. Fails on a
public name without a docstring and on a marker that names nothing.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import pkgutil
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click
import yaml

import raybust
from raybust import data, methods, models
from raybust.cli import cli
from raybust.config import Config, default_of, domain
from raybust.errors import RequestError

DOCS = Path(__file__).parent
ROOT = DOCS.parent
MARKER = re.compile(r"^<!-- generate: (\w+)(?: ([\w.]+))? -->$", re.MULTILINE)
MODULES = ("api", "errors", "trained")
"""Public modules that export no `__all__`."""

ROOT_PAGES = ("CHANGELOG", "CONTRIBUTING", "SECURITY")
"""Pages of the repository's root that the site shows too, by their names in small letters."""

_BESIDE = {"cli"}
"""Packages whose `__all__` is no API: the command line has a page of its own."""
_WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", dict: "mapping"}
_ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")


def stage(target: Path) -> list[Path]:
    """Writes all pages into a folder, which is emptied first; returns the pages.

    Args:
        target: the folder.

    Raises:
        ValueError: a marker names nothing, or a public name has no docstring.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    pages = []
    for source in sorted(DOCS.iterdir()):
        if source.suffix == ".md":
            pages.append(target / source.name)
            pages[-1].write_text(expand(_moved(source.read_text()), source.name))
        elif source.suffix in (".png", ".css", ".svg"):
            shutil.copy(source, target)
    for name in ROOT_PAGES:
        pages.append(target / f"{name.lower()}.md")
        pages[-1].write_text(_moved((ROOT / f"{name}.md").read_text()))
    (target / "api").mkdir()
    for name in packages():
        pages.append(target / "api" / f"{name}.md")
        pages[-1].write_text(api_page(name))
    return pages


def _moved(text: str) -> str:
    """Returns a page whose links between the root and docs/ lead to one folder."""
    text = text.replace("](docs/", "](")
    return re.sub(
        r"\]\((?:\.\./)?([A-Z]+)\.md",
        lambda link: f"]({link[1].lower()}.md" if link[1] in ROOT_PAGES else link[0],
        text,
    )


def expand(text: str, page: str) -> str:
    """Returns a page with the generated text in place of its markers.

    Args:
        text: the page.
        page: its name, for the message.

    Raises:
        ValueError: a marker names nothing.
    """

    def generated(marker: re.Match[str]) -> str:
        kind, name = marker.groups()
        try:
            return KINDS[kind](*[name] * (name is not None))
        except (KeyError, TypeError, RequestError) as error:
            raise ValueError(f"{page}: {marker[0]} names nothing ({error})") from error

    return MARKER.sub(generated, text)


def command_options(name: str) -> str:
    """Returns usage and options of a command."""
    command = cli.commands[name]
    context = click.Context(command, info_name=f"raybust {name}")
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    rows = []
    for one in command.params:
        if not isinstance(one, click.Option):
            continue
        flags = ", ".join(f"`{flag}`" for flag in (*one.opts, *one.secondary_opts))
        value = "" if one.is_flag else f"`{one.make_metavar(context)}`"
        rows.append((flags, value, _cell(one.help or "")))
    rows.append(("`-h`, `--help`", "", "Show the help and exit."))
    return f"```text\n{usage}\n```\n\n" + _table(("option", "value", "meaning"), rows)


def section_keys(name: str) -> str:
    """Returns the keys of a section of the configuration; of `top`, those outside of sections."""
    hints = get_type_hints(Config)
    if name == "top":
        fields = [
            field
            for field in dataclasses.fields(Config)
            if field.name != "method" and not dataclasses.is_dataclass(hints[field.name])
        ]
        return _keys(Config, fields, "")
    cls = hints[name]
    return f"{_linked(_flowing(cls.__doc__))}\n\n" + _keys(cls, dataclasses.fields(cls), f"{name}.")


def method_entry(name: str) -> str:
    """Returns source, description and fields of a method."""
    cls = methods.get(name)
    told = [_flowing(text) for text in (sys.modules[cls.__module__].__doc__, cls.__doc__)]
    fields = dataclasses.fields(cls)
    table = _keys(cls, fields, "method.", name) if fields else "It has no fields of its own."
    return "\n\n".join([*map(_linked, told), table])


def method_list() -> str:
    """Returns a table of all methods: key, title, publication."""
    rows = []
    for name in methods.names():
        told = _flowing(sys.modules[methods.get(name).__module__].__doc__).split("\n\n")[0]
        title = re.split(r"[:.(]", told)[0]
        found = _ARXIV.search(told)
        rows.append((f"[`{name}`](#{name})", _cell(title), _linked(found[0]) if found else ""))
    return _table(("key", "method", "publication"), rows)


def dataset_list() -> str:
    """Returns a table of the datasets."""
    rows = []
    for name in data.names():
        facts = data.describe(name)
        size = " x ".join(map(str, facts["shape"])) if facts["shape"] else "from the files"
        needs = f"`{facts['needs']}`" if facts["needs"].startswith("data.path") else facts["needs"]
        rows.append((f"`{name}`", size, str(facts["classes"] or "from the files"), needs,
                     facts["augment"], _linked(_cell(facts["about"]))))  # fmt: skip
    return _table(("`data.name`", "shape", "classes", "needs", "augmentation", "what"), rows)


def model_list() -> str:
    """Returns a table of the built-in networks, their sizes for CIFAR-10."""
    rows = []
    for name in models.names():
        facts = models.describe(name)
        rows.append((f"`{name}`", f"{facts['parameters']:,}", f"{facts['multiply_adds']:,}",
                     _linked(_cell(facts["source"]))))  # fmt: skip
    return _table(("`model.name`", "parameters", "multiply-adds", "source"), rows)


def space_list() -> str:
    """Returns the packaged search spaces, each folded: its comment and its content."""
    parts = []
    for path in sorted((ROOT / "search_spaces").glob("*.yaml")):
        lines = path.read_text().splitlines()
        count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
        told = " ".join(line.lstrip("# ") for line in lines[:count] if "raybust tune" not in line)
        dimensions = len(yaml.safe_load(path.read_text()).get("search", {}))
        content = "\n".join(f"    {line}".rstrip() for line in lines)
        parts.append(
            f'??? abstract "{path.stem} ({dimensions} entries)"\n\n'
            f"    {_escaped(told)}\n\n    ```yaml\n{content}\n    ```\n"
        )
    return "\n".join(parts)


def api_list() -> str:
    """Returns a table of the public packages, each linked to its page."""
    rows = []
    for name, members in packages().items():
        told = _flowing(importlib.import_module(f"raybust.{name}").__doc__).split("\n\n")[0]
        rows.append((f"[`raybust.{name}`](api/{name}.md)", _cell(told), str(len(members))))
    return _table(("module", "what", "names"), rows)


KINDS: dict[str, Callable[..., str]] = {
    "command": command_options,
    "section": section_keys,
    "method": method_entry,
    "methods": method_list,
    "datasets": dataset_list,
    "models": model_list,
    "spaces": space_list,
    "api": api_list,
}
"""What a marker may ask for."""


@functools.cache
def packages() -> dict[str, list[str]]:
    """Returns the public modules below raybust, each with its public names.

    Raises:
        ValueError: a public name has no docstring.
    """
    found = {}
    for info in pkgutil.walk_packages(raybust.__path__, "raybust."):
        name = info.name.removeprefix("raybust.")
        if not info.ispkg or name in _BESIDE:
            continue
        exported = getattr(importlib.import_module(info.name), "__all__", None)
        if exported:
            found[name] = sorted(exported, key=str.lower)
    for name in MODULES:
        found[name] = sorted(_own_names(f"raybust.{name}"), key=str.lower)
    bare = [
        f"raybust.{name}.{member}"
        for name, members in found.items()
        for member in members
        if not documented(f"raybust.{name}", member)
    ]
    if bare:
        raise ValueError(f"public names without a docstring: {', '.join(bare)}")
    return dict(sorted(found.items()))


def documented(module: str, name: str) -> bool:
    """Returns whether a public name has a docstring: its own, or a string below its assignment."""
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) or inspect.isroutine(value):
        return bool(inspect.getdoc(value))
    return any(name in _documented_constants(source) for source in _sources(module))


def _sources(module: str) -> Iterator[Path]:
    """Yields the files of a package, among which a constant that it exports is assigned."""
    file = Path(str(importlib.import_module(module).__file__))
    yield from file.parent.glob("*.py") if file.name == "__init__.py" else (file,)
    for part in ("config/assess.py", "numerics/bounds.py"):
        yield ROOT / "raybust" / part


@functools.cache
def _documented_constants(source: Path) -> set[str]:
    """Returns the names that a module assigns and documents by the string that follows."""
    found = set()
    body = ast.parse(source.read_text()).body
    for node, after in itertools.pairwise(body):
        told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if told and isinstance(targets[0], ast.Name):
            found.add(targets[0].id)
    return found


def _own_names(module: str) -> list[str]:
    """Returns the public functions and classes that a module defines."""
    loaded = importlib.import_module(module)
    return [
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    ]


def api_page(name: str) -> str:
    """Returns the page of a public module, for mkdocstrings to fill."""
    module = f"raybust.{name}"
    told = _linked(_flowing(importlib.import_module(module).__doc__))
    blocks = [f"::: {module}.{member}" for member in packages()[name]]
    return "\n\n".join([f"# {module}", told, *blocks]) + "\n"


def _keys(cls: type, fields: Any, prefix: str, owner: str = "") -> str:
    """Returns the table of some fields of a dataclass.

    Args:
        cls: the dataclass.
        fields: those of its fields that are told.
        prefix: of their keys.
        owner: of whom the anchors are, where several tables have the same keys.
    """
    hints, rows = get_type_hints(cls), []
    for field in fields:
        key = f"{prefix}{field.name}"
        anchor = f"{owner}.{field.name}" if owner else key
        unit = field.metadata.get("unit", "")
        bounds = domain(field.metadata).replace(f"{2**63:g}", "2^63")
        bounds = re.sub(r"([<>]=?) ", r"\1&nbsp;", bounds)
        within = "; ".join(part for part in (bounds, unit) if part)
        told = field.metadata.get("doc", "The method that this one wraps.")
        linked = f"[`{key}`](#{anchor}){{ #{anchor} .key }}"
        rows.append((linked, _cell(type_words(hints[field.name])), f"`{default_of(field)}`",
                     _cell(within), _linked(_cell(told))))  # fmt: skip
    return _table(("key", "type", "default", "domain", "meaning"), rows)


def type_words(hint: Any) -> str:
    """Returns a type in words: "list of numbers", "integer or null", "one of `a`, `b`"."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in inside)
    if origin in (Union, types.UnionType):
        kinds = [type_words(kind) for kind in inside if kind is not type(None)]
        return " or ".join([*kinds, *["null"] * (type(None) in inside)])
    if origin is tuple and inside[-1] is Ellipsis:
        return f"list of {_plural(type_words(inside[0]))}"
    if origin is tuple:
        return f"pair of {_plural(type_words(inside[0]))}"
    if hint is methods.Method:
        return "a method"
    return _WORDS.get(origin or hint, str(hint))


def _plural(words: str) -> str:
    head, space, rest = words.partition(" ")
    return f"{head}s{space}{rest}"


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _flowing(text: str | None) -> str:
    """Returns a docstring whose paragraphs are one line each, escaped for Markdown."""
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(_escaped(" ".join(one.split())) for one in paragraphs)


def _escaped(text: str) -> str:
    """Returns a text whose asterisks, underscores and angles outside of code are themselves."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = [p if p.startswith("`") else re.sub(r"([*_\[])", r"\\\1", p) for p in parts]
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;") for p in plain)


def _cell(text: str) -> str:
    """Returns a text as a cell of a table."""
    return text.replace("|", "\\|")


def _linked(text: str) -> str:
    """Returns a text with its arXiv numbers as links."""
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


if __name__ == "__main__":
    try:
        staged = stage(Path(sys.argv[1]))
    except ValueError as error:
        sys.exit(f"docs: {error}")
    print(f"{len(staged)} pages in {sys.argv[1]}")

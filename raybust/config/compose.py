"""Builds a checked `Config` from YAML files and key=value, and converts it to plain data.

OmegaConf reads, merges and converts. This module adds what it lacks: all problems reported at
once, each with its full key and source; domains; the method's own fields; no interpolation that
could read the environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from raybust.config.options import fraction
from raybust.config.schema import Config, upgraded
from raybust.errors import RequestError

MethodTypes = Callable[[str], type]
"""Maps a method's name to its dataclass: `raybust.methods.get`."""


_UNREADABLE = (
    yaml.YAMLError,
    OmegaConfBaseException,
    # Raised by PyYAML's constructors for `!!int x`, `!!bool x`, 5,000 digits, 1,000 brackets.
    ValueError,
    LookupError,
    AttributeError,
    RecursionError,
)
_SHOWN = 80
USUAL_METHOD = "standard"
"""The method of a configuration that names none."""


class Leaf(NamedTuple):
    """A value set by the user: its full key, the value, and its source."""

    key: str
    value: Any
    source: str


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file, interpolations unresolved.

    Raises:
        RequestError: the file is missing, invalid, repeats a key, or is not a mapping.
    """
    try:
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror or error}") from None
    except _UNREADABLE as error:
        raise _not_yaml(str(path), error) from None
    if not isinstance(node, dict):
        raise RequestError(
            f"{path}: expected a mapping of keys to values, got a {type(node).__name__}"
        )
    return {str(key): value for key, value in node.items()}


def leaves_of(node: Mapping[str, Any], source: str, prefix: str = "") -> list[Leaf]:
    """Returns the leaves of a nested mapping under dotted keys; lists are leaves."""
    found: list[Leaf] = []
    for key, value in node.items():
        full = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += leaves_of(value, source, full + ".")
        else:
            found.append(Leaf(full, value, source))
    return found


def leaves_of_arguments(arguments: Sequence[str]) -> list[Leaf]:
    """Returns the leaves of key=value arguments, parsing values as YAML (1e-3, [1, 2], true, null).

    Raises:
        RequestError: an argument is not key=value.
    """
    found: list[Leaf] = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise RequestError(f"'{argument}': expected key=value, for instance train.epochs=10")
        try:
            node = OmegaConf.to_container(OmegaConf.from_dotlist([argument]), resolve=False)
        except _UNREADABLE as error:
            shown = argument if len(argument) <= _SHOWN else f"{argument[:_SHOWN]}..."
            raise _not_yaml(f"'{shown}'", error) from None
        found += leaves_of(node, "command line")  # type: ignore[arg-type]
    return found


def _not_yaml(what: str, error: Exception) -> RequestError:
    if isinstance(error, RecursionError):
        return RequestError(f"{what}: is nested too deeply; expected keys with values or lists")
    text = " ".join(str(error).split())
    if not isinstance(error, (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError)):
        text = f"a value does not match its tag, as in `!!int x`, or has too many digits ({text})"
    return RequestError(f"{what}: not valid YAML: {text}")


def compose(leaves: Sequence[Leaf], methods: MethodTypes) -> Config:
    """Returns the defaults overridden by the leaves; later leaves win.

    Args:
        leaves: values in order of increasing precedence.
        methods: maps a method's name to its dataclass.

    Raises:
        RequestError: all problems, in one line.
    """
    found = [wrong for leaf in leaves if (wrong := _forbidden_interpolation(leaf))]
    if found:
        raise RequestError(*found)
    tree = OmegaConf.structured(_schema(Config, "", leaves, methods))
    keys = {leaf.key for leaf in leaves_of(_plain(tree), "default")}
    for leaf in leaves:
        wrong = _assign(tree, leaf, keys)
        if wrong:
            found.append(f"{wrong} ({leaf.source})")
    if found:
        raise RequestError(*found)
    try:
        plain = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise RequestError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    try:
        return from_dict(plain, methods)  # type: ignore[arg-type]
    except RequestError as error:
        sources = {leaf.key: f" ({leaf.source})" for leaf in leaves}
        raise RequestError(
            *(text + sources.get(text.partition(":")[0], "") for text in error.problems)
        ) from None


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the configuration as plain nested data that JSON, YAML and every worker can hold."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = {
                field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
            }
            return {"name": value.key, **fields} if hasattr(value, "key") else fields
        if isinstance(value, (tuple, list)):
            return [plain(item) for item in value]
        return dict(value) if isinstance(value, Mapping) else value

    result: dict[str, Any] = plain(config)
    return result


def from_dict(plain: Mapping[str, Any], methods: MethodTypes) -> Config:
    """Inverts `to_dict`, checking every domain.

    Raises:
        RequestError: all problems, with full keys.
    """
    found: list[str] = []

    def build(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
        arguments: dict[str, Any] = {}
        hints = get_type_hints(cls)
        for key, value in values.items():
            if key in ("method", "base"):
                arguments[key] = build(
                    methods(value["name"]), _without_name(value), f"{prefix}{key}."
                )
            elif dataclasses.is_dataclass(hints[key]):
                arguments[key] = build(hints[key], value, f"{prefix}{key}.")
            else:
                arguments[key] = _frozen(value)
        wrong_inside = bool(found)
        try:
            return cls(**arguments)
        except RequestError as error:
            for text in error.problems:
                across = "." in text.partition(":")[0]
                if not (across and wrong_inside):  # otherwise it saw a default
                    found.append(text if across else prefix + text)
            return cls() if prefix else None

    config: Config = build(Config, upgraded(plain), "")
    if found:
        raise RequestError(*found)
    return config


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yields "key: old -> new" for every leaf that differs between two plain configurations."""
    before, after = ({leaf.key: leaf.value for leaf in leaves_of(node, "")} for node in (old, new))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield f"{key}: {before.get(key)} -> {after.get(key)}"


def _plain(tree: Any) -> dict[str, Any]:
    plain: dict[str, Any] = OmegaConf.to_container(tree, resolve=False)  # type: ignore[assignment]
    return plain


def _without_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "name"}


def _schema(cls: type, prefix: str, leaves: Sequence[Leaf], methods: MethodTypes) -> type:
    """Returns an unfrozen copy of a section, with the selected methods' fields, for OmegaConf.

    Args:
        cls: the section or method.
        prefix: its full key with a trailing dot, "" for the root.
        leaves: the user's values; `method.name` and each nested `base.name` select the methods.
        methods: maps a method's name to its dataclass.
    """
    hints = get_type_hints(cls)
    sections = []
    for f in dataclasses.fields(cls):
        full = f"{prefix}{f.name}"
        nested = None
        if f.name in ("method", "base"):
            default = f.default_factory().key if callable(f.default_factory) else USUAL_METHOD
            name = next(
                (leaf.value for leaf in reversed(leaves) if leaf.key == f"{full}.name"), default
            )
            nested = methods(str(name))
        elif dataclasses.is_dataclass(hints[f.name]):
            nested = hints[f.name]
        if nested is not None:
            sections.append((f.name, _schema(nested, full + ".", leaves, methods)))
    return _unfrozen(cls, tuple(sections))


@lru_cache(maxsize=256)
def _unfrozen(cls: type, sections: tuple[tuple[str, type], ...]) -> type:
    """Returns a section's unfrozen copy with these subsections; creating a class takes 10 ms."""
    hints, inside = get_type_hints(cls), dict(sections)
    fields: list[Any] = [("name", str, cls.key)] if hasattr(cls, "key") else []
    for f in dataclasses.fields(cls):
        if f.name in inside:
            section = inside[f.name]
            fields.append((f.name, section, dataclasses.field(default_factory=section)))
        else:
            fields.append((f.name, hints[f.name], dataclasses.field(default=f.default)))
    return dataclasses.make_dataclass(cls.__name__, fields)


def _forbidden_interpolation(leaf: Leaf) -> str | None:
    for text in _texts(leaf.value):
        if "${" in text and not re.fullmatch(r"([^$]|\$\{[\w.]+\})*", text):
            return (
                f"{leaf.key}: got {text!r}, expected a value or a reference to another key such as "
                f"${{train.epochs}}; nothing else is interpolated ({leaf.source})"
            )
    return None


def _texts(value: Any) -> Iterator[str]:
    """Yields every string in a value, nested lists and mappings included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _assign(tree: Any, leaf: Leaf, keys: set[str]) -> str | None:
    """Sets one leaf; returns the problem, or None."""
    if leaf.key not in keys:
        inside = sorted(key for key in keys if key.startswith(leaf.key + "."))
        if inside:
            return f"{leaf.key}: got {leaf.value!r}, expected one of its keys: {', '.join(inside)}"
        return _unknown_key(leaf.key, keys)
    try:
        OmegaConf.update(tree, leaf.key, _meant(leaf.value, _hint(tree, leaf.key)), force_add=False)
    except (OmegaConfBaseException, OverflowError):  # too large for a float
        return f"{leaf.key}: got {leaf.value!r}, expected {_expected(tree, leaf.key)}"
    return None


def _meant(value: Any, hint: Any) -> Any:
    """Returns a value as a field of a type takes it: a fraction such as 8/255 as its number, and
    one value for a list as a list of one."""
    inside = [one for one in (hint, *get_args(hint)) if get_origin(one) is tuple]
    if inside:
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        kinds = get_args(inside[0])
        if value is None or isinstance(value, Mapping) or len(kinds) != 2 or kinds[1] is not ...:
            return value
        return [_meant(item, kinds[0]) for item in items]
    kinds = (hint, *get_args(hint))
    if float in kinds and str in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return fraction(value) if float in kinds and isinstance(value, str) else value


def _hint(tree: Any, key: str) -> Any:
    """Returns the type of a key."""
    section, _, name = key.rpartition(".")
    owner = OmegaConf.select(tree, section) if section else tree
    return get_type_hints(OmegaConf.get_type(owner))[name]


def _unknown_key(key: str, keys: set[str]) -> str:
    section = key
    while section and not any(other.startswith(section + ".") for other in keys):
        section = section.rpartition(".")[0]
    near = (
        difflib.get_close_matches(key, keys, n=1)
        or [k for k in sorted(keys) if k.rpartition(".")[2] == key][:1]
    )
    hint = f" Did you mean '{near[0]}'?" if near else ""
    here = sorted(
        {
            other[len(section) :].lstrip(".").partition(".")[0]
            for other in keys
            if other.startswith(section)
        }
    )
    where = f"Keys of '{section}'" if section else "Keys"
    return f"unknown key '{key}'.{hint} {where}: {', '.join(here)}"


def _expected(tree: Any, key: str) -> str:
    """Returns the type of a key in the user's terms."""
    hint = _hint(tree, key)
    text = (
        hint.__name__
        if isinstance(hint, type) and not getattr(hint, "__args__", None)
        else str(hint)
    )
    text = text.replace("typing.", "").replace("tuple[", "a list [")
    literal = re.fullmatch(r"Literal\[(.*)\]", text)
    return f"one of {literal[1]}" if literal else text.replace(" | None", " or null")

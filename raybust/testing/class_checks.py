"""Requirements on a method's class, as plain functions: its fields, how it wraps another method,
and its search space.

Each raises an AssertionError that says what is wrong. `variants` yields the class's other choices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest
from torch import nn

from raybust import methods
from raybust.config import MethodTypes, compose, expand, leaves_of, read_yaml
from raybust.errors import RequestError
from raybust.methods import Method
from raybust.methods.gaussian import Gaussian
from raybust.methods.standard import Standard
from raybust.search.space import Space

BASES = (Standard(), Gaussian(sigma=0.5))
"""Base methods that every wrapper is tested with."""


class Variant(NamedTuple):
    """A method with one field changed from its default to another choice."""

    field: str
    value: object
    method: Method


def wraps(cls: type[Method]) -> bool:
    """Returns whether a method has a field `base`."""
    return "base" in {field.name for field in dataclasses.fields(cls)}


def variants(cls: type[Method], settings: Mapping[str, Any] | None = None) -> Iterator[Variant]:
    """Yields a variant for each other choice of a field and each flipped flag, except for those
    that a rule across fields refuses. Attacks take only two steps.

    Args:
        cls: class of the method.
        settings: values of its other fields.
    """
    hints = get_type_hints(cls)
    given = {**({"steps": 2} if "steps" in hints else {}), **(settings or {})}
    default = cls(**(settings or {}))
    for field in dataclasses.fields(cls):
        choices = get_args(hints[field.name])
        flag = bool in (hints[field.name], *choices)
        if not flag and not (choices and isinstance(choices[0], str)):
            continue
        for value in (True, False) if flag else choices:
            if value in (None, getattr(default, field.name)):
                continue
            try:
                yield Variant(field.name, value, cls(**{**given, field.name: value}))
            except RequestError:
                continue


def check_class(cls: type[Method]) -> None:
    """The class is a documented, frozen, keyword-only dataclass with checked fields."""
    assert issubclass(cls, Method)
    assert "__dataclass_params__" in vars(cls), f"{cls.__name__} lacks @dataclass"
    parameters: Any = vars(cls)["__dataclass_params__"]
    assert parameters.frozen, f"{cls.__name__} is not frozen"
    assert cls.__doc__, f"{cls.__name__} has no docstring"
    assert not cls.__doc__.startswith(f"{cls.__name__}("), f"{cls.__name__} has no docstring"
    method = cls()
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        assert field.kw_only, f"{field.name} is positional"
        if field.name == "base":
            assert isinstance(method.wrapped, Method)
            continue
        doc = field.metadata.get("doc", "").strip()
        assert doc.endswith("."), f"{field.name}: its doc is not a sentence: '{doc}'"
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, getattr(method, field.name))
        check_domain(cls, field, hints[field.name])
    positional: Any = cls
    with pytest.raises(TypeError):
        positional(object())


def check_domain(cls: type[Method], field: dataclasses.Field[Any], hint: Any) -> None:
    """The class refuses each value outside the field's domain and names the field in the error.

    Args:
        cls: class of the method.
        field: one of its fields.
        hint: type of the field.
    """
    for value in outside(field, hint):
        with pytest.raises(RequestError) as refused:
            cls(**{field.name: value})
        found = [text for text in refused.value.problems if text.startswith(f"{field.name}: got ")]
        assert found, f"{field.name}={value!r}: no problem names the field"


def outside(field: dataclasses.Field[Any], hint: Any) -> list[Any]:
    """Returns values that a field must refuse.

    Args:
        field: field of a method's class.
        hint: type of the field.
    """
    arguments = get_args(hint)
    if arguments and isinstance(arguments[0], str):
        return ["no such choice"]
    numbers = {hint, *arguments} & {int, float}
    if not numbers:
        return []
    step = {"gt": 0, "lt": 0, "ge": -1, "le": 1}
    bounds = {
        key: bound for key in step if math.isfinite(bound := field.metadata.get(key, math.nan))
    }
    values: list[Any] = [bound + step[key] for key, bound in bounds.items()]
    values += [math.nan] if float in numbers else []
    return [(value,) if isinstance(field.default, tuple) else value for value in values]


class Front(nn.Identity):
    """An identity in front of a network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking(Gaussian):
    """A base method that overrides everything a wrapper has to pass on."""

    @property
    def balanced_classes(self) -> int:
        """Three classes."""
        return 3

    def setup_images(self) -> int:
        """Seventeen images."""
        return 17

    def embedded_by(self) -> str:
        """A run's name."""
        return "embedding-run"

    def taught_by(self) -> str:
        """A run's name."""
        return "teaching-run"

    def front(self) -> nn.Module:
        """An identity that the check can find."""
        return Front()


def check_delegation(cls: type[Method], settings: Mapping[str, Any] | None = None) -> None:
    """A wrapper passes on what its base says wherever it does not override it, and never loses the
    base's sigma or front.

    Args:
        cls: class with a field `base`.
        settings: values of its other fields.
    """
    base = Asking(sigma=0.5)
    make: Any = cls
    method: Method = make(base=base, **(settings or {}))
    assert method.wrapped == base
    for name in ("setup_images", "embedded_by", "taught_by", "noise"):
        if getattr(cls, name) is getattr(Method, name):
            assert getattr(method, name)() == getattr(base, name)(), f"the base's {name} is lost"
    if cls.balanced_classes is Method.balanced_classes:
        assert method.balanced_classes == 3, "the base's balanced_classes are lost"
    assert method.noise() is not None, "the base's sigma is lost"
    front = method.front()
    assert front is not None, "the base's front is lost"
    assert any(isinstance(module, Front) for module in front.modules()), "the base's front is lost"


def check_space(path: str | Path, key: str, find: MethodTypes = methods.get) -> None:
    """A search space is valid, searches its method, and has a default in every numeric domain.

    Args:
        path: YAML file.
        key: name of the method.
        find: maps a method's name to its class.
    """
    tree = read_yaml(path)
    block = expand(tree.pop("search"), Path(path))
    leaves = leaves_of(tree, str(path))
    config = compose(leaves, find)
    space = Space.parse(block)
    space.check(leaves, find)
    names = {config.method.key}
    names.update(v for d in space.domains if d.key == "method.name" for v in d.values)
    assert key in names, f"{path} does not search {key}"
    assert config.tune.trials >= 1
    for domain in space.domains:
        assert domain.kind == "choice" or domain.default is not None, f"{domain.key}: no default"

"""Fields of a configuration section: default, documentation, domain, and validation.

A section, like a method's hyperparameters, is a frozen keyword-only dataclass that derives from
`Section` and declares its fields with `option`. Its constructor rejects values outside a field's
domain and names the field.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_type_hints

from raybust.errors import RequestError

_BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "gt": (operator.gt, ">"),
    "ge": (operator.ge, ">="),
    "lt": (operator.lt, "<"),
    "le": (operator.le, "<="),
}


_FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")
_LEVELS = 255
_LARGEST_SIGMA = 10.0
"""Noise beyond which nothing of an image in [0, 1] is left (our choice)."""


def option(
    default: Any,
    doc: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    unit: str = "",
) -> Any:
    """Returns a dataclass field with documentation and a domain.

    Args:
        default: the default value; a tuple for a list of values.
        doc: one sentence for the user, printed by `raybust methods NAME`.
        gt: exclusive lower bound of the value, or of each element of a tuple. NaN, integers beyond
            64 bits, and infinity unless it is the bound `le` are always rejected.
        ge: inclusive lower bound.
        lt: exclusive upper bound.
        le: inclusive upper bound.
        unit: unit of the value, for instance "pixels in [0, 1]".
    """
    bounds = {"gt": gt, "ge": ge, "lt": lt, "le": le}
    metadata = {"doc": doc, "unit": unit, **{k: v for k, v in bounds.items() if v is not None}}
    return dataclasses.field(default=default, metadata=metadata)


def domain(metadata: Mapping[str, Any]) -> str:
    """Returns a field's bounds as text, for instance "> 0, <= 1", or "" if it has none."""
    return ", ".join(f"{_BOUNDS[key][1]} {metadata[key]:g}" for key in _BOUNDS if key in metadata)


def fraction(value: Any) -> Any:
    """Returns the number of a fraction such as 8/255; any other value as it is."""
    found = _FRACTION.fullmatch(value) if isinstance(value, str) else None
    return float(found[1]) / float(found[2]) if found and float(found[2]) else value


def default_of(field: dataclasses.Field[Any]) -> str:
    """Returns a field's default as YAML has it; 255ths also as such."""
    if callable(field.default_factory):
        return str(field.default_factory().key)
    value = field.default
    parts = value if isinstance(value, tuple) else (value,)
    shown = ", ".join(map(_shown, parts))
    return f"[{shown}]" if isinstance(value, tuple) else shown


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    if math.isinf(value):
        return ".inf"
    levels = value * _LEVELS
    if levels >= 1 and abs(levels - round(levels)) < 1e-9 and round(value, 4) != value:
        return f"{value:.4g} ({round(levels)}/{_LEVELS})"
    return f"{value:g}"


def out_of_domain(value: Any, metadata: Mapping[str, Any]) -> str | None:
    """Returns the problem with a field's value, or None.

    Args:
        value: a value, or a tuple of values; None and strings have no domain.
        metadata: the field's metadata from `option`.
    """
    for item in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(item, float) and not math.isfinite(item) and item != metadata.get("le"):
            return f"got {item}, expected a {'' if math.isnan(item) else 'finite '}number"
        if isinstance(item, bool) or not isinstance(item, (int, float)):
            continue
        if any(not _BOUNDS[key][0](item, metadata[key]) for key in _BOUNDS if key in metadata):
            return f"got {item}, expected {domain(metadata)}"
        if isinstance(item, int) and abs(item) >= 2**63:
            return f"got {item}, expected a number below 2^63"
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Base of all configuration sections and methods; validates itself on construction."""

    def __post_init__(self) -> None:
        found = self.problems()
        if found:
            raise RequestError(*found)

    def problems(self) -> list[str]:
        """Returns problems as "field: got X, expected Y"; subclasses add checks across fields."""
        hints = get_type_hints(type(self))
        found = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wrong = out_of_domain(value, field.metadata) or self._in_levels(field.name, value)
            allowed = get_args(hints[field.name])
            if wrong is None and allowed and isinstance(allowed[0], str) and value not in allowed:
                wrong = f"got {value!r}, expected one of {', '.join(map(str, allowed))}"
            if wrong is not None:
                found.append(f"{field.name}: {wrong}")
        return found

    def _in_levels(self, name: str, value: Any) -> str | None:
        """Returns the problem with a noise or a radius that seems to count pixels from 0 to 255."""
        if name == "eps" and getattr(self, "norm", None) == "linf":
            most = 1.0
        elif name == "sigma":
            most = _LARGEST_SIGMA
        else:
            return None
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, (int, float)) and most < item:
                return (
                    f"got {item:g}, expected at most {most:g}, because pixels are in [0, 1]; did"
                    f" you mean {item:g}/255 = {item / 255:.4g}?"
                )
        return None

"""Fields of a configuration section: default, documentation, domain; and the check that reads them.

A section, like a method's hyper-parameters, is a frozen keyword-only dataclass that derives from
`Section` and whose fields are made by `option`. Its construction refuses a value outside the
field's domain and names the field.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_type_hints

from raybust.errors import RequestError

_BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "gt": (operator.gt, ">"),
    "ge": (operator.ge, ">="),
    "lt": (operator.lt, "<"),
    "le": (operator.le, "<="),
}


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
    """Returns a dataclass field with its documentation and its domain.

    Args:
        default: the default value; a tuple for a list of values.
        doc: one sentence for the user; `raybust methods NAME` prints it.
        gt: exclusive lower bound of the value, or of each value of a tuple. NaN is always refused,
            infinity too unless it is the bound `le`, and what 64 bits cannot hold.
        ge: inclusive lower bound.
        lt: exclusive upper bound.
        le: inclusive upper bound.
        unit: unit of the value, for instance "pixels in [0, 1]".
    """
    bounds = {"gt": gt, "ge": ge, "lt": lt, "le": le}
    metadata = {"doc": doc, "unit": unit, **{k: v for k, v in bounds.items() if v is not None}}
    return dataclasses.field(default=default, metadata=metadata)


def domain(metadata: Mapping[str, Any]) -> str:
    """Returns the bounds of a field in words, for instance "> 0, <= 1", or "" where it has none."""
    return ", ".join(f"{_BOUNDS[key][1]} {metadata[key]:g}" for key in _BOUNDS if key in metadata)


def out_of_domain(value: Any, metadata: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a field's value, or None.

    Args:
        value: a value, or a tuple of values; None and texts have no domain.
        metadata: the field's metadata as `option` made it.
    """
    for item in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(item, float) and not math.isfinite(item) and item != metadata.get("le"):
            return f"got {item}, expected a number{'' if math.isnan(item) else ' that is finite'}"
        if isinstance(item, bool) or not isinstance(item, (int, float)):
            continue
        if any(not _BOUNDS[key][0](item, metadata[key]) for key in _BOUNDS if key in metadata):
            return f"got {item}, expected {domain(metadata)}"
        if isinstance(item, int) and abs(item) >= 2**63:
            return f"got {item}, expected a number below 2^63"
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Base of every configuration section and of every method: checks itself when it is made."""

    def __post_init__(self) -> None:
        found = self.problems()
        if found:
            raise RequestError(*found)

    def problems(self) -> list[str]:
        """Returns all that is wrong, each as "field: got X, expected Y"; subclasses add rules
        across fields."""
        hints = get_type_hints(type(self))
        found = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wrong = out_of_domain(value, field.metadata)
            allowed = get_args(hints[field.name])
            if wrong is None and allowed and isinstance(allowed[0], str) and value not in allowed:
                wrong = f"got {value!r}, expected one of {', '.join(map(str, allowed))}"
            if wrong is not None:
                found.append(f"{field.name}: {wrong}")
        return found

"""The rules of `raybust gate`: a file with columns, bounds and settings, read and checked.

Each rule is on one column and has one bound: a least value of the candidate, or a margin to the
reference. The message on a mistake names the key.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybust import config as configuration
from raybust.config import Leaf
from raybust.errors import RequestError

_KEYS = ("reference", "examples", "cap", "certify", "evaluate", "rules")
_RULE = ("column", "at_least", "not_worse_by")
_LARGEST = {"at_least": 1.0, "not_worse_by": 100.0}
_SMALLEST = {False: 0.0, True: 1e-9}
"""Radii of certificates and of attacks."""
_NUMBER = r"(\d+(?:\.\d*)?(?:/\d+(?:\.\d*)?)?)"
_COLUMN = re.compile(rf"clean|ACR|certified at {_NUMBER}|robust at {_NUMBER}")


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        column: `clean`, `ACR`, `certified at R` or `robust at EPS`.
        at_least: the bound of the candidate's value, or None.
        not_worse_by: the margin to the reference, in points or units of the radius, or None.
    """

    column: str
    at_least: float | None = None
    not_worse_by: float | None = None

    @property
    def radius(self) -> float | None:
        """The radius in the column's name."""
        found = _COLUMN.fullmatch(self.column)
        number = found and (found[1] or found[2])
        if not number:
            return None
        value = configuration.fraction(number)
        return float(value) if "/" not in str(value) else math.nan

    def __str__(self) -> str:
        if self.at_least is not None:
            return f"{self.column} at least {self.at_least:g}"
        unit = "" if self.column == "ACR" else " points"
        return f"{self.column} not worse by more than {self.not_worse_by:g}{unit}"


@dataclass(frozen=True)
class Gate:
    """A file of rules.

    Attributes:
        reference: a run or model; None if no rule needs one.
        examples: images at first.
        cap: images at most.
        leaves: settings of the measurements.
        rules: all of them must pass.
    """

    reference: str | None
    examples: int
    cap: int
    leaves: tuple[Leaf, ...]
    rules: tuple[Rule, ...]

    def looks(self, total: int) -> list[int]:
        """Returns the numbers of images at which the rules are looked at.

        Args:
            total: number of images that there are.
        """
        most = min(self.cap, total)
        count = 1 + max(0, math.ceil(math.log2(most / self.examples)))
        return [min(self.examples * 2**look, most) for look in range(count)]


def read_gate(path: Path) -> Gate:
    """Reads a file of rules.

    Raises:
        RequestError: it is not one; the message names the key.
    """
    plain = configuration.read_yaml(path)
    for key in plain:
        if key not in _KEYS:
            raise RequestError(f"{path}: unknown key '{key}'; expected {', '.join(_KEYS)}")
    given = plain.get("rules") or []
    if not isinstance(given, list):
        raise RequestError(f"{path}: rules: got {given!r}, expected a list of rules")
    rules = tuple(_rule(path, number, one) for number, one in enumerate(given, 1))
    if not rules:
        raise RequestError(f"{path}: has no rules; add `rules:` with at least one")
    needing = next((rule for rule in rules if rule.not_worse_by is not None), None)
    if needing is not None and not plain.get("reference"):
        raise RequestError(f"{path}: reference: is missing, but a rule needs it: {needing}")
    examples, cap = (_count(path, plain, key, usual) for key, usual in (("examples", 200),
                                                                        ("cap", 1000)))  # fmt: skip
    if cap < examples:
        raise RequestError(f"{path}: cap: got {cap}, expected at least examples = {examples}")
    settings = {key: plain[key] for key in ("certify", "evaluate") if plain.get(key)}
    leaves = configuration.leaves_of(settings, str(path))
    return Gate(plain.get("reference"), examples, cap, tuple(leaves), rules)


def _count(path: Path, plain: dict[str, Any], key: str, usual: int) -> int:
    value = plain.get(key, usual)
    if not isinstance(value, int) or isinstance(value, bool) or value < 2:
        raise RequestError(f"{path}: {key}: got {value!r}, expected a number of images, at least 2")
    return value


def _rule(path: Path, number: int, plain: Any) -> Rule:
    where = f"{path}: rule {number}"
    if not isinstance(plain, dict) or not set(plain) <= set(_RULE) or "column" not in plain:
        raise RequestError(f"{where}: expected `column` with `at_least` or `not_worse_by`")
    if not _COLUMN.fullmatch(str(plain["column"])):
        raise RequestError(
            f"{where}: column: got {plain['column']!r}, expected clean, ACR, certified at RADIUS"
            " or robust at EPS"
        )
    given = [key for key in _RULE[1:] if key in plain]
    if len(given) != 1:
        raise RequestError(f"{where}: expected one of at_least and not_worse_by")
    value = plain[given[0]]
    value = configuration.fraction(value) if isinstance(value, str) else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise RequestError(f"{where}: {given[0]}: got {plain[given[0]]!r}, expected a number >= 0")
    if plain["column"] != "ACR" and value > _LARGEST[given[0]]:
        unit = "a share between 0 and 1" if given[0] == "at_least" else "at most 100 points"
        raise RequestError(f"{where}: {given[0]}: got {value:g}, expected {unit}")
    rule = Rule(str(plain["column"]), **{given[0]: float(value)})
    if rule.radius is not None and not rule.radius >= _SMALLEST[rule.column.startswith("robust")]:
        raise RequestError(f"{where}: column: got {rule.column!r}, expected a radius > 0")
    return rule

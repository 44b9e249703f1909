"""One searched key: its values, scale, and the condition under which it exists.

train.lr:     {float: [0.005, 0.5], log: true, default: 0.05}
train.epochs: {int: [2, 10], step: 2}
method.name:  {choice: [standard, gaussian]}
method.sigma: {float: [0.1, 1.0], log: true, when: {method.name: gaussian}}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from raybust.config import fraction
from raybust.errors import RequestError, unknown

_KINDS = ("float", "int", "choice")
_EXTRAS = {"float": ("log", "step"), "int": ("log", "step"), "choice": ()}


class Suggester(Protocol):
    """The part of `optuna.Trial` that a space uses."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Optuna's `suggest_float`."""

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Optuna's `suggest_int`."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Optuna's `suggest_categorical`."""


@dataclass(frozen=True)
class Domain:
    """The values that one key may take.

    Attributes:
        name: the key, or `KEY@LABEL` if a key has several domains, each under its condition.
        kind: "float", "int" or "choice".
        values: (low, high), or the choices.
        log: whether the scale is logarithmic.
        step: spacing of the values starting at `low`, or None.
        default: value in the first trial; None draws one.
        when: parent keys and their values for which this key exists.
    """

    name: str
    kind: str
    values: tuple[Any, ...]
    log: bool = False
    step: float | None = None
    default: Any = None
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def key(self) -> str:
        """The configuration key."""
        return self.name.partition("@")[0]

    def active(self, point: Mapping[str, Any]) -> bool:
        """Returns whether the key exists, given a point of its parent keys."""
        return all(point.get(key) in values for key, values in self.when)

    def contains(self, value: Any) -> bool:
        """Returns whether a value lies in the domain."""
        if self.kind == "choice":
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        low, high = self.values
        if not low <= value <= high or (self.kind == "int" and value != int(value)):
            return False
        steps = (value - low) / self.step if self.step else 0
        return abs(steps - round(steps)) < 1e-9

    def suggest(self, trial: Suggester) -> Any:
        """Draws a value from an Optuna trial."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.name, self.values)
        low, high = self.values
        if self.kind == "int":
            step = int(self.step) if self.step else 1
            return trial.suggest_int(self.name, low, high, step=step, log=self.log)
        return trial.suggest_float(self.name, low, high, step=self.step, log=self.log)

    def distribution(self) -> BaseDistribution:
        """Returns the domain as an Optuna distribution."""
        if self.kind == "choice":
            return CategoricalDistribution(self.values)
        low, high = self.values
        if self.kind == "int":
            return IntDistribution(low, high, log=self.log, step=int(self.step or 1))
        return FloatDistribution(low, high, log=self.log, step=self.step)

    def grid(self) -> list[Any]:
        """Returns all values, or none if there are infinitely many."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values
        step = self.step or (1 if self.kind == "int" else None)
        if step is None:
            return []
        count = int((high - low) / step + 1e-9)
        return [low + i * step for i in range(count + 1)]

    def excludes(self, other: Domain) -> bool:
        """Returns whether this domain and another never exist at the same point."""
        mine, theirs = dict(self.when), dict(other.when)
        return any(not set(mine[key]) & set(theirs[key]) for key in mine.keys() & theirs.keys())

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"one of {', '.join(map(str, self.values))}"
        scale = ", log" if self.log else f", step {self.step:g}" if self.step else ""
        return f"{self.kind} in [{self.values[0]:g}, {self.values[1]:g}]{scale}"


def parse_domain(name: str, entry: Any, above: Sequence[Domain]) -> Domain:
    """Returns the domain of one line of a `search` block.

    Args:
        name: the key, or `KEY@LABEL`.
        entry: its value in the file.
        above: the preceding domains, which its conditions may refer to.

    Raises:
        RequestError: the entry is invalid.
    """
    key = name
    kinds = [kind for kind in _KINDS if isinstance(entry, Mapping) and kind in entry]
    if len(kinds) != 1:
        raise RequestError(
            f"search: {key}: got {entry!r}, expected one of"
            " {float: [low, high]}, {int: [low, high]}, {choice: [a, b]}"
        )
    kind = kinds[0]
    allowed = {kind, "default", "when", *_EXTRAS[kind]}
    for extra in entry:
        if extra not in allowed:
            raise RequestError(
                *(f"search: {key}: {t}" for t in unknown("field", extra, allowed).problems)
            )
    if not isinstance(entry.get("log", False), bool):
        raise RequestError(f"search: {key}: log: got {entry['log']!r}, expected true or false")
    values = entry[kind]
    if not isinstance(values, list) or not values:
        raise RequestError(f"search: {key}: {kind}: got {values!r}, expected a list")
    number = fraction if kind == "float" else lambda value: value
    domain = Domain(
        key,
        kind,
        tuple(map(number, values)),
        log=entry.get("log", False),
        step=number(entry.get("step")),
        default=number(entry.get("default")),
        when=_conditions(key, entry.get("when") or {}, above),
    )
    wrong = _wrong_range(domain) if kind != "choice" else None
    if wrong is None and domain.default is not None and not domain.contains(domain.default):
        wrong = f"default {domain.default!r} is outside its own domain, {domain}"
    if wrong is None:
        both = [d.name for d in above if d.key == domain.key and not d.excludes(domain)]
        if both:
            wrong = f"overlaps {', '.join(both)}; give each a `when` that excludes the other"
    if wrong is not None:
        raise RequestError(f"search: {key}: {wrong}")
    return domain


def _conditions(
    key: str, when: Any, above: Sequence[Domain]
) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if not isinstance(when, Mapping):
        raise RequestError(f"search: {key}: when: got {when!r}, expected {{key: value}}")
    found = []
    for other, values in when.items():
        domains = [d for d in above if d.key == other]
        if not domains:
            raise RequestError(
                f"search: {key}: when: '{other}' is not among the keys searched above it:"
                f" {', '.join(d.name for d in above) or 'none'}"
            )
        listed = tuple(values) if isinstance(values, list) else (values,)
        for value in listed:
            if not any(d.contains(value) for d in domains):
                raise RequestError(
                    f"search: {key}: when: {other}: got {value!r}, expected"
                    f" {' or '.join(map(str, domains))}"
                )
        found.append((str(other), listed))
    return tuple(found)


def _wrong_range(domain: Domain) -> str | None:
    """Returns an error message about the range of a float or int domain, or None."""
    types: tuple[type, ...] = (int,) if domain.kind == "int" else (int, float)
    numbers = [v for v in domain.values if isinstance(v, types) and not isinstance(v, bool)]
    if len(domain.values) != 2 or len(numbers) != 2:
        return f"got {list(domain.values)}, expected [low, high] of type {domain.kind}"
    low, high = domain.values
    if not low < high or math.isinf(high - low):
        return f"got [{low}, {high}], expected low < high, both finite"
    if domain.log and low <= 0:
        return f"log: got low = {low}, expected > 0"
    if domain.step is not None and domain.log:
        return "got both log and step, expected one of them"
    if domain.step is not None and not (isinstance(domain.step, types) and domain.step > 0):
        return f"step: got {domain.step!r}, expected a {domain.kind} > 0"
    if domain.step is not None and domain.step > high - low:
        return f"step: got {domain.step!r}, expected at most high - low = {high - low:g}"
    return None

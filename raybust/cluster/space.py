"""Search spaces, stage tune: domains over configuration keys, checked against the schema.

The block `search` of a sweep's file maps a key to its domain:

    train.lr:     {float: [0.005, 0.5], log: true, default: 0.05}
    train.epochs: {int: [2, 10], step: 2}
    method.name:  {choice: [standard, gaussian]}
    method.sigma: {float: [0.1, 1.0], log: true, when: {method.name: gaussian}}

A key with `when` exists only where the keys named there, above it, have one of the values given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raybust.config import Config, Leaf, MethodTypes, compose
from raybust.errors import RequestError, unknown

Point = dict[str, Any]
"""Searched keys to values; inactive keys are absent."""

_OF_THE_SWEEP = ("name", "out", "tune", "track", "cluster")
"""Sections that all trials of a sweep share."""

_KINDS = ("float", "int", "choice")
_EXTRAS = {"float": ("log", "step"), "int": ("log", "step"), "choice": ()}


class Suggester(Protocol):
    """The part of `optuna.Trial` that a space draws from."""

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
        key: the configuration key.
        kind: "float", "int" or "choice".
        values: (low, high), or the choices.
        log: whether the scale is logarithmic.
        step: distance of the values from `low` on, or None.
        default: value in the first trial, or None for one that is drawn.
        when: keys above it and the values at which this key exists.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    log: bool = False
    step: float | None = None
    default: Any = None
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def active(self, point: Mapping[str, Any]) -> bool:
        """Returns whether the key exists at a point of the keys above it."""
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
            return trial.suggest_categorical(self.key, self.values)
        low, high = self.values
        if self.kind == "int":
            step = int(self.step) if self.step else 1
            return trial.suggest_int(self.key, low, high, step=step, log=self.log)
        return trial.suggest_float(self.key, low, high, step=self.step, log=self.log)

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"one of {', '.join(map(str, self.values))}"
        scale = ", log" if self.log else f", step {self.step:g}" if self.step else ""
        return f"{self.kind} in [{self.values[0]:g}, {self.values[1]:g}]{scale}"


@dataclass(frozen=True)
class Space:
    """All domains of a sweep, in the order of their file."""

    domains: tuple[Domain, ...]

    @classmethod
    def parse(cls, block: Any) -> Space:
        """Returns the space of a `search` block.

        Raises:
            RequestError: with everything that is wrong in it.
        """
        if not isinstance(block, Mapping) or not block:
            raise RequestError(
                "search: expected a block of keys and domains,"
                " for instance `train.lr: {float: [0.01, 0.1], log: true}`"
            )
        domains: list[Domain] = []
        found: list[str] = []
        for key, entry in block.items():
            try:
                domains.append(_domain(str(key), entry, {d.key: d for d in domains}))
            except RequestError as error:
                found.extend(error.problems)
        if found:
            raise RequestError(*found)
        return cls(tuple(domains))

    def suggest(self, trial: Suggester) -> Point:
        """Draws a point from an Optuna trial (define-by-run)."""
        point: Point = {}
        for domain in self.domains:
            if domain.active(point):
                point[domain.key] = domain.suggest(trial)
        return point

    def check(self, leaves: Sequence[Leaf], methods: MethodTypes) -> None:
        """Holds every end of every domain against the schema.

        Args:
            leaves: the sweep's fixed configuration.
            methods: name of a method to its dataclass.

        Raises:
            RequestError: a key that no schema has, a value that it refuses, or a key that has a
                fixed value as well.
        """
        found: dict[str, None] = {}
        searched = {domain.key for domain in self.domains}
        for leaf in leaves:
            if leaf.key in searched:
                text = f"search: {leaf.key}: is also set to {leaf.value!r} ({leaf.source})"
                found[f"{text}; remove it from one of the two"] = None
        for domain in self.domains:
            for value in domain.values:
                point = self._reach(domain) | {domain.key: value}
                try:
                    at(leaves, point, methods)
                except RequestError as error:
                    found.update(dict.fromkeys(f"search: {text}" for text in error.problems))
        if found:
            raise RequestError(*found)

    def check_point(self, point: Mapping[str, Any]) -> None:
        """Checks a point that the user wants tried.

        Raises:
            RequestError: a key that is not searched, or a value outside its domain.
        """
        domains = {domain.key: domain for domain in self.domains}
        for key, value in point.items():
            if key not in domains:
                raise unknown("key in tune.points", key, domains)
            if not domains[key].contains(value):
                raise RequestError(f"tune.points: {key}: got {value!r}, expected {domains[key]}")

    def defaults(self) -> Point:
        """Returns the point of all defaults that the domains state."""
        return {d.key: d.default for d in self.domains if d.default is not None}

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Yields key, domain, default and condition of each domain, as texts."""
        for d in self.domains:
            when = "; ".join(f"{key} in {', '.join(map(str, v))}" for key, v in d.when)
            yield d.key, str(d), "" if d.default is None else str(d.default), when

    def _reach(self, domain: Domain) -> Point:
        """Returns a smallest point at which a domain's key exists."""
        above = {d.key: d for d in self.domains}
        point: Point = {}
        for key, values in domain.when:
            point |= self._reach(above[key]) | {key: values[0]}
        return point


def at(leaves: Sequence[Leaf], point: Mapping[str, Any], methods: MethodTypes) -> Config:
    """Returns the configuration at a point of the space.

    Args:
        leaves: the sweep's fixed configuration.
        point: searched keys to values; they win.
        methods: name of a method to its dataclass.
    """
    return compose([*leaves, *(Leaf(k, v, "search space") for k, v in point.items())], methods)


def _domain(key: str, entry: Any, above: Mapping[str, Domain]) -> Domain:
    if key.partition(".")[0] in _OF_THE_SWEEP:
        raise RequestError(
            f"search: {key}: is the same for all trials of a sweep; expected a key of another"
            f" section than {', '.join(_OF_THE_SWEEP)}"
        )
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
    domain = Domain(
        key,
        kind,
        tuple(values),
        log=entry.get("log", False),
        step=entry.get("step"),
        default=entry.get("default"),
        when=_conditions(key, entry.get("when") or {}, above),
    )
    wrong = _wrong_range(domain) if kind != "choice" else None
    if wrong is None and domain.default is not None and not domain.contains(domain.default):
        wrong = f"default {domain.default!r} is outside its own domain, {domain}"
    if wrong is not None:
        raise RequestError(f"search: {key}: {wrong}")
    return domain


def _conditions(
    key: str, when: Any, above: Mapping[str, Domain]
) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if not isinstance(when, Mapping):
        raise RequestError(f"search: {key}: when: got {when!r}, expected {{key: value}}")
    found = []
    for other, values in when.items():
        if other not in above:
            raise RequestError(
                f"search: {key}: when: '{other}' is not searched above it;"
                f" above it stand: {', '.join(above) or 'none'}"
            )
        listed = tuple(values) if isinstance(values, list) else (values,)
        for value in listed:
            if not above[other].contains(value):
                raise RequestError(
                    f"search: {key}: when: {other}: got {value!r}, expected {above[other]}"
                )
        found.append((str(other), listed))
    return tuple(found)


def _wrong_range(domain: Domain) -> str | None:
    """Returns what is wrong with the range of a float or int domain, or None."""
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

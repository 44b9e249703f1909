"""Search spaces: domains over configuration keys, checked against the schema.

The block `search` of a sweep's file maps keys to domains (`raybust.search.domain`). A key with
`when` exists only if the preceding keys named there have one of the given values; a key may have
several domains, `KEY@LABEL`, with mutually exclusive conditions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution

from raybust.config import Config, Leaf, MethodTypes, compose, to_dict
from raybust.errors import RequestError, unknown
from raybust.search.domain import Domain, Suggester, parse_domain

Point = dict[str, Any]
"""Searched keys to values; inactive keys are absent."""

_RATE = "train.lr"
_METHOD = "method.name"
_OF_THE_SWEEP = (
    "name", "out", "tune", "track", "cluster",
    "certified_fast", "certified_linf_fast", "attacked_fast", "certify", "evaluate", "corruptions",
    "data.name", "data.path", "data.train", "data.validation", "data.test", "data.columns",
    "data.split_seed", "data.limit", "data.image_size",
    "train.passes", "train.seconds", "train.init",
)  # fmt: skip
"""Sections and keys that all trials of a sweep share: where they run, how and on which images they
are measured, their budget, and the weights from which they start."""


@dataclass(frozen=True)
class Space:
    """All domains of a sweep, in file order."""

    domains: tuple[Domain, ...]

    @classmethod
    def parse(cls, block: Any) -> Space:
        """Returns the space of a `search` block.

        Raises:
            RequestError: with every problem in it.
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
                domains.append(parse_domain(str(key), entry, domains))
                for other, values in domains[-1].when:
                    if not values:
                        found.append(f"search: {key}: when: {other}: got [], expected its values")
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
        """Checks the bounds and choices of every domain against the schema.

        Keys that all trials share are rejected here rather than in `parse`, so that sweeps of
        earlier versions can still be reported.

        Args:
            leaves: the sweep's fixed configuration.
            methods: name of a method to its dataclass.

        Raises:
            RequestError: a key is unknown, fixed as well, or shared by all trials, or the schema
                rejects a value.
        """
        found: dict[str, None] = {}
        searched = {domain.key for domain in self.domains}
        for leaf in leaves:
            if leaf.key in searched:
                text = f"search: {leaf.key}: is also set to {leaf.value!r} ({leaf.source})"
                found[f"{text}; remove one of the two"] = None
        for domain in self.domains:
            if any(f"{domain.key}.".startswith(f"{name}.") for name in _OF_THE_SWEEP):
                text = f"search: {domain.key}: must be the same for all trials of a sweep"
                found[f"{text}; set it outside `search`"] = None
                continue
            for value in domain.values:
                point = self._reach(domain) | {domain.key: value}
                try:
                    at(leaves, point, methods)
                except RequestError as error:
                    found.update(dict.fromkeys(f"search: {text}" for text in error.problems))
        if found:
            raise RequestError(*found)

    def check_point(self, point: Mapping[str, Any]) -> None:
        """Checks a point that the user asked to try.

        Raises:
            RequestError: a key is not searched, or a value is outside its domain.
        """
        for key, value in point.items():
            domains = [domain for domain in self.domains if domain.key == key]
            if not domains:
                raise unknown("key in tune.points", key, {domain.key for domain in self.domains})
            if len(domains) > 1:
                domains = [domain for domain in domains if domain.active(point)]
            if not any(domain.contains(value) for domain in domains):
                expected = " or ".join(map(str, domains)) or "the keys of its `when` as well"
                raise RequestError(f"tune.points: {key}: got {value!r}, expected {expected}")

    def contains(self, point: Mapping[str, Any]) -> bool:
        """Returns whether a point has valid values for exactly the keys that exist there."""
        active = [domain for domain in self.domains if domain.active(point)]
        return {domain.key for domain in active} == point.keys() and all(
            domain.contains(point[domain.key]) for domain in active
        )

    def named(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a point, or part of one, keyed by domain names."""
        count = [domain.key for domain in self.domains].count
        return {
            domain.name: point[domain.key]
            for domain in self.domains
            if domain.key in point and (count(domain.key) == 1 or domain.active(point))
        }

    def distributions(self, point: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """Returns Optuna's distributions of the domains active at a point, by name."""
        return {d.name: d.distribution() for d in self.domains if d.active(point)}

    def first_points(self, leaves: Sequence[Leaf], methods: MethodTypes) -> list[Point]:
        """Returns the points tried first: the defaults, once per method if methods are searched.

        Each key takes its domain's default, else the schema's if the domain contains it, else it is
        left for the sampler to draw.

        Args:
            leaves: the sweep's fixed configuration.
            methods: name of a method to its dataclass.
        """
        searched = next((d for d in self.domains if d.key == _METHOD), None)
        if searched is None:
            return [self._defaults({}, leaves, methods)]
        names = sorted(searched.values, key=lambda name: name != searched.default)
        return [self._defaults({_METHOD: name}, leaves, methods) for name in names]

    def _defaults(self, point: Point, leaves: Sequence[Leaf], methods: MethodTypes) -> Point:
        point = dict(point)
        for domain in self.domains:
            if domain.key in point or not domain.active(point):
                continue
            value = domain.default
            if value is None:
                value = _value_at(at(leaves, point, methods), domain.key)
            if domain.contains(value):
                point[domain.key] = value
        return point

    def largest(self, key: str, fixed: float) -> float:
        """Returns the largest value that a numeric key takes in the space.

        Args:
            key: searched or not.
            fixed: its value where it is not searched or inactive.
        """
        domains = [domain for domain in self.domains if domain.key == key]
        searched = [float(value) for domain in domains for value in domain.values]
        always = any(not domain.when for domain in domains)
        return max(searched if always else [fixed, *searched])

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Yields key, domain, default and condition of each domain, as text."""
        for d in self.domains:
            when = "; ".join(f"{key} in {', '.join(map(str, v))}" for key, v in d.when)
            yield d.name, str(d), "" if d.default is None else str(d.default), when

    def _reach(self, domain: Domain) -> Point:
        """Returns a minimal point at which a domain's key exists."""
        point: Point = {}
        for key, values in domain.when:
            above = next(
                d
                for d in self.domains
                if d.key == key and d.contains(values[0]) and not d.excludes(domain)
            )
            point = self._reach(above) | point | {key: values[0]}
        return point


def at(leaves: Sequence[Leaf], point: Mapping[str, Any], methods: MethodTypes) -> Config:
    """Returns the configuration at a point of the space.

    Args:
        leaves: the sweep's fixed configuration.
        point: searched keys to values; overrides `leaves`.
        methods: name of a method to its dataclass.
    """
    return compose([*leaves, *(Leaf(k, v, "search space") for k, v in point.items())], methods)


def _value_at(config: Config, key: str) -> Any:
    if key == _RATE:
        return config.train.rate  # not null, the default that follows optimizer and batch
    value: Any = to_dict(config)
    for part in key.split("."):
        value = value[part]
    return value

"""What several networks have measured under one protocol, image by image: certified radii, clean
and robust accuracy.

Images are matched by their index. Labels must agree, and so must the digests of the images where
the results chose them alike.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from raybust.errors import RequestError
from raybust.evaluate import HEADLINE, AttackProtocol, AttackRow
from raybust.reporting.figures import largest_radius
from raybust.reporting.logs import Floats, Log

_OF_IMAGES = ("dataset", "split", "skip", "examples")
_NOT_OF_ATTACK = (
    "data", "labels", "weights", "outputs", "device", "front", "raybust", "torch", "shard",
)  # fmt: skip


@dataclass(frozen=True)
class Attacked:
    """One evaluation under attack: its protocol, its rows, and the names of its flags."""

    protocol: AttackProtocol
    rows: tuple[AttackRow, ...]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Member:
    """One network with what was measured of it."""

    name: str
    seed: int | None
    logs: tuple[Log, ...]
    attacks: tuple[Attacked, ...]


Group = tuple[Member, ...]


@dataclass(frozen=True)
class Column:
    """What is compared: the values of each network on each image, by group (S, N), the largest
    value that an image may have, and for robust accuracy the names of the flags of each group, none
    where its values are not upper bounds only."""

    name: str
    values: tuple[Floats, ...]
    share: bool
    bound: float = 1.0
    flags: tuple[tuple[str, ...], ...] = ()


def check_distinct(groups: Sequence[Group]) -> None:
    """Checks that the seeds of a side are networks of their own, by the digests of their weights.

    Raises:
        RequestError: two of them are the same network.
    """
    for group in groups:
        known: dict[str, str] = {}
        for member in group:
            headers = [log.protocol for log in member.logs] + [
                one.protocol for one in member.attacks
            ]
            for weights in {made.weights for made in headers if made and made.weights}:
                first = known.setdefault(weights, member.name)
                if first != member.name:
                    raise RequestError(
                        f"compare: {first} and {member.name} are the same network (weights"
                        f" {weights[:12]}): they are one seed"
                    )


def logs_in_common(groups: Sequence[Group]) -> tuple[list[list[Log]], list[str]]:
    """Returns a log of each network, all under one protocol, by group, and notes; none if there
    are no such logs.

    Raises:
        RequestError: there are several such protocols.
    """
    members = list(itertools.chain(*groups))
    if not all(member.logs for member in members):
        return [], []
    shared = reduce(
        lambda one, other: {key: one[key] for key in one if key in other},
        [_by_protocol(member.logs) for member in members],
    )
    if len(shared) > 1:
        raise RequestError(
            f"compare: the networks have certificates under {len(shared)} protocols in common;"
            " give the logs of one of them: " + ", ".join(str(log.path) for log in shared.values())
        )
    if shared:
        (key,) = shared
        return [[_by_protocol(member.logs)[key] for member in group] for group in groups], []
    if any(len(member.logs) != 1 for member in members):
        return [], []
    found = [[member.logs[0] for member in group] for group in groups]
    if len({log.norm for log in itertools.chain(*found)}) > 1:
        return [], ["Radii of different norms are not compared."]
    if len({log.kind for log in itertools.chain(*found)}) > 1:
        return [], [
            "Certificates by smoothing and by bounds are not compared: they are of different"
            " classifiers."
        ]
    return found, [
        "The certificates were made under different protocols, or under unknown ones: what differs"
        " in noise, sigma, n, alpha, schedule, bounds or precision is in the numbers."
    ]


def _by_protocol(logs: Sequence[Log]) -> dict[tuple[Any, ...], Log]:
    """Returns logs by what determines their numbers besides network and images; the one with most
    images of equal ones."""
    return {log.protocol.numbers: log for log in sorted(logs, key=len) if log.protocol}


def certified_columns(groups: Sequence[Sequence[Log]], radii: Sequence[float]) -> list[Column]:
    """Returns the columns of certificates: accuracy at each radius that the draws of a log can
    prove, and the ACR. Where the draws of a log ended once its targets were decided, only these are
    compared: other radii are understated.
    """
    values = radii_of(groups)
    targets = [log.protocol.targets for log in itertools.chain(*groups) if log.protocol]
    early = [set(part) for part in targets if part]
    at = sorted(set.intersection(*early)) if early else radii
    columns = [
        Column(
            f"certified at {radius:g}",
            tuple((part >= radius).astype(np.float64) for part in values),
            share=True,
        )
        for radius in at
        if radius <= provable(groups)
    ]
    if early:
        return columns
    acr = tuple(np.maximum(part, 0.0) for part in values)
    logs = list(itertools.chain(*groups))
    known = [bound for log in logs if not math.isnan(bound := largest_radius(log))]
    seen = max(float(part.max()) for part in acr)
    bound = max([*known, seen]) if known or seen else math.inf
    return [*columns, Column("ACR", acr, share=False, bound=bound)]


def provable(groups: Sequence[Sequence[Log]]) -> float:
    """Returns the largest radius that the draws of any log can prove; infinity if one log's are not
    known."""
    found = [largest_radius(log) for log in itertools.chain(*groups)]
    return math.inf if any(map(math.isnan, found)) else max(found)


def radii_of(groups: Sequence[Sequence[Log]]) -> list[Floats]:
    """Returns the certified radii of each group (S, N) on the images that all logs have, -1 where
    wrong.

    Raises:
        RequestError: the logs have no image in common, or are of other images or labels.
    """
    every = list(itertools.chain(*groups))
    _check_digests([(log.name, vars(log.protocol)) for log in every if log.protocol])
    common = reduce(np.intersect1d, [log.idx for log in every])
    tables = [{int(i): at for at, i in enumerate(log.idx)} for log in every]
    _check_common(common.tolist(), [
        (log.name, {int(i): int(label) for i, label in zip(log.idx, log.label, strict=True)})
        for log in every
    ])  # fmt: skip
    rows: list[Floats] = []
    for log, table in zip(every, tables, strict=True):
        values = np.where(log.correct, log.radius, -1.0).astype(np.float64)
        rows.append(values[[table[int(i)] for i in common]])
    found = iter(rows)
    return [np.stack([next(found) for _ in group]) for group in groups]


def _check_common(common: Sequence[int], labels: Sequence[tuple[str, Mapping[int, int]]]) -> None:
    """Raises a RequestError if there are no common images, or they have different labels."""
    first, theirs = labels[0]
    if len(common) < 2:
        count = "only one image" if common else "no image"
        raise RequestError(f"compare: {first} and {labels[-1][0]} have {count} in common")
    for name, own in labels[1:]:
        other = next((i for i in common if own[i] != theirs[i]), None)
        if other is not None:
            raise RequestError(
                f"compare: image {other} has label {theirs[other]} in {first} and {own[other]} in"
                f" {name}: they are of different images"
            )


def _check_digests(known: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raises a RequestError if results that chose their images alike are of different ones."""
    firsts: dict[tuple[Any, ...], tuple[str, Any]] = {}
    for name, asked in known:
        chosen = tuple(asked.get(key) for key in _OF_IMAGES)
        first, digest = firsts.setdefault(chosen, (name, asked["data"]))
        if digest != asked["data"]:
            raise RequestError(f"compare: {first} and {name} are of different images")


def attacked_columns(groups: Sequence[Group]) -> list[Column]:
    """Returns the columns of attacks: clean accuracy, and robust accuracy at each radius, where all
    networks have them under one protocol in common. Of several such protocols, that with most
    images, then most attacks, is taken."""
    members = list(itertools.chain(*groups))
    tables = [{_attack(one.protocol): one for one in m.attacks} for m in members]
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    columns: dict[str, Column] = {}
    for key in sorted(shared, key=lambda one: _effort(tables[0][one].protocol), reverse=True):
        found = [table[key] for table in tables]
        _check_digests([(m.name, vars(f.protocol)) for m, f in zip(members, found, strict=True)])
        protocol, flags = found[0].protocol, _flags(groups, found)
        view = "" if protocol.view == HEADLINE else f", {protocol.view}"
        values = {f"clean{view}": (protocol.eps[0], _is_right)}
        values |= {
            f"robust, {protocol.norm} {eps:.3g}{view}": (eps, _is_robust) for eps in protocol.eps
        }
        for name, (eps, value) in values.items():
            if name not in columns:
                columns[name] = Column(
                    name, _per_image(groups, members, found, eps, value), share=True,
                    flags=flags if value is _is_robust else (),
                )  # fmt: skip
    return list(columns.values())


def _flags(groups: Sequence[Group], found: Sequence[Attacked]) -> tuple[tuple[str, ...], ...]:
    """Returns the names of the flags of each group, given the evaluation of each member."""
    evaluations = iter(found)
    return tuple(
        tuple(dict.fromkeys(flag for _ in group for flag in next(evaluations).flags))
        for group in groups
    )


def _is_right(row: AttackRow) -> bool:
    return row.predict == row.label


def _is_robust(row: AttackRow) -> bool:
    return row.robust


def _effort(protocol: AttackProtocol) -> tuple[int, int, int]:
    """Returns what ranks evaluations of one norm: more images, then more attacks and steps."""
    return protocol.examples, len(protocol.attacks), protocol.steps


def _attack(protocol: AttackProtocol) -> str:
    """Returns what determines the numbers of an evaluation besides network and images."""
    fields = {key: value for key, value in vars(protocol).items() if key not in _NOT_OF_ATTACK}
    return json.dumps(fields, sort_keys=True)


def _per_image(
    groups: Sequence[Group],
    members: Sequence[Member],
    found: Sequence[Attacked],
    eps: float,
    value: Callable[[AttackRow], bool],
) -> tuple[Floats, ...]:
    """Returns a value of each image by group (S, N), on the images that all have."""
    tables = [{row.idx: row for row in one.rows if row.eps == eps} for one in found]
    common = sorted(set(tables[0]).intersection(*tables[1:]))
    _check_common(common, [
        (member.name, {i: row.label for i, row in table.items()})
        for member, table in zip(members, tables, strict=True)
    ])  # fmt: skip
    rows = iter(np.array([float(value(table[i])) for i in common]) for table in tables)
    return tuple(np.stack([next(rows) for _ in group]) for group in groups)

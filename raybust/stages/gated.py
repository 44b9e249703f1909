"""`raybust gate`: may this network take the place of another one? A team's rules, decided.

A file of rules names columns, bounds and settings. The candidate, and the reference if a rule needs
one, are certified and attacked on the same images; undecided rules order twice as many, up to a
cap. The level is shared among the looks.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raybust import config as configuration
from raybust.config import Config, Leaf
from raybust.errors import RequestError
from raybust.evaluate import HEADLINE
from raybust.reporting.attacks import read_rows
from raybust.reporting.rulings import Ruled, Rulings
from raybust.request import find, read_leaves
from raybust.significance import (
    LEVEL,
    mean_at_least,
    mean_not_worse,
    share_at_least,
    share_not_worse,
)
from raybust.stages import attacked, certified, checks
from raybust.stages.aligned import Floats
from raybust.stages.measurement import Options
from raybust.trained import Trained, load_trained

_KEYS = ("reference", "examples", "cap", "certify", "evaluate", "rules")
_RULE = ("column", "at_least", "not_worse_by")
_NUMBER = r"(\d[\d.e/+-]*)"
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
        return float(configuration.fraction(number)) if number else None

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

    @property
    def looks(self) -> list[int]:
        """The numbers of images at which the rules are looked at."""
        count = 1 + max(0, math.ceil(math.log2(self.cap / self.examples)))
        return [min(self.examples * 2**look, self.cap) for look in range(count)]


def read_gate(path: Path) -> Gate:
    """Reads a file of rules.

    Raises:
        RequestError: it is not one; the message names the key.
    """
    plain = configuration.read_yaml(path)
    for key in plain:
        if key not in _KEYS:
            raise RequestError(f"{path}: unknown key '{key}'; expected {', '.join(_KEYS)}")
    given = plain.get("rules") or ()
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
    share = plain["column"] != "ACR"
    if share and given[0] == "at_least" and value > 1:
        raise RequestError(f"{where}: at_least: got {value:g}, expected a share between 0 and 1")
    return Rule(str(plain["column"]), **{given[0]: float(value)})


def gate(
    path: Path, run: str, settings: Sequence[str], given: dict[str, Any], options: Options
) -> Rulings:
    """Decides all rules about a run.

    Args:
        path: of the file of rules.
        run: the candidate.
        settings: key=value of the command, over those of the file.
        given: options of the command.
        options: how measurements run.

    Raises:
        RequestError: the file, or a network.
        WorkError: a measurement failed; finished rows are kept.
    """
    rules = read_gate(path)
    leaves, _ = read_leaves(settings, given)
    networks = [_open(run, rules, leaves)]
    if any(rule.not_worse_by is not None for rule in rules.rules):
        networks.append(_open(str(rules.reference), rules, leaves))
        if len({one.dataset.digest for one in networks}) > 1:
            raise RequestError(f"{path}: {run} and {rules.reference} are of different data")
    level = LEVEL / len(rules.looks)
    ruled: tuple[Ruled, ...] = ()
    for examples in rules.looks:
        options.echo(f"{path.name}: {examples} images")
        columns = [_measured(one, rules.rules, examples, options) for one in networks]
        ruled = tuple(_ruled(rule, columns, level) for rule in rules.rules)
        if all(one.ruling.state != "undecided" for one in ruled) or any(
            one.ruling.state == "failed" for one in ruled
        ):
            break
    names = [run, *[str(rules.reference)] * (len(networks) > 1)]
    return Rulings(ruled, tuple(names), examples, level)


def _open(run: str, rules: Gate, leaves: Sequence[Leaf]) -> Trained:
    asked = [*rules.leaves, *leaves]
    trained = load_trained(find(run, asked), asked)
    device = checks.device_before(trained.config, None)
    checks.check_certify(trained.config, trained.dataset.shape, device)
    checks.check_evaluate(trained.config, trained.dataset, device)
    return trained


def _measured(
    trained: Trained, rules: Sequence[Rule], examples: int, options: Options
) -> dict[str, Floats]:
    """Returns the values of a network on each image, by column."""
    columns = {rule.column: rule.radius for rule in rules}
    found: dict[str, Floats] = {}
    options = replace(options, name=f"gate_{examples}_{_digest(trained.config)}")
    if any(name.startswith(("certified", "ACR")) for name in columns):
        found |= dict(_certificates(trained, columns, examples, options))
    if any(name == "clean" or name.startswith("robust") for name in columns):
        found |= dict(_attacks(trained, columns, examples, options))
    return found


def _digest(config: Config) -> str:
    """Returns a digest of the settings of the measurements, so that others have other files."""
    text = f"{config.certify} {config.evaluate}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _certificates(
    trained: Trained, columns: dict[str, float | None], examples: int, options: Options
) -> Iterator[tuple[str, Floats]]:
    section = replace(trained.config.certify, examples=examples, radius=None, intent="acr")
    rows = certified.certify(
        replace(trained, config=replace(trained.config, certify=section)), options
    ).rows
    radii = np.array([row.radius if row.predict == row.label else -1.0 for row in rows])
    yield "ACR", np.maximum(radii, 0.0)
    for name, radius in columns.items():
        if name.startswith("certified"):
            yield name, (radii >= radius).astype(np.float64)


def _attacks(
    trained: Trained, columns: dict[str, float | None], examples: int, options: Options
) -> Iterator[tuple[str, Floats]]:
    robust = [r for name, r in columns.items() if name.startswith("robust") and r is not None]
    eps = tuple(sorted(set(robust))) or trained.config.evaluate.eps
    section = replace(trained.config.evaluate, examples=examples, eps=eps)
    path = attacked.evaluate(
        replace(trained, config=replace(trained.config, evaluate=section)), options
    ).files["summary"]
    read = read_rows(path, HEADLINE)
    assert read is not None, "this version wrote it"
    for name, radius in columns.items():
        if name.startswith("certified") or name == "ACR":
            continue
        at = eps[0] if radius is None else radius
        rows = sorted((row for row in read[1] if row.eps == at), key=lambda row: row.idx)
        right = [row.predict == row.label if name == "clean" else row.robust for row in rows]
        yield name, np.array(right, dtype=np.float64)


def _ruled(rule: Rule, columns: Sequence[dict[str, Floats]], level: float) -> Ruled:
    """Decides one rule."""
    share = rule.column != "ACR"
    values = [found[rule.column] for found in columns]
    if rule.at_least is not None:
        ruling = (
            share_at_least(values[0] > 0, rule.at_least, level)
            if share else mean_at_least(values[0], rule.at_least, level)
        )  # fmt: skip
    else:
        margin = rule.not_worse_by or 0.0
        ruling = (
            share_not_worse(values[0] > 0, values[1] > 0, margin / 100, level)
            if share else mean_not_worse(values[0], values[1], margin, level)
        )  # fmt: skip
    return Ruled(str(rule), share, ruling)

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
from raybust.config import Leaf
from raybust.errors import RequestError
from raybust.evaluate import HEADLINE, correct
from raybust.reporting.attacks import read_rows
from raybust.reporting.logs import Floats
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
from raybust.stages.compared import GATE
from raybust.stages.measurement import Options
from raybust.stages.place import own_device, threads
from raybust.trained import Trained, load_trained
from raybust.training.objective import smoothing_sigma

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
    networks = [_open(run, rules, leaves, options.address)]
    if any(rule.not_worse_by is not None for rule in rules.rules):
        reference = _open(str(rules.reference), rules, leaves, options.address)
        networks.append(_like(networks[0], reference, rules))
    config, dataset = networks[0].config, networks[0].dataset
    parts = (getattr(dataset, section.split) for section in (config.certify, config.evaluate))
    looks = rules.looks(min(map(len, parts)))
    level = LEVEL / len(looks)
    ruled: tuple[Ruled, ...] = ()
    for examples in looks:
        options.echo(f"{path.name}: {examples} images")
        found = [_measured(one, rules.rules, examples, options) for one in networks]
        ruled = tuple(_ruled(rule, found, level) for rule in rules.rules)
        if not any(one.needs_more(level) for one in ruled) or any(
            one.ruling.state == "failed" for one in ruled
        ):
            break
    names = (run, *[str(rules.reference)] * (len(networks) > 1))
    doubts = tuple(
        f"DISTRUST ({flag['name']}), {name}: {flag['text']}"
        for name, one in zip(names, found, strict=True)
        for flag in one.flags
    )
    return Rulings(ruled, names, examples, level, doubts)


def _open(run: str, rules: Gate, leaves: Sequence[Leaf], address: str | None) -> Trained:
    asked = [*rules.leaves, *leaves]
    trained = load_trained(find(run, asked), asked)
    device = checks.device_before(trained.config, address)
    checks.check_certify(trained.config, trained.dataset.shape, device)
    checks.check_evaluate(trained.config, trained.dataset, device)
    return trained


def _like(candidate: Trained, reference: Trained, rules: Gate) -> Trained:
    """Returns the reference, to be measured as the candidate is.

    Raises:
        RequestError: they are of different data, or of different noise that no setting names.
    """
    if candidate.dataset.digest != reference.dataset.digest:
        raise RequestError(
            f"reference: {candidate.name} and {reference.name} are of different data"
        )
    config = replace(
        reference.config, certify=candidate.config.certify, evaluate=candidate.config.evaluate
    )
    sigmas = {smoothing_sigma(one) for one in (candidate.config, config)}
    if len(sigmas) > 1 and any(_is_certified(rule.column) for rule in rules.rules):
        shown = " and ".join(f"{sigma:g}" for sigma in sorted(sigmas))
        raise RequestError(
            f"certify.sigma: {candidate.name} and {reference.name} were trained with {shown}; set"
            " the one at which both are certified"
        )
    return replace(reference, config=config)


def _is_certified(column: str) -> bool:
    return column.startswith("certified") or column == "ACR"


@dataclass(frozen=True)
class _Measured:
    """What a gate knows of a network: its value on each image, by column, and the flags of the
    attacks, each with name and text."""

    columns: dict[str, Floats]
    flags: tuple[dict[str, str], ...] = ()

    def flags_of(self, column: str) -> tuple[str, ...]:
        """Returns the names of the flags of a column: those of the attacks for robust accuracy."""
        robust = column.startswith("robust")
        return tuple(dict.fromkeys(flag["name"] for flag in self.flags if robust))


def _measured(
    trained: Trained, rules: Sequence[Rule], examples: int, options: Options
) -> _Measured:
    """Measures all that the rules are on."""
    columns = {rule.column: rule.radius for rule in rules}
    found, flags = dict[str, Floats](), tuple[dict[str, str], ...]()
    if any(map(_is_certified, columns)):
        found |= dict(_certificates(trained, columns, examples, options))
    if any(name.startswith("robust") for name in columns):
        robust, flags = _attacks(trained, columns, examples, options)
        found |= robust
    if "clean" in columns:
        found["clean"] = _right(trained, examples)
    return _Measured(found, flags)


def _named(options: Options, examples: int, section: object) -> Options:
    """Returns options with a name for results, so that other settings have other files."""
    digest = hashlib.sha256(str(section).encode()).hexdigest()[:8]
    return replace(options, name=f"{GATE}{examples}_{digest}")


def _certificates(
    trained: Trained, columns: dict[str, float | None], examples: int, options: Options
) -> Iterator[tuple[str, Floats]]:
    section = replace(trained.config.certify, examples=examples, radius=None, intent="acr")
    trained = replace(trained, config=replace(trained.config, certify=section))
    rows = certified.certify(trained, _named(options, examples, section)).rows
    radii = np.array([row.radius if row.predict == row.label else -1.0 for row in rows])
    yield "ACR", np.maximum(radii, 0.0)
    for name, radius in columns.items():
        if name.startswith("certified"):
            yield name, (radii >= radius).astype(np.float64)


def _attacks(
    trained: Trained, columns: dict[str, float | None], examples: int, options: Options
) -> tuple[dict[str, Floats], tuple[dict[str, str], ...]]:
    """Returns the columns of robust accuracy, and the flags of the evaluation."""
    robust = {name: r for name, r in columns.items() if name.startswith("robust") and r is not None}
    eps = tuple(sorted(set(robust.values())))
    section = replace(trained.config.evaluate, examples=examples, eps=eps)
    if not section.attacks:
        raise RequestError("evaluate.attacks: got none, but a rule is on robust accuracy")
    trained = replace(trained, config=replace(trained.config, evaluate=section))
    found = attacked.evaluate(trained, _named(options, examples, section))
    read = read_rows(found.files["summary"], HEADLINE)
    assert read is not None, "this version wrote it"
    columns_of = {}
    for name, radius in robust.items():
        rows = sorted((row for row in read[1] if row.eps == radius), key=lambda row: row.idx)
        columns_of[name] = np.array([float(row.robust) for row in rows])
    return columns_of, tuple(found.details["flags"])


def _right(trained: Trained, examples: int) -> Floats:
    """Returns on which of the first test images the network itself is right."""
    section = trained.config.evaluate
    part = getattr(trained.dataset, section.split)
    device = own_device(trained.config)
    with threads(trained.config):
        network = trained.network.to(device)
        hits = correct(network, part, range(examples), batch=section.batch, device=device)
    return hits.cpu().numpy().astype(np.float64)


def _ruled(rule: Rule, found: Sequence[_Measured], level: float) -> Ruled:
    """Decides one rule. What flagged attacks left of the candidate is only an upper bound, which
    can break a rule but not prove that it is kept."""
    share = rule.column != "ACR"
    values = [one.columns[rule.column] for one in found]
    flags = [one.flags_of(rule.column) for one in found]
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
    if flags[0] and ruling.state == "passed":
        ruling = replace(ruling, state="undecided")
    against = flags[1] if rule.at_least is None else ()
    return Ruled(str(rule), share, ruling, flags[0], against)

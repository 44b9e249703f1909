"""`raybust gate`: may this network take the place of another one? A team's rules, decided.

A file of rules names columns, bounds and settings. The candidate, and the reference if a rule needs
one, are certified and attacked on the same images; undecided rules order twice as many, up to a
cap. The level is shared among the looks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raybust.config import Config, Leaf
from raybust.disk.rowlog import OtherProtocolError
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
from raybust.stages.bars import Echo
from raybust.stages.compared import GATE
from raybust.stages.gate_rules import Gate, Rule, read_gate
from raybust.stages.measurement import (
    Options,
    warn_of_few_classes,
    warn_of_instability,
)
from raybust.stages.place import own_device, threads
from raybust.trained import Trained, load_trained
from raybust.training.objective import smoothing_sigma


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
    networks = [_open(run, rules, leaves, options)]
    _check_images(networks[0].config)
    if any(rule.not_worse_by is not None for rule in rules.rules):
        reference = _open(str(rules.reference), rules, leaves, options)
        networks.append(_like(networks[0], reference, rules))
    config, dataset = networks[0].config, networks[0].dataset
    looks = rules.looks(len(getattr(dataset, config.evaluate.split)))
    level = LEVEL / len(looks)
    ruled: tuple[Ruled, ...] = ()
    for examples in looks:
        options.echo(f"{path.name}: {examples} images")
        try:
            found = [_measured(one, rules.rules, examples, options) for one in networks]
        except OtherProtocolError as error:
            raise RequestError(
                f"{error.path}: comes from {' and '.join(error.differ)}; --no-resume sets it aside"
                " and measures again"
            ) from None
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
    return Rulings(ruled, names, examples, level, config.evaluate.split, doubts)


def _check_images(config: Config) -> None:
    """Checks that certificates and attacks are of the same images.

    Raises:
        RequestError: names the setting.
    """
    if config.certify.skip != 1:
        raise RequestError(
            f"certify.skip: got {config.certify.skip}, expected 1: all rules of a gate are on the"
            " same images; set certify.skip=1"
        )
    if config.certify.split != config.evaluate.split:
        raise RequestError(
            f"certify.split: got {config.certify.split}, but evaluate.split ="
            f" {config.evaluate.split}: all rules of a gate are on the same images; set both alike"
        )


def _open(run: str, rules: Gate, leaves: Sequence[Leaf], options: Options) -> Trained:
    """Returns a network after printing its notes."""
    asked = [*rules.leaves, *leaves]
    checks.check_kind(asked)
    trained = load_trained(find(run, asked), asked)
    for note in trained.notes:
        options.echo(note)
    device = checks.device_before(trained.config, options.address)
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
    smoothed = config.certify.bound == "smoothing"
    if len(sigmas) > 1 and smoothed and any(_is_certified(rule.column) for rule in rules.rules):
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
        found["clean"] = _right(trained, examples, options.echo)
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


def _right(trained: Trained, examples: int, echo: Echo) -> Floats:
    """Returns on which of the first images the network itself is right."""
    section = trained.config.evaluate
    part = getattr(trained.dataset, section.split)
    warn_of_few_classes(part, range(examples), echo)
    warn_of_instability(trained.network, part, echo)
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

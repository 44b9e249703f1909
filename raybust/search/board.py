"""Builds a sweep's leaderboard from its study: ranks, constraints, Pareto set, importances.

Measures nothing: the finalists' test results are passed in, or read from the leaderboard already in
the sweep's folder.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import yaml

from raybust import config as configuration
from raybust import methods
from raybust.config import Config
from raybust.disk import checkpoint, runs
from raybust.disk.files import replace_text
from raybust.errors import RequestError
from raybust.search.leaderboard import NAME, UNITS, Leaderboard
from raybust.search.records import TrialRecord, ranked
from raybust.search.space import Space
from raybust.search.study import Study
from raybust.track.environment import ENVIRONMENT, environment
from raybust.track.journal import text_of

SEARCH = "search"
SPACE_FILE = "space.yaml"
_FEWEST = 4


def board_of(folder: Path) -> Leaderboard:
    """Returns the current leaderboard of a sweep, which may be unfinished.

    Args:
        folder: the sweep's.

    Raises:
        RequestError: the folder is not a sweep's, or its record cannot be read.
    """
    identity = runs.read_identity(folder)
    plain = dict(identity.config)
    if SEARCH not in plain:
        raise RequestError(f"{folder.name}: its {runs.IDENTITY} has no block `{SEARCH}`")
    space = Space.parse(plain.pop(SEARCH))
    config = configuration.from_dict(plain, methods.get)
    found: dict[int, TrialRecord] = {}
    protocol = ""
    if (folder / f"{NAME}.json").exists():
        earlier = Leaderboard.read(folder)
        found = {r.number: r for r in earlier.entries if r.final or r.reason}
        protocol = earlier.protocol
    study = Study(config, space, folder, identity.uid, reading=True)
    # Keep the finalists' protocol: the last start's may differ from the one in `identity`.
    return make_board(config, study, folder, found, protocol)


def sweeps_of(folders: Sequence[Path]) -> list[Leaderboard]:
    """Returns the leaderboards of those folders that are sweeps.

    Raises:
        RequestError: a sweep's record cannot be read, or its folder is not writable.
    """
    found = []
    for folder in folders:
        if not (folder / runs.IDENTITY).exists() or runs.read_identity(folder).kind != "sweep":
            continue
        runs.check_writable(folder)
        found.append(board_of(folder))
    return found


def make_board(
    config: Config,
    study: Study,
    folder: Path,
    measured: Mapping[int, TrialRecord],
    protocol: str = "",
) -> Leaderboard:
    """Returns the leaderboard of a study.

    Args:
        config: the sweep's configuration.
        study: the sweep's record.
        folder: the sweep's.
        measured: the finalists' records with their test results, by number.
        protocol: how the finalists were measured, in one line.
    """
    part, records = config.tune, study.records()
    complete = ranked(records, part.mode)
    entries = tuple(_measured(record, measured.get(record.number)) for record in complete)
    others = [record for record in records if record.state in ("PRUNED", "FAIL")]
    directions = tuple(part.directions().items())
    several = len(directions) > 1
    return Leaderboard(
        sweep=folder.name,
        metric=part.metric,
        mode=part.mode,
        entries=entries,
        others=tuple(others),
        folder=folder,
        objectives=directions if several else (),
        constraints=part.constraints,
        pareto=tuple(study.pareto()) if several else (),
        importances=importances(study),
        dataset=_dataset(folder, config),
        network=_network(config, study.space),
        budget=_budget(config, study.space),
        unit=config.train.budget[0],
        search=_search(config),
        protocol=protocol,
        space=tuple(study.space.rows()),
        running=len(records) - len(entries) - len(others),
        environment=_environment(folder),
        command=_command(folder),
    )


def importances(study: Study) -> dict[str, float]:
    """Returns each key's share of the first metric's variance among the better complete trials, by
    Optuna's PED-ANOVA; empty for few or equal trials.

    Keys with too few trials get 0, such as those of a method that was tried once.
    """
    own = {record.number for record in study.records()}  # not those of a warm start
    states = (optuna.trial.TrialState.COMPLETE,)
    complete = [t for t in study.with_means().get_trials(states=states) if t.number in own]
    if len(complete) < _FEWEST or len({trial.values[0] for trial in complete}) < 2:
        return {}
    # With a custom target Optuna assumes lower is better, and warns.
    sign = -1 if study.study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1
    view = optuna.create_study(directions=study.study.directions)
    view.add_trials(complete)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            view, target=lambda trial: sign * trial.values[0]
        )
    return {key: float(value) for key, value in found.items()}


def _measured(record: TrialRecord, found: TrialRecord | None) -> TrialRecord:
    """Returns a trial's record, with its test results if it was measured."""
    if found is None:
        return record
    keys = ("accuracy", "examples", "certified", "attacked", "log", "reason", "by_seed")
    return replace(record, **{key: getattr(found, key) for key in keys})


def _environment(folder: Path) -> dict[str, str]:
    """Returns the software that a sweep ran on, from the journal of a trial; the current one before
    the first trial."""
    for path in sorted((folder / runs.TRIALS).glob(f"*/{runs.JOURNAL}")):
        text = text_of(path, ENVIRONMENT)
        if text is not None:
            found: dict[str, str] = yaml.safe_load(text)
            return found
    return environment()


def _dataset(folder: Path, config: Config) -> str:
    """Describes the data set in one line: its name and path and, once a trial has a checkpoint, the
    size of its images and the number of its classes."""
    name = " ".join(filter(None, (config.data.name, config.data.path)))
    for trial in sorted((folder / runs.TRIALS).glob("*")):
        if (newest := checkpoint.newest(trial)) is not None:
            manifest = checkpoint.read_manifest(newest)
            size = " x ".join(map(str, manifest["shape"]))
            return f"{name}; {size} pixels, {len(manifest['classes'])} classes"
    return name


def _network(config: Config, space: Space) -> str:
    """Names the network; those that are searched, if it is."""
    searched = [str(v) for d in space.domains if d.key == "model.name" for v in d.values]
    return f"{', '.join(searched)} (searched)" if searched else config.model.name


def _budget(config: Config, space: Space) -> str:
    """Describes a trial's budget in one line; a searched budget by its range."""
    unit, amount = config.train.budget
    text = f"{amount:g} {UNITS[unit]}"
    searched = [v for d in space.domains if d.key == "train.epochs" for v in d.values]
    if searched and unit == "epoch":
        text = f"{min(searched):g} to {max(searched):g} {UNITS[unit]} (searched)"
    scheduler = config.tune.scheduler
    stopping = (
        "without early stopping" if scheduler == "none" else f"with early stopping by {scheduler}"
    )
    return f"{text} per trial, {stopping}"


def _search(config: Config) -> str:
    """Describes in one line how trials were scored."""
    fast, attack = config.certified_fast, config.attacked_fast
    bounds = config.certified_linf_fast
    parts = ["validation part"]
    if fast.every:
        parts.append(
            f"certificate of {fast.examples} images with n = {fast.n}, alpha = {fast.alpha:g}"
        )
    if attack.every:
        parts.append(
            f"PGD of {attack.steps} steps on {attack.examples} images,"
            f" {attack.norm} <= {attack.eps:.3g}"
        )
    if bounds.every:
        count = "all" if bounds.examples is None else bounds.examples
        radii = ", ".join(f"{eps:g}" for eps in bounds.eps)
        parts.append(f"{bounds.bound} bounds of {count} images, linf <= {radii}")
    chosen = config.train.select
    epoch = "last epoch" if chosen == "last" else f"epoch with the largest {chosen}"
    return "; ".join(parts) + f"; values of the {epoch}."


def write_space(folder: Path, plain: Mapping[str, Any]) -> None:
    """Writes the sweep as one file for `raybust tune`: its configuration and the block `search`
    with includes resolved.

    Args:
        folder: the sweep's.
        plain: configuration and block `search`.
    """
    searched = {name.partition("@")[0] for name in plain[SEARCH]}
    fixed = {key: value for key, value in plain.items() if key != SEARCH}
    tree: dict[str, Any] = {}
    for leaf in configuration.leaves_of(fixed, SPACE_FILE):
        if leaf.key in searched:
            continue
        node = tree
        *above, last = leaf.key.split(".")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf.value
    text = yaml.safe_dump(tree | {SEARCH: dict(plain[SEARCH])}, sort_keys=False, width=100)
    replace_text(folder / SPACE_FILE, text)


def _command(folder: Path) -> str:
    """Returns the command that resumes the sweep, or repeats it under another name."""
    return f"raybust tune {shlex.quote(str(folder / SPACE_FILE))} --name {shlex.quote(folder.name)}"

"""`raybust compare`: is one network better than another, on the same images?

Each argument is a network, or several of different seeds, separated by commas. What all of them
have measured under one protocol is compared: certificates at each radius, the ACR, clean and robust
accuracy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raybust.config import Leaf
from raybust.disk import runs
from raybust.disk.files import replace_text, to_json
from raybust.errors import RequestError
from raybust.reporting.attacks import read_flags, read_rows
from raybust.reporting.differences import Difference, Differences, plot_bands, write_tables
from raybust.reporting.logs import Floats, Log, read_log
from raybust.reporting.naming import name_of
from raybust.request import compose, find
from raybust.significance import (
    LEVEL,
    Paired,
    compare_means,
    compare_seeds,
    compare_shares,
    decide,
    difference_band,
)
from raybust.stages.aligned import (
    Attacked,
    Column,
    Group,
    Member,
    attacked_columns,
    certified_columns,
    check_distinct,
    logs_in_common,
    provable,
    radii_of,
)
from raybust.stages.bars import Echo
from raybust.stages.current import Current
from raybust.stages.reports import logs_of, results_of
from raybust.stages.searches import all_sweeps, compare_searches

_GRID = 201
GATE = "gate_"
"""How the names of results begin that a gate measured for itself."""


@dataclass(frozen=True)
class Margins:
    """Margins of equivalence.

    Attributes:
        points: of accuracies.
        radius: of the ACR, in the unit of the radii.
    """

    points: float
    radius: float


def compare_results(
    texts: Sequence[str], leaves: Sequence[Leaf], margins: Margins, echo: Echo
) -> Differences:
    """Compares networks, each with all that follow it, and writes tables and a picture.

    Args:
        texts: runs, trials, logs; several with commas between them are one group of seeds.
        leaves: the settings; `certify.radii` are the columns, `out` and `name` the folder.
        margins: of equivalence.
        echo: prints a warning.

    Raises:
        RequestError: fewer than two, one of them has no results, or they have none in common.
    """
    if len(texts) < 2:
        raise RequestError(f"compare: got only {' '.join(texts) or 'nothing'}, expected A and B")
    config = compose(leaves)
    folder = runs.out_folder(config) / (config.name or "compare")
    runs.check_writable(folder)
    runs.check_no_run(folder)
    names = _distinct(texts)
    folder.mkdir(parents=True, exist_ok=True)
    sweeps = _sweeps(texts, leaves)
    if sweeps:
        return _written(compare_searches(names, sweeps, margins.radius, folder), folder)
    current = Current(leaves)
    groups = [_by_seed(tuple(_members(text, leaves, current, echo))) for text in texts]
    check_distinct(groups)
    logs, notes = logs_in_common(groups)
    radii = config.certify.columns(logs[0][0].norm if logs else None)
    columns = certified_columns(logs, radii) if logs else []
    columns += (attacked := attacked_columns(groups))
    if not columns:
        raise RequestError(
            f"compare: {' and '.join(names)} have no results under the same protocol; certify or"
            " evaluate them alike"
        )
    notes += _terms(groups, [] if notes else logs, columns, bool(attacked))
    whole = any(column.name == "ACR" for column in columns)
    if whole and max(radii, default=0) > provable(logs):
        notes.append(
            f"Radii above {provable(logs):.3g} are left out: no draws here can prove them."
        )
    notes += _doubts(names, columns)
    notes += [f"{log.name}: {text}." for log in itertools.chain(*logs) for text in log.warnings]
    rows = _rows(names, groups, columns, margins)
    pictures = []
    if whole:
        pictures.append(_picture(names, logs, folder / "differences.png"))
    return _written(Differences(tuple(rows), tuple(notes), tuple(pictures)), folder)


def _written(found: Differences, folder: Path) -> Differences:
    """Writes the tables of a comparison and its JSON."""
    target = folder / "differences.json"
    found = replace(found, files=(*write_tables(found, folder), *found.files, target))
    replace_text(target, to_json(found.plain()) + "\n")
    return found


def _sweeps(texts: Sequence[str], leaves: Sequence[Leaf]) -> list[list[Path]]:
    """Returns the folders of sweeps, by argument; none if the arguments are networks."""
    names = [_parts(text) for text in texts]
    if any(Path(part).is_file() for part in itertools.chain(*names)):
        return []
    folders = [[find(part, leaves) for part in group] for group in names]
    flat = list(itertools.chain(*folders))
    return folders if all_sweeps(flat, list(itertools.chain(*names))) else []


def _members(text: str, leaves: Sequence[Leaf], current: Current, echo: Echo) -> Iterator[Member]:
    """Yields the networks of an argument. What a gate measured for itself is left out."""
    for name in _parts(text):
        logs = logs_of(name, leaves, current, echo, needed=False)
        attacks = [
            Attacked(read[0], tuple(read[1]), flags)
            for _, path in results_of(name, leaves, current, echo, "attacked")
            if not path.stem.startswith(GATE)
            for view, flags in read_flags(path).items()
            if (read := read_rows(path, view)) is not None
        ]
        named = Path(name).is_file()
        kept = [(label, path) for label, path in logs if named or not path.stem.startswith(GATE)]
        if not kept and not attacks:
            raise RequestError(f"{name}: has no results; certify or evaluate it")
        folder = None if named else find(name, leaves)
        seed = None
        if folder is not None and (folder / runs.IDENTITY).exists():
            seed = runs.read_identity(folder).config["seed"]
        certified = [read_log(path, label) for label, path in kept]
        yield Member(name, seed, tuple(log for log in certified if len(log)), tuple(attacks))


def _parts(text: str) -> list[str]:
    """Returns the networks of an argument.

    Raises:
        RequestError: there is none, or one is named twice.
    """
    if Path(text).exists():  # its name may have commas
        return [text]
    parts = [part for part in text.split(",") if part]
    if not parts:
        raise RequestError(f"compare: got {text!r}, expected a run, a log, or several with commas")
    twice = next((part for part in parts if parts.count(part) > 1), None)
    if twice is not None:
        raise RequestError(f"compare: {twice} is named twice in {text}; it is one seed")
    return parts


def _distinct(texts: Sequence[str]) -> list[str]:
    """Returns the names of the groups: as given, but for long lists the first member and count."""
    names = []
    for text in texts:
        parts = _parts(text)
        more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        first = name_of(Path(parts[0])) if Path(parts[0]).is_file() else parts[0]
        names.append(f"{first}{more}")
    if len(set(names)) < len(names):
        return [f"{number}: {name}" for number, name in enumerate(names, 1)]
    return names


def _by_seed(group: Group) -> Group:
    """Returns a group in the order of its seeds, so that equal seeds of two groups are paired; as
    it is where one is not known."""
    if any(member.seed is None for member in group):
        return group
    return tuple(sorted(group, key=lambda member: member.seed or 0))


def _rows(
    names: Sequence[str], groups: Sequence[Group], columns: Sequence[Column], margins: Margins
) -> list[Difference]:
    """Returns the comparisons of all pairs and columns with their verdicts, one family."""
    asked, found = [], []
    flags: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    level = LEVEL / (len(columns) * len(groups) * (len(groups) - 1) / 2)
    for (i, a), (j, b) in itertools.combinations(enumerate(groups), 2):
        seeds = [[member.seed for member in group] for group in (a, b)]
        paired = seeds[0] == seeds[1] and None not in seeds[0]
        for column in columns:
            margin = margins.points / 100 if column.share else margins.radius
            pair = column.values[i], column.values[j]
            asked.append((names[i], names[j], column))
            found.append(_compared(column, *pair, margin, level, paired=paired))
            flags.append((column.flags[i], column.flags[j]) if column.flags else ((), ()))
    decided = decide(found, [(bool(ours), bool(theirs)) for ours, theirs in flags])
    return [
        Difference(a, b, column.name, 100 if column.share else 1, decision, mine)
        for (a, b, column), decision, mine in zip(asked, decided, flags, strict=True)
    ]


def _compared(
    column: Column, a: Floats, b: Floats, margin: float, level: float, *, paired: bool
) -> Paired:
    """Compares two groups (S, N) and (T, N) by the test that fits."""
    if len(a) > 1 and len(b) > 1:
        return compare_seeds(a, b, margin, paired=paired, level=level, bound=column.bound)
    if column.share and len(a) == len(b) == 1:
        return compare_shares(a[0] > 0, b[0] > 0, margin, level)
    found = compare_means(a.mean(0), b.mean(0), margin, level, bound=column.bound)
    return replace(found, seeds=(len(a), len(b)))


def _doubts(names: Sequence[str], columns: Sequence[Column]) -> list[str]:
    """Returns a sentence for each side and column whose attacks have flags."""
    return [
        f"{column.name} of {name} is an upper bound only (DISTRUST: {', '.join(flags)}): it is not"
        " called better or equivalent."
        for column in columns
        for name, flags in zip(names, column.flags, strict=False)
        if flags
    ]


def _picture(names: Sequence[str], logs: Sequence[Sequence[Log]], path: Path) -> Path:
    """Draws the differences of the certified-accuracy curves of all pairs."""
    values = radii_of(logs)
    grid = np.linspace(0, max(float(part.max()) for part in values) or 1.0, _GRID)
    bands = {
        f"{names[i]} minus {names[j]}": difference_band(values[i], values[j], grid)
        for i, j in itertools.combinations(range(len(names)), 2)
    }
    plot_bands(bands, path, logs[0][0].norm)
    return path


def _terms(
    groups: Sequence[Group],
    logs: Sequence[Sequence[Log]],
    columns: Sequence[Column],
    attacked: bool,
) -> list[str]:
    """Returns on what the numbers depend, one sentence each."""
    sizes = sorted({column.values[0].shape[1] for column in columns})
    notes = [f"Paired on the same {' or '.join(f'{size:,}' for size in sizes)} images."]
    if logs and (made := logs[0][0].protocol):
        notes.append(
            f"Certificates: {made.how}, {made.cost}, {made.precision}"
            f"{', compiled' * getattr(made, 'compile', False)}, {made.split} set of {made.dataset}."
        )
    chosen = {
        (made.dataset, made.split, made.examples, made.skip)
        for log in itertools.chain(*logs)
        if (made := log.protocol)
    }
    if len(chosen) > 1:
        notes.append(
            "The certificates are of different choices of images, so images are matched by their"
            " index and label alone: that their pixels are the same is not proven."
        )
    if attacked:
        notes.append("Robust accuracy is what the attacks left: an upper bound for each network.")
    if any(len(group) == 1 for group in groups):
        notes.append(
            "One seed of a network: the noise of its training is not in the intervals. Compare"
            " groups of seeds, A1,A2,A3 B1,B2,B3, to decide between methods."
        )
    notes.append(
        f"Level 5 % for all {len(columns) * len(groups) * (len(groups) - 1) // 2} comparisons"
        " together (Holm). Equivalence by two one-sided tests at 5 % each."
    )
    return notes

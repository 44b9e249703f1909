"""Builds `raybust report` from sweeps, corruption results, attacks and certificates.

Each kind found becomes a part with `text()` and `plain()`; a name that yields none is an error.
Results whose run has another function, other images or other labels now are left out.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from raybust.config import Leaf
from raybust.config.assess import Certify
from raybust.disk import runs
from raybust.disk.files import is_aside
from raybust.errors import RequestError
from raybust.reporting.attacks import compare_attacks
from raybust.reporting.certificates import read_logs
from raybust.reporting.comparison import compare, groups_of, move_into
from raybust.reporting.corruptions import compare_corruptions
from raybust.reporting.logs import read_log
from raybust.reporting.naming import distinct, name_of
from raybust.reporting.sweep_page import report_on
from raybust.reporting.transfer import compare_transfer
from raybust.request import compose, find
from raybust.search.board import sweeps_of
from raybust.stages.bars import Echo
from raybust.stages.current import Current
from raybust.stages.predicted import FOLDER as PREDICTED
from raybust.stages.transfer import trainings_of

Named = list[tuple[str, Path]]
"""Labels and paths of results."""


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        parts: one for each kind of result, each with its text and its files.
    """

    parts: tuple[Any, ...]

    def text(self) -> str:
        """Returns the output of the command line."""
        return "\n\n".join(part.text() for part in self.parts)

    def plain(self) -> dict[str, Any]:
        """Returns the output for --json."""
        merged: dict[str, Any] = {}
        for key, value in (item for part in self.parts for item in part.plain().items()):
            merged[key] = [*merged[key], *value] if isinstance(merged.get(key), list) else value
        return merged

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text())}</pre>"


def report(texts: Sequence[str], leaves: Sequence[Leaf], echo: Echo) -> Report:
    """Writes and returns the report.

    Args:
        texts: logs, runs and sweeps.
        leaves: the settings; `out` and `name` select the report's folder.
        echo: prints a warning.

    Raises:
        RequestError: a name is none of these, or has nothing to report.
    """
    config = compose(leaves)
    folder = runs.out_folder(config) / (config.name or "report")
    folders = {text: find(text, leaves) for text in texts if not Path(text).is_file()}
    current = Current(leaves)
    boards = [current.with_notes(board) for board in sweeps_of(list(folders.values()))]
    found: list[Any] = [report_on(boards)] if boards else []
    if len(boards) < len(texts):  # a sweep's page goes into its own folder
        runs.check_writable(folder)
        runs.check_no_run(folder)
    sweeps = {board.folder for board in boards}
    corrupted, attacks, logs = [], [], []
    for text in texts:
        noisy = results_of(text, leaves, current, echo, "corrupted")
        own_page = folders.get(text) in sweeps
        new = [] if own_page else results_of(text, leaves, current, echo, "attacked")
        corrupted += noisy
        attacks += new
        if len(boards) < len(texts):
            needed = not new and not noisy and not own_page
            logs += logs_of(text, leaves, current, echo, needed=needed)
    if corrupted or attacks or logs:
        runs.check_no_run(folder)
        found += _written(corrupted, attacks, logs, config.certify, folder, echo=echo)
    return Report(tuple(found))


def logs_of(
    text: str, leaves: Sequence[Leaf], current: Current, echo: Echo, *, needed: bool = True
) -> Named:
    """Returns the labels and paths of the certification logs that LOG.tsv or RUN names.

    Args:
        text: a log, or a run, trial or sweep for all logs in its folder.
        leaves: the settings; `out` locates the runs.
        current: networks and data as they are now.
        echo: prints a warning.
        needed: whether a run without certificates is an error.
    """
    path = Path(text).absolute()
    if path.is_file():
        made = read_log(path).protocol
        if made is not None and made.dataset == PREDICTED:
            raise RequestError(
                f"{text}: has predictions of images without labels; nothing to report"
            )
        if changed := current.changes(path):
            echo(f"warning: {path} is of {', '.join(changed)} than its run has now")
        return [(name_of(path), path)]
    folder = find(text, leaves)
    found = _current(text, sorted(folder.glob("**/certified/*.tsv")), current, echo)
    if needed and not found:
        raise RequestError(f"{text}: has no certificates; run `raybust certify {text}`")
    many = len(found) > 1
    return [
        (f"{text} {_trial_label(log, folder)}{log.stem}" if many else text, log) for log in found
    ]


def results_of(text: str, leaves: Sequence[Leaf], current: Current, echo: Echo, kind: str) -> Named:
    """Returns the labels and paths of the evaluations in the folder of RUN; none for a file.

    Args:
        text: a certification log, or a run, trial or sweep.
        leaves: the settings; `out` locates the runs.
        current: networks and data as they are now.
        echo: prints a warning.
        kind: "attacked" or "corrupted".
    """
    if Path(text).is_file():
        return []
    folder = find(text, leaves)
    found = sorted(folder.glob(f"**/{kind}/*.json"))
    kept = [path for path in found if ".robustbench-" not in path.name]
    return [
        (f"{text} {_trial_label(path, folder)}".strip(), path)
        for path in _current(text, kept, current, echo)
    ]


def _current(text: str, files: Sequence[Path], current: Current, echo: Echo) -> list[Path]:
    """Returns the results of the function, images and labels that their runs have now, and warns
    about the others and about those that cannot be compared; results put aside are skipped."""
    found, obstacles = [], dict[str, None]()
    for path in files:
        if is_aside(path):
            continue
        if changed := current.changes(path):
            echo(f"warning: skipping {path}: it is of {', '.join(changed)} than {text} has now")
            continue
        found.append(path)
        if obstacle := current.obstacle(path):
            obstacles[obstacle] = None
    for obstacle in obstacles:
        echo(f"warning: results of {text} are not compared with its network and data: {obstacle}")
    return found


def _trial_label(result: Path, named: Path) -> str:
    """Returns "trial 7 " for a result of a trial of the sweep that the command names, else ""."""
    home = result.parent.parent
    return (
        f"trial {runs.trial_of(home)} " if home.parent.name == runs.TRIALS and home != named else ""
    )


def _written(
    corrupted: Named,
    attacks: Named,
    logs: Named,
    section: Certify,
    folder: Path,
    *,
    echo: Echo,
) -> list[Any]:
    """Writes the report beside its folder, then moves it there: one that fails changes nothing."""
    found: list[Any] = []
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
        new = Path(place)
        if corrupted:
            found.append(compare_corruptions(corrupted, new))
            try:
                trainings, shape = trainings_of([path for _, path in corrupted])
            except RequestError as error:
                echo(f"warning: no transfer matrix: {error}")
            else:
                found += [compare_transfer(trainings, shape, new)] if trainings else []
        if attacks:
            found.append(compare_attacks(attacks, new))
        paths = [path for _, path in logs]
        groups = groups_of(read_logs(paths, distinct([label for label, _ in logs], paths)))
        for (norm, kind), mine in groups.items():
            name = f"_{norm}{'_bounds' * (kind == 'bounds')}" if len(groups) > 1 else ""
            found.append(compare(mine, section.columns(norm), new, name))
        move_into(folder, new)
    return [replace(part, files=tuple(folder / file.name for file in part.files)) for part in found]

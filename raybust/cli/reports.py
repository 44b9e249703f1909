"""Builds `raybust report` from sweeps, corruption results, attacks and certificates.

Each kind found becomes a part with `text()` and `plain()`; a name that yields none is an error.
Results whose run has another function, other images or other labels now are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from raybust.cli.request import compose, find, find_logs, find_results

if TYPE_CHECKING:
    from raybust.config import Leaf


Named = list[tuple[str, Path]]
"""Labels and paths of results."""


def collect(texts: Sequence[str], leaves: Sequence[Leaf]) -> list[Any]:
    """Writes the report and returns its parts.

    Args:
        texts: logs, runs and sweeps.
        leaves: the settings; `out` and `name` select the report's folder.

    Raises:
        RequestError: a name is none of these, or has nothing to report.
    """
    from raybust.disk import runs
    from raybust.reporting.sweep_page import report_on
    from raybust.search.board import sweeps_of
    from raybust.stages.current import Current

    config = compose(leaves)
    folder = runs.out_folder(config) / (config.name or "report")
    folders = {text: find(text, leaves) for text in texts if not Path(text).is_file()}
    current = Current(leaves)
    boards = [current.with_notes(board) for board in sweeps_of(list(folders.values()))]
    found: list[Any] = [report_on(boards)] if boards else []
    if len(boards) < len(texts):  # a sweep's page goes into its own folder
        runs.check_writable(folder)
    sweeps = {board.folder for board in boards}
    corrupted, attacks, logs = [], [], []
    for text in texts:
        noisy = find_results(text, leaves, current, "corrupted")
        own_page = folders.get(text) in sweeps
        new = [] if own_page else find_results(text, leaves, current, "attacked")
        corrupted += noisy
        attacks += new
        if len(boards) < len(texts):
            needed = not new and not noisy and not own_page
            logs += find_logs(text, leaves, current, needed=needed)
    if corrupted or attacks or logs:
        found += _written(corrupted, attacks, logs, config.certify.radii, folder)
    return found


def _written(
    corrupted: Named, attacks: Named, logs: Named, radii: Sequence[float], folder: Path
) -> list[Any]:
    """Writes the report beside its folder, then moves it there: one that fails changes nothing."""
    from raybust.reporting.attacks import compare_attacks
    from raybust.reporting.certificates import read_logs
    from raybust.reporting.comparison import by_norm, compare, move_into
    from raybust.reporting.corruptions import compare_corruptions
    from raybust.reporting.naming import distinct
    from raybust.reporting.transfer import compare_transfer
    from raybust.stages.transfer import trainings_of

    found: list[Any] = []
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
        new = Path(place)
        if corrupted:
            found.append(compare_corruptions(corrupted, new))
            trainings, shape = trainings_of([path for _, path in corrupted])
            found += [compare_transfer(trainings, shape, new)] if trainings else []
        if attacks:
            found.append(compare_attacks(attacks, new))
        paths = [path for _, path in logs]
        groups = by_norm(read_logs(paths, distinct([label for label, _ in logs], paths)))
        for norm, mine in groups.items():
            found.append(compare(mine, radii, new, f"_{norm}" if len(groups) > 1 else ""))
        move_into(folder, new)
    return [replace(part, files=tuple(folder / file.name for file in part.files)) for part in found]

"""Builds `raybust report` from sweeps, corruption results, attacks and certificates.

Each kind found becomes a part with `text()` and `plain()`; a name that yields none is an error.
Results whose run has another function, other images or other labels now are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybust.cli.request import compose, find, find_logs, find_results

if TYPE_CHECKING:
    from raybust.config import Leaf


def collect(texts: Sequence[str], leaves: Sequence[Leaf]) -> list[Any]:
    """Writes the report and returns its parts.

    Args:
        texts: logs, runs and sweeps.
        leaves: the settings; `out` and `name` select the report's folder.

    Raises:
        RequestError: a name is none of these, or has nothing to report.
    """
    from raybust.disk import runs
    from raybust.report.attacks import compare_attacks
    from raybust.report.comparison import by_norm, clear, compare
    from raybust.report.corruptions import compare_corruptions
    from raybust.report.naming import distinct
    from raybust.report.sweep_page import report_on
    from raybust.report.transfer import compare_transfer
    from raybust.search.board import sweeps_of
    from raybust.stages.current import Current
    from raybust.stages.transfer import trainings_of

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
    if len(boards) < len(texts) or corrupted:
        clear(folder)
    if corrupted:
        found.append(compare_corruptions(corrupted, folder))
        trainings, shape = trainings_of([path for _, path in corrupted])
        found += [compare_transfer(trainings, shape, folder)] if trainings else []
    if attacks:
        found.append(compare_attacks(attacks, folder))
    if logs:
        paths = [path for _, path in logs]
        labels = distinct([label for label, _ in logs], paths)
        groups = by_norm(paths, labels)
        for norm, (mine, names) in groups.items():
            name = f"_{norm}" if len(groups) > 1 else ""
            found.append(compare(mine, names, config.certify.radii, folder, name))
    return found

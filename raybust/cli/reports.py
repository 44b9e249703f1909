"""Builds `raybust report` from sweeps, corruption results, attacks and certificates.

Each kind found becomes a part with `text()` and `plain()`; a name that yields none is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybust.cli.request import compose, find, find_attacks, find_logs

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
    from raybust.report.comparison import compare
    from raybust.report.naming import distinct
    from raybust.report.sweep_page import report_on
    from raybust.report.transfer import compare_transfer
    from raybust.search.board import sweeps_of
    from raybust.stages.corrupted import measured_runs, trainings_of

    config = compose(leaves)
    folder = runs.out_folder(config) / (config.name or "report")
    folders = {text: find(text, leaves) for text in texts if not Path(text).is_file()}
    boards, measured = sweeps_of(list(folders.values())), measured_runs(list(folders.values()))
    found: list[Any] = [report_on(boards)] if boards else []
    if len(boards) < len(texts):  # a sweep's page goes into its own folder
        runs.check_writable(folder)
    if measured:
        found.append(compare_transfer(*trainings_of(measured), folder))
    sweeps = {board.folder for board in boards}
    attacks, logs = [], []
    for text in texts:
        new = [] if folders.get(text) in sweeps else find_attacks(text, leaves)
        attacks += new
        needed = not new and folders.get(text) not in sweeps | set(measured)
        if len(boards) < len(texts):
            logs += find_logs(text, leaves, needed=needed)
    if attacks:
        found.append(compare_attacks(attacks, folder))
    if logs:
        paths = [path for _, path in logs]
        labels = distinct([label for label, _ in logs], paths)
        found.append(compare(paths, labels, config.certify.radii, folder))
    return found

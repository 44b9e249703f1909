"""What `raybust report` makes of its names: sweeps, corrupted runs, attacks, certificates.

Each kind that is there gives a part with `text()` and `plain()`; a name that gives none is an
error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybust.cli.request import compose, find, find_attacks, find_logs

if TYPE_CHECKING:
    from raybust.config import Leaf


def collect(texts: Sequence[str], leaves: Sequence[Leaf]) -> list[Any]:
    """Returns the parts of the report, their files written.

    Args:
        texts: logs, runs, sweeps.
        leaves: what else was typed; `out` and `name` say where the report goes.

    Raises:
        RequestError: a name that is none of these, or has nothing to report.
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
    places = {text: find(text, leaves) for text in texts if not Path(text).is_file()}
    boards, measured = sweeps_of(list(places.values())), measured_runs(list(places.values()))
    found: list[Any] = [report_on(boards)] if boards else []
    if len(boards) < len(texts):  # a sweep's page goes into its own folder
        runs.check_writable(folder)
    if measured:
        found.append(compare_transfer(*trainings_of(measured), folder))
    told = {board.folder for board in boards}
    attacks, logs = [], []
    for text in texts:
        mine = [] if places.get(text) in told else find_attacks(text, leaves)
        attacks += mine
        needed = not mine and places.get(text) not in told | set(measured)
        if len(boards) < len(texts):
            logs += find_logs(text, leaves, needed=needed)
    if attacks:
        found.append(compare_attacks(attacks, folder))
    if logs:
        paths = [path for _, path in logs]
        labels = distinct([label for label, _ in logs], paths)
        found.append(compare(paths, labels, config.certify.radii, folder))
    return found

"""`raybust compare SWEEP1 SWEEP2`: which search, or which space, found more at equal passes?

Each side is a sweep, or several of different seeds of the search. What counts is the best value of
the sweep's metric among the trials that fit into a number of image passes, in the order in which
they began; trials that were stopped or failed cost their passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raybust.disk import runs
from raybust.errors import RequestError
from raybust.reporting.differences import Difference, Differences, plot_searches
from raybust.search.board import board_of
from raybust.search.goals import scoring_difference
from raybust.search.leaderboard import Leaderboard
from raybust.significance import LEVEL, Decision, compare_values, decide

SHARES = (0.25, 0.5, 1.0)
"""Shares of the passes that all sweeps spent, at which they are compared (our choice)."""
_GRID = 200


@dataclass(frozen=True)
class _Search:
    """One sweep: passes spent after each trial, and the best value so far, NaN before the first."""

    passes: np.ndarray
    best: np.ndarray

    def at(self, passes: float) -> float:
        """Returns the best value among the trials that fit into a number of passes."""
        count = int(np.searchsorted(self.passes, passes * (1 + 1e-9), side="right"))
        return float(self.best[count - 1]) if count else float("nan")


def all_sweeps(folders: Sequence[Path], names: Sequence[str]) -> bool:
    """Whether folders are sweeps.

    Args:
        folders: of runs.
        names: as the command has them.

    Raises:
        RequestError: some are and some are not.
    """
    kinds = [
        (folder / runs.IDENTITY).exists() and runs.read_identity(folder).kind == "sweep"
        for folder in folders
    ]
    if any(kinds) and not all(kinds):
        sweep, other = names[kinds.index(True)], names[kinds.index(False)]
        raise RequestError(
            f"compare: {sweep} is a sweep and {other} is not; compare {sweep}/best or a trial of it"
        )
    return all(kinds)


def compare_searches(
    names: Sequence[str], groups: Sequence[Sequence[Path]], margin: float, folder: Path
) -> Differences:
    """Compares groups of sweeps, each with all that follow it, and draws their curves.

    Args:
        names: of the groups.
        groups: folders of sweeps with one metric.
        margin: of equivalence, in the unit of the metric.
        folder: of the picture; it exists.

    Raises:
        RequestError: the sweeps have other metrics or data, or no trial finished.
    """
    boards = [[board_of(sweep) for sweep in group] for group in groups]
    _check_single(list(itertools.chain(*boards)))
    metric, mode = _goal(list(itertools.chain(*boards)))
    _check_data(list(itertools.chain(*groups)))
    _check_measured(list(itertools.chain(*groups)), metric)
    searches = [[_search(board, mode) for board in group] for group in boards]
    total = min(float(one.passes[-1]) for one in itertools.chain(*searches))
    rows = _rows(names, searches, (metric, mode), margin, total)
    grid = np.linspace(0, total, _GRID).tolist()
    picture = folder / "searches.png"
    curves = {
        name: [(grid, [one.at(passes) for passes in grid]) for one in group]
        for name, group in zip(names, searches, strict=True)
    }
    plot_searches(curves, picture, metric)
    notes = [
        f"Best {metric} on the validation part among the trials that fit into the passes;"
        f" 100 % are {total:,.0f} image passes, the fewest that a sweep spent.",
        "The searches chose by these values, so they are too good alike; finalists on the test set"
        " are compared by naming trials.",
        f"Level 5 % for all {len(rows)} comparisons together (Holm).",
    ]
    if any(len(group) == 1 for group in groups):
        notes.append("One search on a side: nothing can be said about others. Vary `seed`.")
    return Differences(tuple(rows), tuple(notes), (picture,))


def _check_single(boards: Sequence[Leaderboard]) -> None:
    """Rejects sweeps whose trials have several seeds: their passes and values are not those of the
    order in which the trials began."""
    for board in boards:
        if any(len(entry.values) > 1 or entry.failed for entry in board.entries):
            raise RequestError(
                f"compare: {board.sweep} has trials of several seeds (tune.seeds), whose passes are"
                f" not in the order of the trials; compare its trials, such as"
                f" {board.sweep}/0,{board.sweep}/0.1"
            )


def _goal(boards: Sequence[Leaderboard]) -> tuple[str, str]:
    """Returns the metric and mode that all sweeps have."""
    goals = {(board.metric, board.mode): board.sweep for board in boards}
    if len(goals) > 1:
        told = " and ".join(f"{sweep} {metric} ({mode})" for (metric, mode), sweep in goals.items())
        raise RequestError(f"compare: the sweeps have other metrics: {told}")
    (found,) = goals
    return found


def _check_data(folders: Sequence[Path]) -> None:
    digests = {runs.read_identity(one).data.partition("+")[0]: one.name for one in folders}
    if len(digests) > 1:
        raise RequestError(f"compare: {' and '.join(digests.values())} are of different data")


def _check_measured(folders: Sequence[Path], metric: str) -> None:
    """Rejects sweeps that measured their metric under different settings."""
    first, *others = folders
    for other in others:
        changed = scoring_difference(
            runs.read_identity(first).config, runs.read_identity(other).config, [metric]
        )
        if changed:
            raise RequestError(
                f"compare: {first.name} and {other.name} measured {metric} under different"
                f" settings ({'; '.join(changed)}): their values cannot be compared"
            )


def _search(board: Leaderboard, mode: str) -> _Search:
    trials = sorted((*board.entries, *board.others), key=lambda trial: trial.number)
    passes = np.cumsum([trial.passes for trial in trials])
    values = np.array([
        trial.value
        if trial.state == "COMPLETE" and trial.feasible is not False and trial.value is not None
        else np.nan
        for trial in trials
    ])  # fmt: skip
    if np.isnan(values).all():
        raise RequestError(f"compare: no trial of {board.sweep} finished within the constraints")
    better = np.fmax if mode == "max" else np.fmin
    return _Search(passes, better.accumulate(values))


def _rows(
    names: Sequence[str],
    searches: Sequence[Sequence[_Search]],
    goal: tuple[str, str],
    margin: float,
    total: float,
) -> list[Difference]:
    """Returns the comparisons of all pairs at all shares at which every sweep has a value."""
    metric, mode = goal
    values = {
        share: [np.array([one.at(share * total) for one in group]) for group in searches]
        for share in SHARES
    }
    known = {
        share: groups for share, groups in values.items()
        if not any(np.isnan(group).any() for group in groups)
    }  # fmt: skip
    if not known:
        raise RequestError("compare: a sweep has no finished trial within the passes of the others")
    pairs = list(itertools.combinations(range(len(names)), 2))
    level = LEVEL / (len(known) * len(pairs))
    asked = list(itertools.product(pairs, known))
    found = decide([
        compare_values(known[share][i], known[share][j], margin, level) for (i, j), share in asked
    ])  # fmt: skip
    return [
        Difference(names[i], names[j], f"best {metric} at {share:.0%} of the passes", 1,
                   one if mode == "max" else _turned(one))
        for ((i, j), share), one in zip(asked, found, strict=True)
    ]  # fmt: skip


def _turned(decision: Decision) -> Decision:
    """Returns a verdict on a metric of which less is better."""
    if decision.verdict == "better":
        return replace(decision, verdict="worse")
    return replace(decision, verdict="better") if decision.verdict == "worse" else decision

"""The report of a sweep: a self-contained HTML page, its figures, and leaderboard files.

Search results and the finalists' test results are in separate sections, each with its protocol. A
sweep without finished trials gets a page that explains why.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybust.reporting import leaderboard, page
from raybust.reporting.columns import NOT_MEASURED, Column, columns_of, number, settings
from raybust.reporting.differences import plot_bands
from raybust.reporting.marks import STATES, every
from raybust.reporting.separation import Separation, separate
from raybust.reporting.sweep_plots import Picture, draw
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord

PICTURES = "pictures"
DIFFERENCE = "difference.png"
INTERACTIVE = "interactive.html"
_MOST_OPEN = 60
_SHORT = 12
"""Longest search space shown unfolded, in rows."""


@dataclass(frozen=True)
class Reports:
    """The result of `raybust report SWEEP ...`.

    Attributes:
        boards: leaderboards of the sweeps.
        files: files written.
    """

    boards: tuple[Leaderboard, ...]
    files: tuple[Path, ...]

    def text(self) -> str:
        """Returns the output of the command line."""
        tables = [line for board in self.boards for line in (leaderboard.markdown(board), "")]
        return "\n".join([*tables, *map(str, self.files)])

    def plain(self) -> dict[str, Any]:
        """Returns the data for --json."""
        return {
            "sweeps": [board.plain() for board in self.boards],
            "files": [str(path) for path in self.files],
        }


def report_on(boards: Sequence[Leaderboard]) -> Reports:
    """Writes the reports of some sweeps into their folders."""
    return Reports(tuple(boards), tuple(path for board in boards for path in publish(board)))


def publish(board: Leaderboard) -> list[Path]:
    """Writes the report of a sweep into its folder: table, data, figures, interactive figures if
    plotly is installed, and the page; returns the files.

    Args:
        board: leaderboard of a finished, running or failed sweep.
    """
    folder = board.folder / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    files = leaderboard.write(board)
    pictures = draw(board, folder)
    files += [one.path for one in pictures]
    interactive = _interactive(board, folder / INTERACTIVE)
    files += [interactive] if interactive else []
    curve = leaderboard.draw_finalists(board)
    files += [curve] if curve else []
    difference = folder / DIFFERENCE
    difference.unlink(missing_ok=True)  # from an earlier report
    if (found := separate(board)) is not None:
        plot_bands(found.bands, difference, found.norm)
        files.append(difference)
    target = board.folder / leaderboard.PAGE
    target.write_text(html(board, pictures, interactive is not None, found))
    return [*files, target]


def _interactive(board: Leaderboard, path: Path) -> Path | None:
    """Writes the interactive figures; returns the path, or None without plotly or trials."""
    path.unlink(missing_ok=True)  # from an earlier report
    if importlib.util.find_spec("plotly") is None:
        return None
    from raybust.reporting.interactive import write_interactive

    return write_interactive(board, path)


def html(
    board: Leaderboard,
    pictures: Sequence[Picture],
    interactive: bool = False,
    separation: Separation | None = None,
) -> str:
    """Returns the page.

    Args:
        board: the sweep.
        pictures: its figures.
        interactive: whether the interactive figures were written.
        separation: which finalists can be told apart, if that is known.
    """
    parts = [
        f"<header>{_title(board, separation)}</header>",
        page.section("Goal", _asked(board)),
        page.section("Leaderboard", *_leaderboard(board)),
        page.section("Finalists on the test set", *_finalists(board)),
        page.section("Figures of the search", *_pictures(pictures, interactive)),
        page.section("Failures", _failures(board)),
        page.section("Compute spent", *_compute(board)),
        page.section("All trials", _trials(board)),
        page.section("Versions", page.facts(board.environment.items())),
        page.section("Reproduce", *_again(board)),
    ]
    return page.page(f"{board.sweep}: sweep", [part for part in parts if part])


def _title(board: Leaderboard, separation: Separation | None) -> str:
    best, found = board.best, ""
    if best is not None:
        rule = ", meets the constraints" if best.feasible else ""
        rule = ", misses a constraint" if best.feasible is False else rule
        found = (
            f"Search ranks trial {best.number} first ({best.method}): {board.metric}"
            f" {number(best.value)} on the validation part{rule}."
        )
    return "\n".join(
        [
            f"<h1>{page.escape(board.sweep)}</h1>",
            page.text(separation.sentence if separation else "", "lead"),
            page.text(board.state, "lead"),
            page.text(found),
            page.text(board.why_empty, "why"),
        ]
    )


def _asked(board: Leaderboard) -> str:
    goals = board.objectives or ((board.metric, board.mode),)
    words = {"max": "as large as possible", "min": "as small as possible"}
    facts = page.facts(
        [
            ("objectives" if len(goals) > 1 else "objective",
             "; ".join(f"{metric}, {words[mode]}" for metric, mode in goals)),
            ("ranked by", board.metric if len(goals) > 1 else ""),
            ("constraints", "; ".join(board.constraints)),
            ("data set", board.dataset),
            ("network", board.network),
            ("budget of a trial", board.budget),
            ("scored by", board.search),
        ]
    )  # fmt: skip
    heads = [[(head, "", 1) for head in ("searched key", "domain", "default", "only where")]]
    space = page.table(heads, [[(cell, "text") for cell in row] for row in board.space])
    if len(board.space) <= _SHORT:
        return facts + space
    return facts + page.folded(f"The {len(board.space)} searched keys", space)


def _leaderboard(board: Leaderboard) -> list[str]:
    if not board.entries:
        return [page.text("Nothing to rank: no trial completed training.")]
    columns = columns_of(board)
    published = bool(board.finalists)
    shown = [c for c in columns if c.group != "test" or not c.head.startswith("cert.")]
    columns = [c for c in shown if published or c.group != "test" or c.head == NOT_MEASURED]
    names = {
        "trial": "tried",
        "search": "search: validation part, cheap fidelity",
        "test": "publication: test set, finalists only",
    }
    groups = [column.group for column in columns]
    top = [("", "", 1)] + [
        (names[group], group, groups.count(group)) for group in dict.fromkeys(groups)
    ]
    second = [("rank", "number", 1)] + [(c.head, _class(c), 1) for c in columns]
    rows = []
    for rank, entry in enumerate(board.entries, 1):
        first = (str(rank), "number best" if rank == 1 else "number")
        rows.append([first, *((column.cell(entry), _class(column)) for column in columns)])
    body = page.table([top, second], rows)
    if len(rows) > _MOST_OPEN:
        body = page.folded(f"{len(rows)} trials", body)
    notes = ["Ranks depend only on the search columns, never on the test set."]
    if board.constraints:
        notes.append("Trials that miss a constraint rank below all that meet them.")
    return [
        body,
        page.text(" ".join([*notes, *board.notes]), "soft"),
        page.text(f"Search columns: {board.search}" if board.search else "", "soft"),
        page.text(f"Publication columns: {board.protocol}" if published else "", "soft"),
        page.text("" if published else "No trial was measured on the test set.", "soft"),
        _pareto(board),
    ]


def _class(column: Column) -> str:
    long = column.head in ("settings", NOT_MEASURED)
    numeric = not long and column.head not in ("method", "feasible", "Pareto")
    group = "" if column.group == "trial" else column.group
    return f"{group} {'number' if numeric else 'text' if long else ''}".strip()


def _pareto(board: Leaderboard) -> str:
    if not board.pareto:
        return ""
    metrics = [metric for metric, _ in board.objectives]
    members = [entry for entry in board.entries if entry.number in board.pareto]
    rows = [
        [(str(e.number), "number"), (e.method, ""), (settings(e.point), "text")]
        + [
            (number(e.value if m == board.metric else e.metrics.get(m)), "search number")
            for m in metrics
        ]
        for e in members
    ]
    heads = [("trial", "number", 1), ("method", "", 1), ("settings", "text", 1)]
    heads += [(metric, "search number", 1) for metric in metrics]
    return page.heading("Pareto set, on the validation part") + page.table([heads], rows)


def _finalists(board: Leaderboard) -> list[str]:
    if not board.finalists:
        return []
    parts = [page.text(board.protocol)]
    columns = [c for c in columns_of(board) if c.group == "test"]
    heads = [("trial", "number", 1), ("method", "", 1), *((c.head, _class(c), 1) for c in columns)]
    rows = [
        [(str(e.number), "number"), (e.method, ""), *((c.cell(e), _class(c)) for c in columns)]
        for e in board.finalists
    ]
    parts.append(page.table([heads], rows))
    if any(entry.attacked for entry in board.finalists):
        parts.append(
            page.text(
                "Robust accuracy is the share of test examples that withstood all attacks within"
                " eps (norm and radius in the heading, pixels in [0, 1]): an upper bound, whereas"
                " certified accuracy is a lower bound.", "soft",
            )
        )  # fmt: skip
    if (curve := leaderboard.curve_of(board)) is not None and curve.exists():
        caption = "Share of test examples certified correctly at each radius."
        parts.append(page.picture(curve, "Certified accuracy of the finalists", caption))
    if (picture := board.folder / PICTURES / DIFFERENCE).exists():
        caption = (
            "The best finalist minus each other one; where a band is above zero, the best certifies"
            " more images at that radius. The bands hold at all radii together"
            f"{'' if any(entry.by_seed for entry in board.finalists) else ', for one seed each'}."
        )
        parts.append(page.picture(picture, "Difference in certified accuracy", caption))
    return parts


def _pictures(pictures: Sequence[Picture], interactive: bool) -> list[str]:
    if not pictures:
        return []
    found = [page.picture(one.path, one.title, one.caption, one.whole) for one in pictures]
    note = (
        f"Interactive, with details of each trial: {PICTURES}/{INTERACTIVE} in the sweep's folder."
        if interactive
        else "Interactive figures need plotly: pip install 'raybust[plots]'."
    )
    return [page.grid(*found), page.text(note, "soft")]


def _failures(board: Leaderboard) -> str:
    failed = [(e, e.reason or "unknown reason") for e in board.others if e.state == "FAIL"]
    failed += [(e, text) for e in board.entries for text in e.failed]
    if not failed:
        return page.text("No trial failed.") if every(board) else ""
    heads = [[("trial", "number", 1), ("method", "", 1), ("settings", "text", 1), ("why", "", 1)]]
    rows = [
        [(str(e.number), "number"), (e.method, ""), (settings(e.point), "text"), (why, "text")]
        for e, why in failed
    ]
    return page.table(heads, rows)


def _compute(board: Leaderboard) -> list[str]:
    trials = every(board)
    if not trials:
        return []
    rows = [
        _spent(name, [entry for entry in trials if entry.method == name])
        for name in sorted({entry.method for entry in trials})
    ]
    total = _spent("all", trials)
    total[0] = (total[0][0], "best")
    labels = ("method", "trials", *STATES.values(), "image passes", "seconds")
    heads = [[(label, "number" if place else "", 1) for place, label in enumerate(labels)]]
    note = (
        "Image passes count images passed through the network in training, forward and backward;"
        " seconds are of training and validation, per trial. The finalists' certificates and"
        " attacks are not included. Failed trials count up to their last measurement."
    )
    return [page.table(heads, [*rows, total]), page.text(note, "soft")]


def _spent(name: str, trials: Sequence[TrialRecord]) -> list[page.Cell]:
    states = [sum(entry.state == state for entry in trials) for state in STATES]
    passes, seconds = (sum(getattr(e, key) for e in trials) for key in ("passes", "seconds"))
    counts = [len(trials), *states]
    cells = [*(str(count) for count in counts), f"{passes:,.0f}", f"{seconds:,.1f}"]
    return [(name, ""), *((cell, "number") for cell in cells)]


def _trials(board: Leaderboard) -> str:
    heads = [
        [("trial", "number", 1), ("state", "", 1), ("method", "", 1), ("settings", "text", 1),
         ("last epoch", "number", 1), (board.metric, "search number", 1),
         ("val. accuracy", "search number", 1), ("image passes", "number", 1),
         ("seconds", "number", 1)]
    ]  # fmt: skip
    rows = [
        [
            (str(e.number), "number"),
            (STATES.get(e.state, e.state), ""),
            (e.method, ""),
            (settings(e.point), "text"),
            (str(max(e.history, default=0)), "number"),
            (number(e.value), "search number"),
            (number(e.metrics.get("validation/accuracy")), "search number"),
            (f"{e.passes:,.0f}", "number"),
            (f"{e.seconds:,.1f}", "number"),
        ]
        for e in every(board)
    ]
    whole = page.table(heads, rows)
    return page.folded(f"{len(rows)} trials", whole) if len(rows) > _MOST_OPEN else whole


def _again(board: Leaderboard) -> list[str]:
    return [
        page.text("Run the sweep, or resume it where it stopped:" * bool(board.command)),
        page.code(board.command),
        page.text("Regenerate this page from the files on disk:"),
        page.code(f"raybust report {board.sweep}"),
        page.text("Runs, parameters and artifacts are in MLflow: raybust ui", "soft"),
    ]

"""Compares several certification logs for `raybust report`.

Writes a table, the certified-accuracy curves and the distribution of votes. Reads other people's
logs as well as our own, and states the n and alpha of each.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybust.certification import BoundProtocol, Protocol
from raybust.reporting.certificates import other_images, table_of
from raybust.reporting.figures import abstention, acr, budget, certified_accuracy, votes
from raybust.reporting.logs import Log
from raybust.reporting.plots import interactive_curves, plot_curves, plot_votes


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        markdown: the table.
        figures: its numbers, one entry per row.
        files: files written.
        kind: "logs" or "attacks".
    """

    markdown: str
    figures: tuple[dict[str, Any], ...]
    files: tuple[Path, ...]
    kind: str = "logs"

    def text(self) -> str:
        """Returns the output of the command line."""
        return "\n".join([self.markdown.rstrip(), "", *map(str, self.files)])

    def plain(self) -> dict[str, Any]:
        """Returns the data for --json."""
        return {self.kind: list(self.figures), "files": [str(path) for path in self.files]}


_WRITTEN = (
    "certified*.md", "certified*.tex", "certified*.png", "certified*.html", "votes*.png",
    "attacked.md", "corrupted.md", "transfer.md", "transfer.png",
)  # fmt: skip


LEADS = {
    "smoothing": "",
    "bounds": "Sound bounds of the network itself, without noise or alpha:\n\n",
}
"""What begins the table of a kind of certificates."""


def move_into(folder: Path, written: Path) -> None:
    """Moves a finished report into its folder, in place of an earlier one.

    Args:
        folder: created if missing; keeps what is no part of a report.
        written: folder of the new report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _WRITTEN:
        for path in folder.glob(pattern):
            path.unlink()
    for path in written.iterdir():
        path.rename(folder / path.name)


def groups_of(logs: Sequence[Log]) -> dict[tuple[str, str], list[Log]]:
    """Returns logs by the norm of their radii and by what proved them: different norms share no
    table and no axis, nor do certificates of the smoothed classifier and of the network itself."""
    found: dict[tuple[str, str], list[Log]] = {}
    for log in logs:
        found.setdefault((log.norm, log.kind), []).append(log)
    return found


def compare(every: Sequence[Log], radii: Sequence[float], folder: Path, name: str) -> Comparison:
    """Writes a table (Markdown, LaTeX) and figures (PNG, and HTML if plotly is installed).

    Args:
        every: certification logs of one kind in one norm.
        radii: columns of the table.
        folder: folder of the files, created if missing.
        name: added to the names of the files.
    """
    logs = [log for log in every if len(log)]
    folder.mkdir(parents=True, exist_ok=True)
    markdown = LEADS[every[0].kind] + table_of(every, radii)
    (folder / f"certified{name}.md").write_text(markdown)
    (folder / f"certified{name}.tex").write_text(table_of(every, radii, latex=True))
    files = [folder / f"certified{name}.md", folder / f"certified{name}.tex"]
    files.append(plot_curves(logs, folder / f"certified{name}.png"))
    if any(votes(log) is not None for log in logs):
        files.append(plot_votes(logs, folder / f"votes{name}.png"))
    if importlib.util.find_spec("plotly") is not None:
        files.append(interactive_curves(logs, folder / f"certified{name}.html"))
    others = other_images(every)
    figures = (_figures(log, radii, others.get(log.name)) for log in every)
    return Comparison(markdown, tuple(figures), tuple(files))


def _figures(log: Log, radii: Sequence[float], other: str | None) -> dict[str, Any]:
    """Returns the numbers of one log, with everything that its ACR depends on."""
    made, average, made_by = budget(log), acr(log), log.protocol
    return {
        "log": log.name,
        "examples": len(log),
        "skip": log.skip,
        "n": made.n if made else None,
        "alpha": made.alpha if made and made.identifiable else None,
        "alphas": [list(fit) for fit in made.alphas] if made else [],
        "inferred": made.inferred if made else None,
        "acr": average.value,
        "acr_interval": [average.low, average.high],
        "abstention": abstention(log),
        "certified_accuracy": {
            f"{radius:g}": float(share)
            for radius, share in zip(radii, certified_accuracy(log, radii), strict=True)
        },
        "kind": log.kind,
        "noise": made_by.noise if isinstance(made_by, Protocol) else None,
        "bound": made_by.bound if isinstance(made_by, BoundProtocol) else None,
        "passes": made_by.passes if isinstance(made_by, BoundProtocol) else None,
        "norm": log.norm,
        "sigma": log.sigma,
        "split": made_by.split if made_by else None,
        "dataset": made_by.dataset if made_by else None,
        "targets": list(made_by.targets) if made_by else [],
        "warnings": [*log.warnings, *([other] if other else [])],
    }

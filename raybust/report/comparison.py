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

from raybust.report.certificates import read_logs, table
from raybust.report.figures import abstention, acr, budget, certified_accuracy
from raybust.report.logs import Log
from raybust.report.plots import interactive_curves, plot_curves, plot_votes


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


def compare(
    paths: Sequence[Path], labels: Sequence[str], radii: Sequence[float], folder: Path
) -> Comparison:
    """Writes a table (Markdown, LaTeX) and figures (PNG, and HTML if plotly is installed).

    Args:
        paths: certification logs.
        labels: a name for each.
        radii: columns of the table.
        folder: folder of the files, created if missing.
    """
    every = read_logs(paths, labels)
    logs = [log for log in every if len(log)]
    folder.mkdir(parents=True, exist_ok=True)
    markdown = table(paths, radii, labels)
    (folder / "certified.md").write_text(markdown)
    (folder / "certified.tex").write_text(table(paths, radii, labels, latex=True))
    files = [folder / "certified.md", folder / "certified.tex"]
    files.append(plot_curves(logs, folder / "certified.png"))
    files.append(plot_votes(logs, folder / "votes.png"))
    if importlib.util.find_spec("plotly") is not None:
        files.append(interactive_curves(logs, folder / "certified.html"))
    return Comparison(markdown, tuple(_figures(log, radii) for log in every), tuple(files))


def _figures(log: Log, radii: Sequence[float]) -> dict[str, Any]:
    """Returns the numbers of one log, with everything that its ACR depends on."""
    made, average = budget(log), acr(log)
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
        "warnings": list(log.warnings),
    }

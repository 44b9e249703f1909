"""Several certification logs side by side: one table, one picture, the votes behind them.

Reads what other people made as well as our own, and says which n and alpha made each. The work
behind `raybust report`. Stage report.
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
    """What a comparison gives.

    Attributes:
        markdown: the table.
        figures: the same as numbers, one entry a log.
        files: what was written.
    """

    markdown: str
    figures: tuple[dict[str, Any], ...]
    files: tuple[Path, ...]

    def text(self) -> str:
        """Returns what the command line prints."""
        return "\n".join([self.markdown.rstrip(), "", *map(str, self.files)])

    def plain(self) -> dict[str, Any]:
        """Returns the same for --json."""
        return {"logs": list(self.figures), "files": [str(path) for path in self.files]}


def compare(
    paths: Sequence[Path], labels: Sequence[str], radii: Sequence[float], folder: Path
) -> Comparison:
    """Writes table (Markdown, LaTeX) and pictures (PNG, and HTML where plotly is installed).

    Args:
        paths: certification logs.
        labels: a name for each.
        radii: columns of the table.
        folder: where the files go; made where it is missing.
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
    """Returns the numbers of one log; an ACR comes with all that it depends on."""
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

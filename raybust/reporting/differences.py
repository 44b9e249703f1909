"""Differences between networks with verdicts: Markdown, LaTeX, JSON, and a picture of the curves.

Shares are shown in percent, their differences in points. A table begins with the verdicts in words
and ends with what they depend on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybust.reporting.naming import latex, markdown
from raybust.reporting.plots import COLORS, canvas
from raybust.significance import Band, Decision

Curve = tuple[Sequence[float], Sequence[float]]
_HEADS = ("A", "B", "column", "A", "B", "A - B [95 %]", "p", "p, Holm", "A is", "would decide")


@dataclass(frozen=True)
class Difference:
    """One comparison in a table.

    Attributes:
        a: name of A.
        b: name of B.
        column: what is compared.
        scale: of the shown numbers: 100 for shares, in percent, and 1 for the ACR.
        decision: the comparison and its verdict.
        flags: names of the flags of A's and of B's attacks, for robust accuracy.
    """

    a: str
    b: str
    column: str
    scale: float
    decision: Decision
    flags: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def cells(self) -> list[str]:
        """Returns the row of a table."""
        found, digits = self.decision.found, 1 if self.scale == 100 else 4
        a, b, between, low, high = (
            f"{self.scale * value:.{digits}f}"
            for value in (found.a, found.b, found.difference, found.low, found.high)
        )
        a, b = (
            f"{'at most ' * bool(flags)}{value}"
            for flags, value in zip(self.flags, (a, b), strict=True)
        )
        interval = "" if math.isnan(found.low) else f" [{low}, {high}]"
        return [
            self.a, self.b, self.column, a, b, f"{between}{interval}", _p(found.p),
            _p(self.decision.adjusted), self.words(), self._would_decide(),
        ]  # fmt: skip

    def words(self) -> str:
        """Returns the verdict."""
        flagged = " (flagged)" * self.decision.held
        return f"{self.decision.verdict}{', within the margin' * self.decision.negligible}{flagged}"

    def _would_decide(self) -> str:
        found = self.decision.found
        if self.decision.verdict != "cannot say":
            return ""
        if self.decision.held:
            return "stronger attacks"
        if found.needed is None:
            if math.isnan(found.low):
                return "several seeds"
            return "more images" if found.difference else "no difference seen"
        if min(found.seeds) > 1:
            return f"{found.needed:,} seeds each"
        return f"{found.needed:,} images"

    def plain(self) -> dict[str, Any]:
        """Returns the comparison as plain data."""
        found = self.decision.found
        return {
            "a": self.a,
            "b": self.b,
            "column": self.column,
            "value_a": found.a,
            "value_b": found.b,
            "difference": found.difference,
            "interval": [found.low, found.high],
            "p": found.p,
            "p_adjusted": self.decision.adjusted,
            "p_within_margin": found.p_within,
            "margin": found.margin,
            "verdict": self.decision.verdict,
            "within_margin": self.decision.negligible,
            "images": found.images,
            "seeds": list(found.seeds),
            "needed": found.needed,
            "test": found.test,
            "checks": found.checks,
            "flags_a": list(self.flags[0]),
            "flags_b": list(self.flags[1]),
        }


@dataclass(frozen=True)
class Differences:
    """The result of a comparison of networks.

    Attributes:
        rows: one for each pair and column.
        notes: on what the numbers depend.
        files: files written.
    """

    rows: tuple[Difference, ...]
    notes: tuple[str, ...]
    files: tuple[Path, ...] = ()

    def summary(self) -> str:
        """Returns the verdicts in words, a sentence for each pair."""
        pairs: dict[tuple[str, str], dict[str, list[str]]] = {}
        for row in self.rows:
            verdicts = pairs.setdefault((row.a, row.b), {})
            verdicts.setdefault(row.decision.verdict, []).append(row.column)
        return " ".join(_sentence(a, b, found) for (a, b), found in pairs.items())

    def markdown(self) -> str:
        """Returns sentences, table and notes."""
        lines = [f"| {' | '.join(_HEADS)} |", "|---|---|---|---:|---:|---:|---:|---:|---|---:|"]
        lines += [f"| {' | '.join(map(markdown, row.cells()))} |" for row in self.rows]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([self.summary(), "", *lines, "", *notes]) + "\n"

    def latex(self) -> str:
        r"""Returns the table in LaTeX (`booktabs`)."""
        rows = [" & ".join(map(latex, row.cells())) for row in self.rows]
        head = " & ".join(map(latex, _HEADS))
        notes = "".join(f"% {note}\n" for note in self.notes)
        return (
            "\\begin{tabular}{lllrrrrrlr}\n\\toprule\n"
            + " \\\\\n\\midrule\n".join([head, " \\\\\n".join(rows)])
            + f" \\\\\n\\bottomrule\n\\end{{tabular}}\n{notes}"
        )

    def text(self) -> str:
        """Returns the output of the command line."""
        return "\n".join([self.markdown().rstrip(), "", *map(str, self.files)])

    def plain(self) -> dict[str, Any]:
        """Returns the output for --json."""
        return {
            "summary": self.summary(),
            "comparisons": [row.plain() for row in self.rows],
            "notes": list(self.notes),
            "files": [str(path) for path in self.files],
        }

    def _repr_markdown_(self) -> str:
        return self.markdown()


def _sentence(a: str, b: str, found: Mapping[str, list[str]]) -> str:
    words = {
        "better": "better in {}",
        "worse": "worse in {}",
        "equivalent": "equivalent within the margin in {}",
        "cannot say": "not told apart in {}",
    }
    parts = [text.format(", ".join(found[key])) for key, text in words.items() if key in found]
    return f"{a} against {b}: {'; '.join(parts)}."


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def plot_bands(bands: Mapping[str, Band], path: Path, norm: str) -> None:
    """Draws the difference of certified accuracy over the radius, with simultaneous bands.

    Args:
        bands: by the name of the pair.
        path: of the picture.
        norm: of the radii, for the axis.
    """
    figure, (axes,) = canvas()
    for number, (name, band) in enumerate(bands.items()):
        color = COLORS[number % len(COLORS)]
        axes.plot(band.radii, 100 * band.difference, color=color, label=name)
        axes.fill_between(band.radii, 100 * band.low, 100 * band.high, color=color, alpha=0.15)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel(f"radius ({norm})")
    axes.set_ylabel("difference in certified accuracy (points)")
    axes.margins(x=0)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=200)


def write_tables(found: Differences, folder: Path) -> list[Path]:
    """Writes the table in Markdown and LaTeX; returns the files."""
    files = {"differences.md": found.markdown(), "differences.tex": found.latex()}
    for name, text in files.items():
        (folder / name).write_text(text)
    return [folder / name for name in files]


def plot_searches(curves: Mapping[str, Sequence[Curve]], path: Path, metric: str) -> None:
    """Draws the best value so far over the passes: each search thin, the mean of a group thick.

    Args:
        curves: (passes, best so far) of each search, on one grid, by the name of the group.
        path: of the picture.
        metric: of the search, for the axis.
    """
    figure, (axes,) = canvas()
    for number, (name, group) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        for passes, best in group if len(group) > 1 else ():
            axes.step(passes, best, where="post", color=color, linewidth=0.6, alpha=0.5)
        parts = zip(*(best for _, best in group), strict=True)
        mean = [sum(values) / len(group) for values in parts]
        axes.step(group[0][0], mean, where="post", color=color, linewidth=2, label=name)
    axes.set_xlabel("image passes of all trials so far")
    axes.set_ylabel(f"best {metric} so far")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=200)

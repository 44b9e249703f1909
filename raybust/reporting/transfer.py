"""Transfer between norms: networks trained with random noise in one norm and tested with noise in
every other, as a matrix next to what the concentration of norms predicts.

Siedel et al. (VISAPP 2024, arXiv:2305.05400). In high dimension the root mean square (rms) of a
random point of an Lp ball determines its size in every norm, so training should help against dense
noises no larger than its own, and impulses (p = 0) only against impulses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr

from raybust.corruptions import Corrupted
from raybust.errors import RequestError
from raybust.numerics.lp_sets import NORMS, Row, Shape, named, rms

Matrix = NDArray[np.float64]
"""(norms tested, trainings)."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One column of the matrix.

    Attributes:
        name: name in the figure.
        rows: the (p, eps) used in training; empty for training without noise.
        accuracy: mean accuracy over the eps of each tested norm.
    """

    name: str
    rows: tuple[Row, ...]
    accuracy: Mapping[float, float]


@dataclass(frozen=True)
class Transfer:
    """The written matrix.

    Attributes:
        markdown: accuracy by tested norm and training, in percent of the best of its row.
        correlation: rank correlation of accuracy and prediction within each tested norm, or NaN.
        files: files written.
    """

    markdown: str
    correlation: float
    files: tuple[Path, ...]

    def text(self) -> str:
        """Returns the output of the command line."""
        known = not math.isnan(self.correlation)
        value = f"{self.correlation:.3f}" if known else "not defined, because no row varies"
        rank = f"rank correlation with the prediction (in brackets): {value}"
        return "\n".join([self.markdown, rank, *map(str, self.files)])

    def plain(self) -> dict[str, Any]:
        """Returns the data for --json."""
        return {"rank_correlation": self.correlation, "files": [str(path) for path in self.files]}


def training_of_counts(name: str, rows: Sequence[Row], counts: Corrupted, shape: Shape) -> Training:
    """Returns the column of a run: its accuracies under the set C1, whatever else was measured.

    Args:
        name: name of the run.
        rows: the (p, eps) used in training.
        counts: with those of C1.
        shape: (C, H, W) of the images.

    Raises:
        RequestError: a noise of C1 is missing.
    """
    errors = {(cell.p, cell.level): cell.error for cell in counts.cells if cell.kind == "lp"}
    wanted = named("C1", shape).rows
    missing = [f"p={p:g}, {eps:g}" for p, eps in wanted if (p, eps) not in errors]
    if missing:
        raise RequestError(
            f"{name}: lacks {'; '.join(missing)}; run"
            f" `raybust evaluate {name} corruptions.sets=[C1]`"
        )
    accuracy = {}
    for norm in NORMS:
        mine = [errors[row] for row in wanted if row[0] == norm]
        accuracy[norm] = 1 - math.fsum(mine) / len(mine)
    return Training(name=name, rows=tuple(rows), accuracy=accuracy)


def measured(trainings: Sequence[Training]) -> Matrix:
    """Returns the accuracies, in each row divided by the best."""
    found = np.array([[one.accuracy[p] for one in trainings] for p in NORMS])
    return found / found.max(1, keepdims=True)


def predicted(trainings: Sequence[Training], shape: Shape) -> Matrix:
    """Returns for each tested norm the share of its noises in C1 that are covered by training.

    A dense noise covers those with no larger rms, impulses cover impulses with no larger share, and
    dense noise and impulses never cover each other.

    Args:
        trainings: one column each.
        shape: (C, H, W) of the images.
    """
    tested = named("C1", shape).rows
    found = np.zeros((len(NORMS), len(trainings)))
    for row, q in enumerate(NORMS):
        sizes = [_size(q, eps, shape) for p, eps in tested if p == q]
        for column, one in enumerate(trainings):
            most = max((_size(p, e, shape) for p, e in one.rows if (p == 0) == (q == 0)), default=0)
            found[row, column] = np.mean([size <= most * (1 + 1e-9) for size in sizes])
    return found


def rank_correlation(trainings: Sequence[Training], shape: Shape) -> float:
    """Returns Spearman's correlation of measured accuracy and prediction within each tested norm,
    averaged over the norms where both vary; NaN if there are none."""
    pairs = zip(measured(trainings), predicted(trainings, shape), strict=True)
    found = [
        float(spearmanr(accuracy, share).statistic)
        for accuracy, share in pairs
        if np.ptp(accuracy) > 0 and np.ptp(share) > 0
    ]
    return math.fsum(found) / len(found) if found else math.nan


def transfer_table(trainings: Sequence[Training], shape: Shape) -> str:
    """Returns a Markdown table: a row per tested norm, with the accuracy in percent of the best
    and, in brackets, the share of that norm's noises covered by training; last, the rms of an entry
    of the largest training noise."""
    lines = [["tested", *(one.name for one in trainings)], ["---", *["---:"] * len(trainings)]]
    for p, values, shares in zip(
        NORMS, measured(trainings), predicted(trainings, shape), strict=True
    ):
        cells = [f"{100 * v:.1f} ({100 * s:.0f})" for v, s in zip(values, shares, strict=True)]
        lines.append([f"p={p:g}", *cells])
    sizes = [
        max((_size(*row, shape) for row in one.rows if row[0]), default=0) for one in trainings
    ]
    lines.append(["rms of training noise", *(f"{size:.3f}" if size else "-" for size in sizes)])
    told = (
        "\nAccuracy in percent of the best of its row, not of the images; in brackets the predicted"
        " share of that norm's noises that the training covers.\n"
    )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + told


def compare_transfer(trainings: Sequence[Training], shape: Shape, folder: Path) -> Transfer:
    """Writes the matrix as a table and a figure.

    Args:
        trainings: one column each.
        shape: (C, H, W) of the images.
        folder: folder of `transfer.md` and `transfer.png`, created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    correlation = rank_correlation(trainings, shape)
    table = transfer_table(trainings, shape)
    (folder / "transfer.md").write_text(table)
    picture = plot_transfer(trainings, shape, folder / "transfer.png")
    return Transfer(table, correlation, (folder / "transfer.md", picture))


def plot_transfer(
    trainings: Sequence[Training], shape: Shape, path: str | Path, title: str = ""
) -> Path:
    """Draws the matrix, measured and predicted side by side; returns the path.

    Args:
        trainings: one column each.
        shape: (C, H, W) of the images.
        path: the .png or .pdf to write.
        title: title of the figure.

    Raises:
        RequestError: no trainings.
    """
    if not trainings:
        raise RequestError("no training to draw")
    width = max(6.0, 2.0 + 1.1 * len(trainings))
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [one.name for one in trainings]
    _draw(left, measured(trainings), names, "accuracy,\n% of the best for that norm")
    _draw(right, predicted(trainings, shape), names, "predicted:\n% of that norm's noises covered")
    left.set_yticks(range(len(NORMS)), [f"p={p:g}" if p < math.inf else "p=∞" for p in NORMS])
    left.set_ylabel("tested")
    figure.suptitle(title)
    figure.savefig(path, dpi=200)
    return Path(path)


def _draw(axes: Axes, values: Matrix, names: Sequence[str], title: str) -> None:
    low = min(float(values.min()), 0.8)  # keep small differences visually small
    axes.imshow(values, cmap="viridis", vmin=low, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("trained")
    for (row, column), value in np.ndenumerate(values):
        color = "black" if value > (1 + low) / 2 else "white"
        axes.text(
            column, row, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize=7
        )


def _size(p: float, eps: float, shape: Shape) -> float:
    """Returns the rms of an entry, or the share of impulses."""
    return eps if p == 0 else rms(p, eps, math.prod(shape))

"""Results of evaluation under corruption: counts per cell, which add up over workers, and the
metrics derived from them.

mCE_Lp, iCE and mCE_xN, which shows whether training with noise helps beyond noise, are from Siedel
et al. (VISAPP 2024, arXiv:2305.05400).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from raybust.corruptions.metrics import (
    COMMON,
    EXTRA,
    NOISE_NAMES,
    SEVERITIES,
    calibration_error,
    ice,
    mean_corruption_error,
)
from raybust.errors import RequestError
from raybust.numerics.lp_sets import Row

Kind = Literal["clean", "lp", "published", "generated"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """Counts of a network under one corruption.

    Attributes:
        kind: source of the corruption.
        name: "clean", "p=2", or the name of the corruption.
        level: eps or severity; 0 for "clean".
        p: norm of Lp noise, else NaN.
        examples: number of examples.
        correct: number of them with the label as top class.
        bins: bins of the calibration error, see `calibration_bins`.
    """

    kind: Kind
    name: str
    level: float
    p: float = math.nan
    examples: int
    correct: int
    bins: Tensor

    @property
    def sound(self) -> bool:
        """Whether the counts are consistent."""
        total, _, right = self.bins.sum(1).tolist()
        return 0 <= self.correct <= self.examples == total and right == self.correct

    @property
    def error(self) -> float:
        """Share of misclassified examples; NaN without examples."""
        return 1 - self.correct / self.examples if self.examples else math.nan

    def plain(self) -> dict[str, Any]:
        """Returns the cell as JSON data; the inverse of `parse`."""
        return {**vars(self), "bins": self.bins.tolist()}

    @classmethod
    def parse(cls, plain: dict[str, Any]) -> Cell:
        """Returns the cell from the output of `plain`."""
        return cls(**{**plain, "bins": torch.tensor(plain["bins"], dtype=torch.float64)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Corrupted:
    """All cells of an evaluation.

    Attributes:
        cells: all cells, the clean one first.
        sets: named sets of Lp noises and their (p, eps).
    """

    cells: tuple[Cell, ...]
    sets: dict[str, tuple[Row, ...]]

    @functools.cached_property
    def errors(self) -> dict[Kind, dict[str, dict[float, float]]]:
        """Errors by kind, name and level."""
        found: dict[Kind, dict[str, dict[float, float]]] = {}
        for cell in self.cells:
            found.setdefault(cell.kind, {}).setdefault(cell.name, {})[cell.level] = cell.error
        return found

    @property
    def clean_error(self) -> float:
        """Error without corruption."""
        return self.cells[0].error

    def metrics(self) -> dict[str, float]:
        """Returns all metrics by name, errors as shares.

        `error/clean`, `calibration/clean`; `mCE_Lp` (for C1; `mCE_Lp/C2` etc. for others), `iCE`,
        `error/p_2` (mean over its eps); for published sets `mCE` (19 corruptions) and `mCE_xN`
        (without the four noises) if complete, `mCE_15`, `calibration/corrupted` (mean over cells),
        `error/fog` etc.; the same for generated corruptions under `generated/`, not comparable with
        published results.
        """
        found = {
            "error/clean": self.clean_error,
            "calibration/clean": calibration_error(self.cells[0].bins),
        }
        by_row = {(cell.p, cell.level): cell.error for cell in self.cells if cell.kind == "lp"}
        for name, rows in self.sets.items():
            noisy = [by_row[row] for row in rows]
            if name == "iCE":
                found["iCE"] = ice(noisy, self.clean_error)
            else:
                key = "mCE_Lp" if name == "C1" else f"mCE_Lp/{name}"
                found[key] = math.fsum(noisy) / len(noisy)
        for kind, prefix in (("lp", ""), ("published", ""), ("generated", "generated/")):
            errors = self.errors.get(kind, {})  # type: ignore[call-overload]
            for name, row in errors.items():
                found[f"{prefix}error/{name.replace('=', '_')}"] = math.fsum(row.values()) / len(
                    row
                )
            if kind == "lp" or not errors:
                continue
            whole = {name for name, row in errors.items() if set(row) == set(SEVERITIES)}
            if whole >= {*COMMON, *EXTRA}:
                found[f"{prefix}mCE"] = mean_corruption_error(errors)
                found[f"{prefix}mCE_xN"] = mean_corruption_error(errors, without=NOISE_NAMES)
            if whole >= set(COMMON):
                found[f"{prefix}mCE_15"] = mean_corruption_error(errors, without=EXTRA)
            cells = [cell for cell in self.cells if cell.kind == kind]
            values = [calibration_error(cell.bins) for cell in cells]
            found[f"{prefix}calibration/corrupted"] = math.fsum(values) / len(values)
        return found

    def notes(self) -> list[str]:
        """Returns caveats about the metrics, one sentence each."""
        found = []
        if "iCE" in self.sets and self.clean_error == 0:
            found.append("iCE is nan: it is relative to the clean error, which is 0")
        if self.errors.get("generated"):
            found.append(
                "generated/* are corruptions made on the fly at ImageNet's strengths, not CIFAR-C"
            )
        clean = self.cells[0].examples
        fewer = [cell for cell in self.cells if cell.examples < clean]
        if fewer:
            found.append(
                f"{len(fewer)} corruptions have fewer images than the clean part's {clean}, such as"
                f" {fewer[0].name} at {fewer[0].level:g} with {fewer[0].examples}"
            )
        more = [cell for cell in self.cells if cell.examples > clean]
        if more:
            found.append(
                f"{len(more)} corruptions have more images than the clean part's {clean}, such as"
                f" {more[0].name} at {more[0].level:g} with {more[0].examples}: they are not"
                " corruptions of this part, or not all of them"
            )
        published = self.errors.get("published", {})
        missing = [name for name in (*COMMON, *EXTRA) if name not in published]
        if published and missing:
            found.append(f"mCE and mCE_xN need all 19 corruptions; missing: {', '.join(missing)}")
        return found

    def table(self) -> str:
        """Returns a Markdown table: a row per corruption with its errors in percent by level."""
        lines = [["corruption", "mean", "errors in % at each level"], ["---", "---:", "---"]]
        for kind, names in self.errors.items():
            for name, row in names.items():
                label = f"{name} (on the fly)" if kind == "generated" else name
                mean = 100 * math.fsum(row.values()) / len(row)
                cells = ", ".join(f"{level:g}: {100 * error:.1f}" for level, error in row.items())
                lines.append([label, f"{mean:.2f}", "" if kind == "clean" else cells])
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def merge(parts: Sequence[Corrupted]) -> Corrupted:
    """Merges the results of several workers, each on its own examples.

    Raises:
        RequestError: the parts have different corruptions.
    """
    first, *others = parts
    cells = list(first.cells)
    for other in others:
        names = [(cell.kind, cell.name, cell.level) for cell in other.cells]
        if other.sets != first.sets or names != [(c.kind, c.name, c.level) for c in cells]:
            raise RequestError("the parts are evaluations under different corruptions")
        cells = [
            dataclasses.replace(
                cell,
                examples=cell.examples + more.examples,
                correct=cell.correct + more.correct,
                bins=cell.bins + more.bins,
            )
            for cell, more in zip(cells, other.cells, strict=True)
        ]
    return Corrupted(cells=tuple(cells), sets=first.sets)

"""Certification logs: the row and the file.

The format is that of Cohen et al. (2019), tab-separated `idx label predict radius correct time`,
with a first line `# {protocol}` and further columns for the counts and the bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from raybust.certification.protocol import Protocol
from raybust.disk.files import replace_text
from raybust.disk.rowlog import RowLog
from raybust.numerics.bounds import round_down

COHEN = ("idx", "label", "predict", "radius", "correct", "time")
COLUMNS = (*COHEN, "top", "n0_count", "count", "n", "p_lower", "draws", "counts")
_ROUNDING = 1e-9
"""Tolerated difference of a bound between versions of SciPy."""
ABSTAIN = -1
"""Value of `predict` on abstention; the radius is then 0."""


@dataclass(frozen=True, kw_only=True)
class CohenRow:
    """What the certificates of one example have in common, of either kind: Cohen's columns.

    Attributes:
        idx: index of the example in its dataset.
        label: its label.
        predict: the certified class, or -1 (abstain).
        radius: certified radius in the protocol's norm, rounded down; 0 on abstention.
        time: seconds of computation.
    """

    idx: int
    label: int
    predict: int
    radius: float
    time: float

    @property
    def place(self) -> int:
        """The index, the key of the row."""
        return self.idx

    @property
    def correct(self) -> bool:
        """Whether the certified class is the label."""
        return self.predict == self.label

    @property
    def further(self) -> list[str]:
        """The cells behind Cohen's columns."""
        raise NotImplementedError

    @property
    def cells(self) -> list[str]:
        """The cells of the row's line."""
        return [
            str(self.idx),
            str(self.label),
            str(self.predict),
            repr(self.radius),
            str(int(self.correct)),
            format_time(self.time),
            *self.further,
        ]

    def same(self, other: Self) -> bool:
        """Returns whether two rows are equal except for `time`."""
        return self.cells[:5] + self.cells[6:] == other.cells[:5] + other.cells[6:]

    def line(self) -> str:
        """Returns the row as a line of a log, with its newline."""
        return "\t".join(self.cells) + "\n"

    @classmethod
    def read(cls, cells: Mapping[str, str], further: Mapping[str, Any]) -> Self:
        """Returns the row of Cohen's cells by column, and of the values of its further fields.

        Raises:
            ValueError: a cell is none of its column, or `correct` contradicts the classes.
        """
        row = cls(
            idx=int(cells["idx"]),
            label=int(cells["label"]),
            predict=int(cells["predict"]),
            radius=float(cells["radius"]),
            time=parse_time(cells["time"]),
            **further,
        )
        if row.correct != bool(int(cells["correct"])):
            raise ValueError("`correct` is not predict == label")
        return row


@dataclass(frozen=True, kw_only=True)
class Row(CohenRow):
    """One example's certificate by smoothing.

    Attributes:
        top: the class chosen by the pilot draws.
        n0_count: votes for it among the n0 pilot draws.
        count: votes for it among the first `n` estimate draws.
        n: estimate draws at the look with the best bound.
        p_lower: that bound: the lower bound on the probability of `top`.
        draws: total estimate draws.
        counts: (class, votes) over all of them, sorted, without zeros.
    """

    top: int
    n0_count: int
    count: int
    n: int
    p_lower: float
    draws: int
    counts: tuple[tuple[int, int], ...]

    @property
    def further(self) -> list[str]:
        """The cells behind Cohen's columns."""
        return [
            str(self.top),
            str(self.n0_count),
            str(self.count),
            str(self.n),
            repr(self.p_lower),
            str(self.draws),
            " ".join(f"{c}:{votes}" for c, votes in self.counts),
        ]

    def fault(self, protocol: Protocol) -> str | None:
        """Returns how the row contradicts itself or its protocol, or None: the count implies bound
        and radius, the bound implies the class."""
        rule, votes = protocol.rule, dict(self.counts)
        if self.n not in rule.times or self.draws not in rule.times or self.draws < self.n:
            return f"the protocol has no look at {self.n} of {self.draws} draws"
        if sum(votes.values()) != self.draws or len(votes) != len(self.counts):
            return f"its counts are not {self.draws} votes"
        most, least = votes.get(self.top, 0), self.count
        if not 0 <= least <= min(self.n, most) or (self.n == self.draws and most != least):
            return f"count: got {self.count}, but class {self.top} has {most} of the votes"
        if not 0 <= self.n0_count <= protocol.n0:
            return f"n0_count: got {self.n0_count} of {protocol.n0} draws"
        bound = rule.lower(self.count, self.n, rule.times.index(self.n))
        if not math.isclose(self.p_lower, bound, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
            return f"p_lower: got {self.p_lower!r}, but {self.count} of {self.n} give {bound!r}"
        radius = protocol.smoothing.radius(self.p_lower)
        if not math.isclose(self.radius, radius, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
            return f"radius: got {self.radius!r}, but p_lower gives {radius!r}"
        predict = self.top if self.p_lower > 0.5 else ABSTAIN
        if self.predict != predict:
            return f"predict: got {self.predict}, but top and p_lower give {predict}"
        return None

    @classmethod
    def parse(cls, line: str) -> Row:
        """Parses a line of one of our logs.

        Raises:
            ValueError: the line is not a complete row.
        """
        cells = dict(zip(COLUMNS, line.rstrip("\n").split("\t"), strict=True))
        pairs = (pair.split(":") for pair in cells["counts"].split(" "))
        whole = {key: int(cells[key]) for key in ("top", "n0_count", "count", "n", "draws")}
        counts = tuple((int(c), int(votes)) for c, votes in pairs)
        return cls.read(cells, {**whole, "p_lower": float(cells["p_lower"]), "counts": counts})


class CertificateLog(RowLog[Row, Protocol]):
    """A protocol's certificates on disk, keyed by example index."""

    row, columns, what = Row, COLUMNS, "log"


def write_cohen(rows: Iterable[Row], path: str | Path) -> None:
    """Writes only the six columns of the original script, in its format: radii with three
    significant digits, but rounded down.

    Args:
        rows: certificates, in file order.
        path: the file, replaced atomically.
    """
    lines = ["\t".join(COHEN) + "\n"]
    for row in rows:
        cells = row.cells[: len(COHEN)]
        cells[3] = f"{round_down(row.radius, 3):.3}" if row.radius else "0.0"
        lines.append("\t".join(cells) + "\n")
    replace_text(Path(path), "".join(lines))


def format_time(seconds: float) -> str:
    """Formats seconds like the original script, H:MM:SS.ffffff."""
    micros = round(seconds * 1e6)
    minutes, rest = divmod(micros, 60_000_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest // 1_000_000:02d}.{rest % 1_000_000:06d}"


def parse_time(text: str) -> float:
    """Parses H:MM:SS.ffffff or plain seconds.

    Raises:
        ValueError: the text is neither.
    """
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds

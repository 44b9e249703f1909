"""Reads certification logs, ours and other people's, in all variants since Cohen et al. (2019).

Both time formats, empty and truncated files, further columns, a `correct` column that is a running
total (Carlini et al., 2023).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raybust.certification.bound_log import BOUND_COLUMNS, BoundProtocol, BoundRow
from raybust.certification.header import Header
from raybust.certification.log import COHEN, COLUMNS, Row, parse_time
from raybust.certification.protocol import Protocol
from raybust.errors import RequestError
from raybust.reporting.naming import name_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SIGMA = re.compile(r"(?<![a-z])(?:sigma|noise)[_-]?(\d*\.?\d+)")
_SIGMA_OF_TEST = re.compile(r"(?<![a-z])test[_-]?(\d*\.?\d+)")
_NORM = re.compile(r"(?<![a-z0-9])(linf|l2|l1|l0)(?![a-z0-9])")


@dataclass(frozen=True, kw_only=True)
class Log:
    """A certification log in memory; arrays are (N,), in file order.

    Attributes:
        name: name in tables and legends.
        path: path of the file.
        idx: indices in the dataset.
        label: labels.
        predict: certified classes, -1 on abstention.
        radius: certified radii, 0 on abstention.
        rounding: half a unit of the last printed digit of each radius; 0 in our own logs.
        correct: predict == label, recomputed.
        time: seconds.
        protocol: from the header; None in other people's logs.
        sigma: from the header, else from the path, else None.
        norm: of the radii: from the header, else from the file's name (linf, l1, l0), else l2.
        share: of the draws that voted for the class, where the rows state it; NaN elsewhere.
        warnings: corrections made on reading, one sentence each.
    """

    name: str
    path: Path
    idx: Ints
    label: Ints
    predict: Ints
    radius: Floats
    rounding: Floats
    correct: NDArray[np.bool_]
    time: Floats
    protocol: Header | None = None
    sigma: float | None = None
    norm: str = "l2"
    share: Floats = field(default_factory=lambda: np.empty(0))
    warnings: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.idx)

    @property
    def kind(self) -> str:
        """What proved the radii: "smoothing", also in other people's logs, or "bounds"."""
        return self.protocol.KIND if self.protocol else Protocol.KIND

    @property
    def skip(self) -> int | None:
        """The log has every skip-th example: from the header, else the greatest common divisor of
        the differences of indices; None for fewer than two rows."""
        if self.protocol:
            return self.protocol.skip
        gaps = np.diff(np.sort(self.idx))
        return int(np.gcd.reduce(gaps)) if len(gaps) else None


def read_log(path: str | Path, name: str | None = None) -> Log:
    """Reads a certification log.

    Args:
        path: a file of tab-separated rows under a line `idx label predict radius correct time`, in
            any order and with any further columns. An empty file gives a log without rows.
        name: name for tables and legends; the file name by default.

    Raises:
        RequestError: no such file, or not a certification log (a prediction log, a curve).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror or error}") from None
    lines = text.splitlines(keepends=True)
    comments = [line for line in lines if line.startswith("#")]
    body = [line for line in lines if not line.startswith("#") and line.strip()]
    protocol = _protocol(path, comments)
    columns = body[0].split() if body else list(COHEN)
    absent = [column for column in COHEN if column not in columns]
    if absent:
        raise RequestError(
            f"{path}: is not a certification log: it lacks the columns {', '.join(absent)}; "
            f"expected {' '.join(COHEN)}"
        )
    warnings: list[str] = [] if body[1:] else ["has no rows"]
    if protocol is None and any('"sigma"' in comment for comment in comments):
        warnings.append("has a header of another raybust version, so its rows are not checked")
    rows = list(_rows(path, columns, body[1:], warnings, protocol))
    return _log(rows, warnings, path=path, name=name, protocol=protocol)


def _log(
    rows: list[dict[str, str]],
    warnings: list[str],
    *,
    path: Path,
    name: str | None,
    protocol: Header | None,
) -> Log:
    label, predict, said = (
        np.array([int(row[key]) for row in rows], dtype=int)
        for key in ("label", "predict", "correct")
    )
    correct = (label == predict) & (predict >= 0)
    wrong = int((said != correct).sum())
    if wrong:
        warnings.append(
            f"its column `correct` differs from predict == label in {wrong} of {len(rows)} rows (a "
            "running total in some logs) and was recomputed"
        )
    idx = np.array([int(row["idx"]) for row in rows], dtype=int)
    warnings += _incomplete(idx, label, protocol)
    stem = name_of(path)
    place = "/".join([*path.parts[-3:-1], stem])
    guess = _SIGMA.findall(place) or _SIGMA_OF_TEST.findall(place)
    return Log(
        name=name or stem,
        path=path,
        idx=idx,
        label=label,
        predict=predict,
        radius=np.array([float(row["radius"]) for row in rows]),
        rounding=np.array([0.0 if protocol else _half_unit(row["radius"]) for row in rows]),
        correct=correct,
        time=np.array([parse_time(row["time"]) for row in rows]),
        protocol=protocol,
        sigma=_sigma(protocol, float(guess[-1]) if guess else None),
        norm=protocol.norm if protocol else norm_in(stem),
        share=np.array([_share(row) for row in rows]),
        warnings=tuple(warnings),
    )


def _sigma(protocol: Header | None, guess: float | None) -> float | None:
    if protocol is None:
        return guess
    return protocol.sigma if isinstance(protocol, Protocol) else None


def norm_in(name: str) -> str:
    """Returns the norm that a file's name states last; l2 without one."""
    found = _NORM.findall(name.lower())
    return str(found[-1]) if found else "l2"


def _share(row: Mapping[str, str]) -> float:
    """Returns the share of the draws that voted for the class, by one of our rows."""
    try:
        return int(row["count"]) / int(row["n"])
    except (KeyError, ValueError, ZeroDivisionError):
        return math.nan


def _incomplete(
    idx: NDArray[np.int_], label: NDArray[np.int_], protocol: Header | None
) -> list[str]:
    """Returns a warning if one of our logs lacks examples or has other labels than its header."""
    if protocol is None or not protocol.labels or not len(idx):
        return []
    order = np.argsort(idx)
    if protocol.names(label[order].tolist(), idx[order].tolist()):
        return []
    if protocol.examples is not None and len(idx) < protocol.examples:
        return [f"is not finished: it has {len(idx)} of {protocol.examples} examples"]
    return [
        f"its {len(idx)} examples and their labels do not match its header: it is not finished, or"
        " was changed"
    ]


def _rows(
    path: Path,
    columns: list[str],
    lines: list[str],
    warnings: list[str],
    protocol: Header | None,
) -> Iterator[dict[str, str]]:
    """Yields the complete rows; a torn last line is skipped with a warning.

    Raises:
        RequestError: a row that no certification writes or that contradicts itself or the header,
            or two different rows for an example.
    """
    seen: dict[int, dict[str, str]] = {}
    repeated = 0
    for number, line in enumerate(lines):
        row = dict(zip(columns, line.rstrip("\n").split("\t"), strict=False))
        try:
            for column in COHEN[:5]:
                float(row[column])
            parse_time(row["time"])
        except (KeyError, ValueError):
            if number < len(lines) - 1:
                raise RequestError(f"{path}: not a row of a log: {line.strip()!r}") from None
            warnings.append("its last line is torn and was left out")
            return
        wrong = _impossible(row) or _changed(line, columns, protocol)
        earlier = seen.setdefault(int(row["idx"]), row) if wrong is None else row
        if any(earlier[column] != row[column] for column in COHEN[:5]):
            wrong = f"idx: got {row['idx']} twice, with different rows"
        if wrong is not None and number == len(lines) - 1 and not line.endswith("\n"):
            warnings.append("its last line is torn and was left out")
            return
        if wrong is not None:
            raise RequestError(f"{path}: {wrong}, in row {number + 1}: {line.strip()!r}")
        if earlier is not row:
            repeated += 1
            continue
        yield row
    if repeated:
        warnings.append(f"{repeated} duplicate rows were ignored")


def _changed(line: str, columns: list[str], protocol: Header | None) -> str | None:
    """Returns how one of our rows contradicts itself, its columns or the header, or None."""
    if protocol is None:
        return None
    cells = line.rstrip("\n").split("\t")
    if len(cells) != len(columns):
        return f"got {len(cells)} cells, expected {len(columns)}, one for each column"
    row = dict(zip(columns, cells, strict=True))
    if set(columns) == set(COHEN):
        return _too_large(float(row["radius"]), protocol)
    own = BOUND_COLUMNS if isinstance(protocol, BoundProtocol) else COLUMNS
    absent = [column for column in own if column not in row]
    if absent:
        return f"columns: got none of {', '.join(absent)}, without which no row is checked"
    text = "\t".join(row[column] for column in own)
    try:
        if isinstance(protocol, BoundProtocol):
            return BoundRow.parse(text).fault(protocol)
        assert isinstance(protocol, Protocol)
        return Row.parse(text).fault(protocol)
    except (ValueError, IndexError) as error:
        return str(error)


def _too_large(radius: float, protocol: Header) -> str | None:
    """Returns what is wrong with a radius of Cohen's columns that exceeds the largest possible one,
    or None."""
    if not isinstance(protocol, Protocol):
        return f"columns: got none of {', '.join(BOUND_COLUMNS[6:])}, which prove a row"
    largest = protocol.smoothing.radius(protocol.alpha ** (1 / protocol.n))
    if radius <= largest * (1 + 1e-5):
        return None
    return f"radius: got {radius:g}, expected <= {largest:g}, by n and alpha of the header"


def _impossible(row: dict[str, str]) -> str | None:
    """Returns what is wrong with the numbers of a row, or None."""
    for column in ("idx", "label", "predict", "correct"):
        if not re.fullmatch(r"\s*[-+]?\d{1,18}\s*", row[column]):
            return f"{column}: got {row[column]}, expected a whole number"
    if not 0 <= float(row["radius"]) < math.inf:
        return f"radius: got {row['radius']}, expected a finite number >= 0"
    if int(row["predict"]) < 0 and float(row["radius"]) > 0:
        return f"radius: got {row['radius']} on an abstention, expected 0"
    return None


def _protocol(path: Path, comments: list[str]) -> Header | None:
    kinds: tuple[type[Protocol] | type[BoundProtocol], ...] = Protocol, BoundProtocol
    for comment, kind in itertools.product(comments, kinds):
        try:
            return kind.from_json(comment.removeprefix("#").strip())
        except (ValueError, TypeError):
            continue
    return None


def _half_unit(text: str) -> float:
    """Returns half a unit of the third significant digit, or of the last printed one if that is
    finer: `{:.3}` drops trailing zeros."""
    value = Decimal(text)
    printed = value.as_tuple().exponent
    third = value.adjusted() - 2
    return 0.5 * 10.0 ** min(third, printed if isinstance(printed, int) else third)

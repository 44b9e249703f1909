"""The proof that the rows of a log are of the function at hand: a few of them, computed again.

Digests and recorded outputs tell most changes of a network; recomputed counts tell all that would
change a certificate. Stage `certify` of the arrow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from raybust.certify.log import Row
from raybust.certify.noise import BLOCK
from raybust.certify.protocol import Protocol
from raybust.disk.rowlog import OtherProtocolError

ROWS = 4
"""Rows that are computed again: the two least certain ones, the first and the last (our choice)."""

SECONDS, SHARE = 1.0, 0.01
"""What the proof may take: a second, or this share of the work, whichever is more."""

_APART = 1e-4
"""Share of the draws whose class rounding may change: kernels differ between processors."""

Recompute = Callable[[list[int], Protocol], Sequence[Row]]
"""Certificates of the examples of some indices, at a protocol."""


def check_rows(
    rows: Sequence[Row], total: int, protocol: Protocol, path: Path, recompute: Recompute
) -> None:
    """Computes a few finished rows again. Where a whole row takes longer than the proof may, only
    its pilot draws, which chose the class, are drawn again.

    Args:
        rows: finished ones of a log, in order.
        total: rows of the log when it is finished.
        protocol: of the log.
        path: of the log, for the message.
        recompute: computes certificates.

    Raises:
        OtherProtocolError: a row is not what the function at hand gives.
    """
    chosen = list({row.idx: row for row in (*_doubtful(rows), rows[0], rows[-1])}.values())[:ROWS]
    mean = sum(row.time for row in rows) / len(rows)
    left = max(SECONDS, SHARE * mean * total)
    whole = []
    for row in sorted(chosen, key=lambda row: row.draws):
        left -= row.time
        if left >= 0:
            whole.append(row)
    found = list(recompute([row.idx for row in whole], protocol)) if whole else []
    short = dataclasses.replace(protocol, n=BLOCK, alpha=0.001, schedule="fixed", targets=())
    pilots = [row for row in chosen if row not in whole]
    found += recompute([row.idx for row in pilots], short) if pilots else []
    for old, new in zip([*whole, *pilots], found, strict=True):
        if not (_pilot_agrees(old, new) and (old in pilots or _agrees(old, new))):
            raise OtherProtocolError(
                [f"another function (example {old.idx}, computed again, has other counts)"], path
            )


def _doubtful(rows: Sequence[Row]) -> list[Row]:
    """Returns the two rows in which the winning class has the smallest share of the votes."""
    return sorted(rows, key=lambda row: row.count / row.n)[:2]


def _pilot_agrees(old: Row, new: Row) -> bool:
    return old.top == new.top and abs(old.n0_count - new.n0_count) <= _apart(old.n0_count)


def _agrees(old: Row, new: Row) -> bool:
    before, after = dict(old.counts), dict(new.counts)
    return old.draws == new.draws and all(
        abs(before.get(label, 0) - after.get(label, 0)) <= _apart(old.draws)
        for label in {*before, *after}
    )


def _apart(draws: int) -> int:
    return 1 + int(_APART * draws)

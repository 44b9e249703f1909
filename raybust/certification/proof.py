"""Verifies that a log was made by the current network: recomputes a few of its rows.

Digests and recorded outputs catch most changes of a network; recomputed counts catch any that
would change a certificate.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from raybust.certification.log import Row
from raybust.certification.noise import BLOCK
from raybust.certification.protocol import Protocol
from raybust.disk.rowlog import OtherProtocolError

ROWS = 4
"""Rows to recompute in any case: the two least certain, the first and the last (our choice)."""

SECONDS, SHARE = 1.0, 0.01
"""Time budget: a second or this share of the work, whichever is larger."""

_QUICKEST = 0.01
"""Seconds that a row's pilot takes at least."""

_FLIPPED = 1e-4
"""Share of draws whose class rounding may flip: kernels differ between processors."""

Recompute = Callable[[list[int], Protocol], Sequence[Row]]
"""Example indices and a protocol to certificates."""


def check_rows(
    rows: Sequence[Row], total: int, protocol: Protocol, path: Path, recompute: Recompute
) -> None:
    """Recomputes a few finished rows. Rows that exceed the time budget repeat only their pilot
    draws, which chose the class; so do as many others, drawn at random, as the budget allows.

    Args:
        rows: finished rows of a log, in order.
        total: rows of the completed log.
        protocol: the log's.
        path: the log's, for the message.
        recompute: computes certificates.

    Raises:
        OtherProtocolError: the current network gives other counts.
    """
    always = {row.idx: row for row in (*_doubtful(rows), rows[0], rows[-1])}
    chosen = list(always.values())[:ROWS]
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
    others = [row for row in rows if row.idx not in always]
    each = max(row.time * (protocol.n0 + BLOCK) / row.draws for row in rows)
    count = min(len(others), int(max(left, 0.0) / max(each, _QUICKEST)))
    pilots += random.SystemRandom().sample(others, count)
    found += recompute([row.idx for row in pilots], short) if pilots else []
    for old, new in zip([*whole, *pilots], found, strict=True):
        if not (_pilot_agrees(old, new) and (old in pilots or _agrees(old, new))):
            raise OtherProtocolError(
                [f"another function (example {old.idx} has other counts when recomputed)"], path
            )


def _doubtful(rows: Sequence[Row]) -> list[Row]:
    """Returns the two rows whose top class has the smallest share of the votes."""
    return sorted(rows, key=lambda row: row.count / row.n)[:2]


def _pilot_agrees(old: Row, new: Row) -> bool:
    return old.top == new.top and abs(old.n0_count - new.n0_count) <= _tolerance(old.n0_count)


def _agrees(old: Row, new: Row) -> bool:
    before, after = dict(old.counts), dict(new.counts)
    return old.draws == new.draws and all(
        abs(before.get(label, 0) - after.get(label, 0)) <= _tolerance(old.draws)
        for label in {*before, *after}
    )


def _tolerance(draws: int) -> int:
    return 1 + int(_FLIPPED * draws)

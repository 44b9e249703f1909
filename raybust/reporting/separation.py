"""Which finalists of a sweep can be told apart, by the ACR on the same test images.

The search chose the finalists by the validation part, so the test images are new to all of them.
Each has one seed: the noise of its training is not in the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raybust.reporting.logs import Log, read_log
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord
from raybust.significance import Band, compare_means, decide, difference_band

_GRID = 201
_NAMED = 6
"""Pairs named in a sentence."""


@dataclass(frozen=True)
class Separation:
    """What the certificates of the finalists say about each other.

    Attributes:
        sentence: the answer in words.
        bands: difference of the certified curves of the first finalist and each other, by name.
        norm: of the radii.
    """

    sentence: str
    bands: dict[str, Band]
    norm: str


def separate(board: Leaderboard) -> Separation | None:
    """Compares the finalists of a sweep; None if fewer than two have certificates in full on the
    same images."""
    entries = [entry for entry in board.finalists if entry.log is not None and entry.log.exists()]
    logs = [read_log(entry.log) for entry in entries if entry.log is not None]
    if len(logs) < 2 or not _alike(logs):
        return None
    order = [np.argsort(log.idx) for log in logs]
    radii = np.stack([
        np.where(log.correct, log.radius, -1.0)[at] for log, at in zip(logs, order, strict=True)
    ])  # fmt: skip
    grid = np.linspace(0, float(radii.max()) if radii.max() > 0 else 1.0, _GRID)
    bands = {
        f"trial {entries[0].number} minus trial {entry.number}": difference_band(
            radii[:1], radii[at : at + 1], grid
        )
        for at, entry in enumerate(entries[1:], 1)
    }
    noise = {(log.protocol.noise, log.protocol.amount) for log in logs if log.protocol}
    own = "each certified with its own noise; " * (len(noise) > 1)
    return Separation(_sentence(entries, np.maximum(radii, 0), own), bands, logs[0].norm)


def _alike(logs: Sequence[Log]) -> bool:
    """Whether logs have the same images and labels, and all draws."""
    images = {(tuple(sorted(log.idx.tolist())), log.norm) for log in logs}
    digests = {(log.protocol.data, log.protocol.labels) for log in logs if log.protocol}
    early = any(log.protocol and log.protocol.targets for log in logs)
    return len(images) == 1 and len(digests) < 2 and not early and len(logs[0]) > 1


def _sentence(entries: Sequence[TrialRecord], values: np.ndarray, own: str) -> str:
    pairs = list(itertools.combinations(range(len(entries)), 2))
    found = decide([compare_means(values[i], values[j], margin=0.0) for i, j in pairs])
    apart, alike = [], []
    for (i, j), one in zip(pairs, found, strict=True):
        a, b = (f"trial {entries[at].number} ({entries[at].method})" for at in (i, j))
        if one.verdict == "better":
            apart.append(f"{a} has a larger ACR than {b}")
        elif one.verdict == "worse":
            apart.append(f"{b} has a larger ACR than {a}")
        else:
            alike.append(f"{a} and {b}")
    parts = [_listed(apart)] * bool(apart)
    parts += [f"the ACR does not tell apart {_listed(alike)}"] * bool(alike)
    return (
        f"On {values.shape[1]:,} test images, {'; '.join(parts)} ({own}permutation tests, 5 % for"
        " all pairs; one seed each, so training noise is not in it)."
    )


def _listed(parts: Sequence[str]) -> str:
    more = f", and {len(parts) - _NAMED} more pairs" if len(parts) > _NAMED else ""
    return ", ".join(parts[:_NAMED]) + more

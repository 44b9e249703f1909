"""Which finalists of a sweep can be told apart, by the ACR on the same test images.

The search chose the finalists by the validation part, so the test images are new to all of them.
The noise of training is in the answer for finalists with several seeds (`tune.seeds`) alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raybust.certification import Protocol
from raybust.reporting.logs import Floats, Log, read_log
from raybust.reporting.seeds import logs_of_seeds
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord
from raybust.significance import Band, compare_means, compare_seeds, decide, difference_band

_GRID = 201
_FEW, _NAMED = 3, 9
"""Pairs of which each has a verdict; pairs named in a sentence."""


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
    groups = [
        [read_log(path) for path in logs_of_seeds(board.folder, entry) if path.exists()]
        for entry in entries
    ]
    logs = list(itertools.chain(*groups))
    if len(groups) < 2 or not _alike(logs):
        return None
    radii = [
        np.stack([np.where(log.correct, log.radius, -1.0)[np.argsort(log.idx)] for log in group])
        for group in groups
    ]
    largest = max(float(group.max()) for group in radii)
    grid = np.linspace(0, largest if largest > 0 else 1.0, _GRID)
    bands = {
        f"trial {entries[0].number} minus trial {entry.number}": difference_band(
            radii[0], radii[at], grid
        )
        for at, entry in enumerate(entries[1:], 1)
    }
    noise = {(p.noise, p.amount) for log in logs if isinstance(p := log.protocol, Protocol)}
    own = "each certified with its own noise; " * (len(noise) > 1)
    values = [np.maximum(group, 0) for group in radii]
    return Separation(_sentence(entries, values, own), bands, logs[0].norm)


def _alike(logs: Sequence[Log]) -> bool:
    """Whether logs have the same images and labels, and all draws."""
    images = {(tuple(sorted(log.idx.tolist())), log.norm, log.kind) for log in logs}
    digests = {(log.protocol.data, log.protocol.labels) for log in logs if log.protocol}
    early = any(log.protocol and log.protocol.targets for log in logs)
    return len(images) == 1 and len(digests) < 2 and not early and len(logs[0]) > 1


def _sentence(entries: Sequence[TrialRecord], values: Sequence[Floats], own: str) -> str:
    pairs = list(itertools.combinations(range(len(entries)), 2))
    several = min(len(group) for group in values) > 1
    whole = [len(group) == len(entry.seeds) for group, entry in zip(values, entries, strict=True)]
    found = decide([
        compare_seeds(
            values[i], values[j], margin=0.0,
            paired=entries[i].seeds == entries[j].seeds and whole[i] and whole[j],
        )
        if several
        else compare_means(values[i].mean(0), values[j].mean(0), margin=0.0)
        for i, j in pairs
    ])  # fmt: skip
    apart, alike = [], []
    for (i, j), one in zip(pairs, found, strict=True):
        a, b = (f"trial {entries[at].number} ({entries[at].method})" for at in (i, j))
        if one.verdict == "better":
            apart.append(f"{a} has a larger ACR than {b}")
        elif one.verdict == "worse":
            apart.append(f"{b} has a larger ACR than {a}")
        else:
            alike.append(f"{a} and {b}")
    if len(pairs) > _FEW:
        but = f", but not {_listed(alike)}" if alike else ""
        parts = [f"the ACR tells apart {len(apart)} of the {len(pairs)} pairs of finalists{but}"]
    else:
        parts = [_listed(apart)] * bool(apart)
        parts += [f"the ACR does not tell apart {_listed(alike)}"] * bool(alike)
    how = (
        "t tests over seeds and images, 5 % for all pairs"
        if several
        else "permutation tests, 5 % for all pairs; one seed each, so training noise is not in it"
    )
    return f"On {values[0].shape[1]:,} test images, {'; '.join(parts)} ({own}{how})."


def _listed(parts: Sequence[str]) -> str:
    more = f", and {len(parts) - _NAMED} more pairs" if len(parts) > _NAMED else ""
    return ", ".join(parts[:_NAMED]) + more

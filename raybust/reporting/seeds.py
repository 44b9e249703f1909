"""A finalist's results on the test set over the seeds of its configuration.

The means of what each seed reached, with intervals over seeds and images, and where the results of
each lie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybust.disk.runs import trial_folder
from raybust.search.records import TrialRecord
from raybust.significance import seeds_interval

SEED_FIGURES = ("accuracy", "certified", "attacked")
"""Attributes of a finalist's record that each of its seeds has."""

_WORST = ("upper_bound", "understated", "flags")
"""Endings of metrics that hold for all seeds if for one."""


def over_seeds(by_seed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the means over the seeds. Bounds become a 95 % interval over seeds and images.

    Args:
        by_seed: the attributes `SEED_FIGURES` of each of at least two seeds, those that it has.
    """
    found: dict[str, Any] = {}
    for key in SEED_FIGURES:
        values: list[Any] = [one[key] for one in by_seed if key in one]
        if len(values) < len(by_seed):
            continue
        found[key] = _metrics(values) if key != "accuracy" else math.fsum(values) / len(values)
    return found


def _metrics(every: Sequence[Mapping[str, float]]) -> dict[str, float]:
    found = {}
    for key in every[0]:
        if not all(key in one for one in every):
            continue
        values = [one[key] for one in every]
        if key.endswith(_WORST):
            found[key] = max(values)
        elif key.endswith("_low"):
            name = key.removesuffix("_low")
            low, high = seeds_interval(
                [one[name] for one in every],
                [(one[f"{name}_low"], one[f"{name}_high"]) for one in every],
            )
            found |= {key: max(low, 0.0), f"{name}_high": high}  # shares and radii
        elif not key.endswith("_high"):
            found[key] = math.fsum(values) / len(values)
    return found


def logs_of_seeds(sweep: Path, entry: TrialRecord) -> list[Path]:
    """Returns the files of the certificates of each seed of a finalist, which may be gone.

    Args:
        sweep: the sweep's folder.
        entry: with certificates.
    """
    assert entry.log is not None
    if not entry.by_seed:
        return [entry.log]
    inside = entry.log.relative_to(trial_folder(sweep, entry.number))
    return [trial_folder(sweep, entry.number, seed) / inside for seed in entry.seeds]

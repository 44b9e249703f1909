"""Collects the runs of a transfer matrix: what each was trained on, and its newest result under the
set C1.

Only the noises of C1 count, whatever else a result measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raybust import data, methods
from raybust.config import Config, from_dict
from raybust.corruptions import read_counts
from raybust.disk import runs
from raybust.disk.files import read_json
from raybust.errors import RequestError
from raybust.numerics.lp_sets import Row, rms
from raybust.reporting.transfer import Training, training_of_counts


def trainings_of(results: Sequence[Path]) -> tuple[list[Training], tuple[int, int, int]]:
    """Returns the columns of the transfer matrix, one per run, and the shape of the images; no
    columns if no run was measured under C1.

    Args:
        results: the JSON files of evaluations under corruption; the newest of a run counts.

    Raises:
        RequestError: the runs' datasets or protocols differ.
    """
    newest: dict[Path, dict[str, Any]] = {}
    paths: dict[Path, Path] = {}
    for path in sorted(results, key=lambda path: path.stat().st_mtime):
        whole, folder = read_json(path), path.parent.parent
        if "C1" in whole["protocol"]["sets"] and (folder / runs.IDENTITY).exists():
            newest[folder], paths[folder] = whole, path
    found, shapes = [], {}
    settings: dict[str, dict[str, Any]] = {}
    for folder, whole in sorted(newest.items()):
        config = from_dict(runs.read_identity(folder).config, methods.get)
        if config.data not in shapes:
            shapes[config.data] = data.load(config.data).shape
        rows = _training_noise(config, shapes[config.data])
        name = runs.display_name(folder)
        asked = ("split", "examples", "impulse", "seed")
        settings[name] = {key: whole["protocol"][key] for key in asked}
        counts = read_counts(paths[folder].with_suffix(".jsonl"))
        found.append(training_of_counts(name, rows, counts, shapes[config.data]))
    first, *others = settings.items() or [("", {})]
    for name, other in others:
        if other != first[1]:
            raise RequestError(
                f"{name} and {first[0]} were measured under different protocols ({other},"
                f" {first[1]}); measure both the same way, or choose other runs"
            )
    if len(shapes) > 1:
        raise RequestError(f"the runs use {len(shapes)} datasets; compare runs on the same dataset")
    return found, next(iter(shapes.values()), (0, 0, 0))


def _training_noise(config: Config, shape: tuple[int, int, int]) -> tuple[Row, ...]:
    """Returns the (p, eps) of a method's training noise; Gaussian noise as the L2 ball whose points
    have entries of the same root mean square."""
    noisy = getattr(config.method, "noise_set", None)
    if noisy is not None:
        return noisy(shape).rows if config.method.clean < 1 else ()
    sigma = config.method.noise()
    return () if sigma is None else ((2.0, sigma / rms(2.0, 1.0, math.prod(shape))),)

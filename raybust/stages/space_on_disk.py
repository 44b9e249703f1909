"""How much disk a sweep needs, and whether it is there.

The estimate counts weights and checkpoints at their largest, not logs and figures, which are
small. It knows the networks that the search may choose, not what other processes write.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from raybust import models
from raybust.cluster.retention import bytes_of_sweep
from raybust.config import Config
from raybust.errors import RequestError
from raybust.search.space import Space


def networks(config: Config, space: Space) -> set[str]:
    """Returns the names of the networks that a sweep may train."""
    searched = {str(v) for d in space.domains if d.key == "model.name" for v in d.values}
    return searched or {config.model.name}


def largest_network(config: Config, space: Space, shape: tuple[int, int, int], classes: int) -> int:
    """Returns the bytes of the weights of the largest network that a sweep trains; networks that
    cannot be built do not count.

    Args:
        config: the sweep's.
        space: may search `model.name`.
        shape: (C, H, W) of an image.
        classes: number of classes.
    """
    normalization = [0.0] * shape[0], [1.0] * shape[0]
    largest = 0
    for name in networks(config, space):
        model, (mean, std) = dataclasses.replace(config.model, name=name), normalization
        try:
            network = models.build(model, shape=shape, num_classes=classes, mean=mean, std=std)
        except RequestError:
            continue
        state = network.state_dict().values()
        largest = max(largest, sum(value.numel() * value.element_size() for value in state))
    return largest


def check_space(config: Config, size: int, at_once: int, folder: Path) -> None:
    """Rejects a sweep that would fill the disk.

    Args:
        config: the sweep's.
        size: from `largest_network`.
        at_once: trials at a time.
        folder: the sweep's.

    Raises:
        RequestError: less is free than it needs.
    """
    needed, free = bytes_of_sweep(config, size, at_once), shutil.disk_usage(folder).free
    if free < needed:
        raise RequestError(
            f"out: {folder} has {in_words(free)} free, and the sweep needs about"
            f" {in_words(needed)} for {describe(config, at_once)}; free disk space, choose another"
            " --out, or lower tune.keep"
        )


def describe(config: Config, at_once: int) -> str:
    """Returns what a sweep keeps on disk, in words."""
    kept = max(config.tune.keep, config.tune.finalists)
    return f"the weights of {kept} trials and the checkpoints of {at_once} at a time"


def in_words(count: float, units: Sequence[str] = ("kB", "MB", "GB", "TB")) -> str:
    """Returns a number of bytes with two digits, such as "1.2 GB"."""
    for unit in units:
        count /= 1000
        if count < 1000 or unit == units[-1]:
            break
    return f"{count:.2g} {unit}" if count < 100 else f"{count:.0f} {unit}"

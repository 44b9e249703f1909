"""What a command says before its work: how it understood the data, and what it waits for."""

from __future__ import annotations

from typing import Any

from raybust.cluster.session import must_grow
from raybust.config import Config
from raybust.data import Dataset
from raybust.stages.bars import Echo


def print_data(config: Config, dataset: Dataset, echo: Echo) -> None:
    """Prints how the data was interpreted."""
    for line in dataset.understood(config.model.mean, config.model.std):
        echo(line)


def note_growth(config: Config, ray: Any, echo: Echo) -> None:
    """Prints a note if the work has to wait for the autoscaler."""
    if must_grow(config, ray):
        echo(
            "waiting for the autoscaler to add nodes, which takes minutes; if none arrives, see"
            " `ray status` on the head"
        )

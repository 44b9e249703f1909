"""Progress output: epochs as workers log them, progress bars, notes on data and nodes.

Epochs are read from the run's journal, so workers on other machines need nothing but the shared
folder.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybust.cluster.session import must_grow
from raybust.config import Config
from raybust.data import Dataset
from raybust.disk import runs

Echo = Callable[[str], None]
"""Prints one line for the user."""

_POLL_S = 0.3
LOOKED_AT = 2
"""Epoch after which a network should be better than chance (our choice)."""
_EPOCH = (
    ("train/loss", "loss"),
    ("validation/accuracy", "validation accuracy"),
    ("certified_fast/acr", "fast ACR"),
    ("attacked_fast/robust_accuracy", "fast robust accuracy"),
    ("train/images_per_second", "images/s"),
)


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


def silent(text: str) -> None:
    """Prints nothing: the `Echo` of a call that is to be quiet."""


def progress_bar(total: int, what: str, echo: Echo, initial: int = 0) -> Any:
    """Returns a tqdm bar on standard error, for a terminal or a notebook; elsewhere, and if `echo`
    is `silent`, only `write` prints anything."""
    from tqdm import tqdm

    quiet = echo is silent or not (sys.stderr.isatty() or _in_notebook())
    return tqdm(total=total, initial=initial, desc=what, disable=quiet, dynamic_ncols=True)


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and shell.get_ipython() is not None


@dataclass(frozen=True)
class Chance:
    """The accuracy of a network that predicts one class whatever the image.

    Attributes:
        share: of the largest class in the validation part.
        examples: number of its examples.
        config: of the run.
    """

    share: float
    examples: int
    config: Config

    @classmethod
    def of(cls, config: Config, dataset: Dataset) -> Chance:
        """Returns the accuracy for a dataset."""
        counts = dataset.validation.labels.bincount()
        total = int(counts.sum())
        return cls(int(counts.max()) / total, total, config)

    def warning(self, epoch: int, accuracy: float) -> str | None:
        """Returns a warning if an accuracy is within two standard errors of chance.

        Args:
            epoch: number of completed epochs.
            accuracy: of the validation part.
        """
        error = math.sqrt(self.share * (1 - self.share) / self.examples)
        if accuracy > self.share + 2 * error:
            return None
        train = self.config.train
        return (
            f"warning: after {epoch} epochs, validation accuracy {accuracy:.4f} is no better than"
            f" predicting the largest class alone ({self.share:.4f}); lower train.lr (now"
            f" {train.rate:g}) or train.clip_norm (now {train.clip_norm}), set train.warmup=0.1,"
            " train for longer, or check the labels"
        )


@contextmanager
def epoch_lines(folder: Path, echo: Echo, chance: Chance) -> Iterator[None]:
    """Prints a line for each epoch that a worker appends to the run's journal, and a warning if it
    learns nothing."""
    path = folder / runs.JOURNAL
    stop = threading.Event()
    start = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        offset = start
        while True:
            last = stop.wait(_POLL_S)
            if path.exists():
                with path.open("rb") as file:
                    file.seek(offset)
                    for line in file:
                        if not line.endswith(b"\n"):
                            break
                        offset += len(line)
                        _print_entry(json.loads(line), echo, chance)
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _print_entry(entry: dict[str, Any], echo: Echo, chance: Chance) -> None:
    if entry.get("e") == "metrics":
        epoch, values = entry["step"], entry["values"]
        echo(epoch_line(epoch, values))
        accuracy = float(values["validation/accuracy"])
        if epoch == LOOKED_AT and (warning := chance.warning(epoch, accuracy)):
            echo(warning)
    elif "raybust.hosts" in entry.get("tags", {}):
        echo(group_line(entry["tags"]))


def group_line(tags: dict[str, str]) -> str:
    """Returns the hosts of all ranks as one line."""
    hosts = enumerate(tags["raybust.hosts"].split())
    ranks = ", ".join(f"rank {rank} on {host}" for rank, host in hosts)
    return f"process group ({tags['raybust.backend']}): {ranks}"


def epoch_line(epoch: int, metrics: dict[str, Any]) -> str:
    """Returns an epoch's metrics as one line."""
    parts = [f"epoch {epoch:3d}"]
    for key, label in _EPOCH:
        if key in metrics:
            digits = 0 if key.endswith("second") else 4
            parts.append(f"{label} {float(metrics[key]):.{digits}f}")
    return "  ".join(parts)

"""The epochs of a training run as it goes: a line for each, and progress within long ones.

Both are read from files of the run's folder, so workers on other machines need nothing but that
shared folder.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybust.config import Config
from raybust.config.measured import SELECTED
from raybust.data import Dataset
from raybust.disk import pulse, runs
from raybust.methods.pgd import Pgd
from raybust.stages.bars import Echo, progress_bar, span

_POLL_S = 0.3
LOOKED_AT = 2
"""Epoch after which a network should be better than chance (our choice)."""
_FEW_STEPS = 200
"""Steps up to which the first advice is to train for longer (our choice)."""
_GAP = 0.3
"""Accuracy under attack in training above that in validation, from which on a network counts as
overfitted to its attack (our choice)."""
_EPOCH = (
    ("train/loss", "loss"),
    ("validation/accuracy", "validation accuracy"),
    ("certified_fast/acr", "fast ACR"),
    ("attacked_fast/robust_accuracy", "fast robust accuracy"),
    ("train/images_per_second", "images/s"),
)


@dataclass(frozen=True)
class Chance:
    """The accuracy of a network that predicts one class whatever the image.

    Attributes:
        share: of the largest class in the validation part.
        examples: number of its examples.
        config: of the run.
        steps: of an epoch.
        pixels: C H W of an image.
    """

    share: float
    examples: int
    config: Config
    steps: int = 0
    pixels: int = 0

    @classmethod
    def of(cls, config: Config, dataset: Dataset) -> Chance:
        """Returns the accuracy for a dataset."""
        counts = dataset.validation.labels.bincount()
        total = int(counts.sum())
        steps = math.ceil(len(dataset.train) / config.train.batch_size)
        pixels = math.prod(dataset.shape)
        return cls(int(counts.max()) / total, total, config, steps, pixels)

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
        tuned = (
            f"lower train.lr (now {train.rate:g}) or train.clip_norm (now {train.clip_norm}), set"
            " train.warmup=0.1" + " or train.optimizer=adamw" * (train.optimizer == "sgd")
        )
        few = self.steps * epoch <= _FEW_STEPS
        longer = (
            f"train for longer; if it still learns nothing, {tuned}"
            if few
            else f"{tuned}, train for longer"
        )
        return (
            f"warning: after {epoch} epoch{'s' * (epoch > 1)}, validation accuracy {accuracy:.4f}"
            " is not clearly better than predicting the largest class alone"
            f" ({self.share:.4f}, with two standard errors {self.share + 2 * error:.4f}); {longer},"
            " or check the labels"
        )


def overfitting(config: Config, metrics: Mapping[str, float], pixels: int) -> str | None:
    """Returns a warning if a network withstands an attack in training far better than in
    validation: catastrophic overfitting (Wong, Rice and Kolter, ICLR 2020, arXiv:2001.03994), or
    robust overfitting. Only where `attacked_fast` has the norm and radius of the training.

    Args:
        config: of the run.
        metrics: of an epoch.
        pixels: C H W of an image.
    """
    method, fast = config.method, config.attacked_fast
    while method.wrapped is not None:
        method = method.wrapped
    found = metrics.get("train/attacked_accuracy"), metrics.get("attacked_fast/robust_accuracy")
    if not isinstance(method, Pgd) or found[0] is None or found[1] is None:
        return None
    threat = method.threat(pixels)
    same = threat.norm == fast.norm and math.isclose(threat.eps, fast.eps, rel_tol=1e-6)
    if not same or found[0] - found[1] <= _GAP:
        return None
    return (
        f"warning: catastrophic overfitting: accuracy under attack is {found[0]:.4f} in training"
        f" but {found[1]:.4f} in validation (attacked_fast, {fast.steps} steps, same norm and"
        " radius); take more attack steps or method.start=n_fgsm, and use the best epoch with"
        " train.select=attacked_fast/robust_accuracy"
    )


class _Follower:
    """Prints what a run's folder tells: finished epochs, and the progress of the one under way.

    Args:
        folder: the run's.
        echo: prints a line.
        chance: of its validation part.
    """

    def __init__(self, folder: Path, echo: Echo, chance: Chance) -> None:
        self._folder, self._echo, self._chance = folder, echo, chance
        self._journal = folder / runs.JOURNAL
        self._offset = self._journal.stat().st_size if self._journal.exists() else 0
        pulse.forget(folder)
        self._first: tuple[float, float] | None = None  # time and share of the first pulse
        self._phase = 0, False  # epoch, whether it is validated
        self._steps = self._ended = 0
        self._overfitted = False
        self._bar = progress_bar(0, "waiting for the first step", echo)

    def look(self) -> None:
        """Prints what is new."""
        if self._journal.exists():
            with self._journal.open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    self._entry(json.loads(line))
        self._show(pulse.read(self._folder))

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
        pulse.forget(self._folder)

    def _entry(self, entry: dict[str, Any]) -> None:
        if entry.get("e") == "metrics":
            epoch, values = entry["step"], entry["values"]
            self._ended = epoch
            self._bar.close()
            self._echo(epoch_line(epoch, values))
            overfitted = overfitting(self._chance.config, values, self._chance.pixels)
            if overfitted and not self._overfitted:
                self._overfitted = True
                self._echo(overfitted)
            accuracy = float(values["validation/accuracy"])
            if epoch == LOOKED_AT and (warning := self._chance.warning(epoch, accuracy)):
                self._echo(warning)
        elif "raybust.hosts" in entry.get("tags", {}):
            self._echo(group_line(entry["tags"]))

    def _show(self, now: pulse.Pulse | None) -> None:
        """Shows the epoch under way; a pulse of an epoch that has ended is old."""
        if now is None or now.epoch <= self._ended:
            return
        phase = now.epoch, now.step == now.steps
        if phase != self._phase:
            self._phase, self._steps = phase, 0
            self._bar.close()
            total = 0 if now.step == now.steps else now.steps
            self._bar = progress_bar(total, self._name(now), self._echo)
        if self._first is None:
            self._first = time.monotonic(), now.share
        began, share = self._first
        if share < now.share < 1 and now.step < now.steps:
            left = (time.monotonic() - began) * (1 - now.share) / (now.share - share)
            self._bar.set_postfix_str(f"the run about {span(left)}", refresh=False)
        self._bar.update(now.step - self._steps)
        self._steps = now.step

    def _name(self, now: pulse.Pulse) -> str:
        unit, amount = self._chance.config.train.budget
        epoch = f"epoch {now.epoch} of {amount:g}" if unit == "epoch" else f"epoch {now.epoch}"
        return f"{epoch}, validating" if now.step == now.steps else f"{epoch}, step"


@contextmanager
def epoch_lines(folder: Path, echo: Echo, chance: Chance) -> Iterator[None]:
    """Prints a line for each epoch that a worker appends to the run's journal, the progress of long
    epochs, and a warning if it learns nothing.

    Args:
        folder: the run's.
        echo: prints a line.
        chance: of its validation part.
    """
    stop, follower = threading.Event(), _Follower(folder, echo, chance)

    def follow() -> None:
        last = False
        while not last:
            last = stop.wait(_POLL_S)
            follower.look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
        follower.close()


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
    parts += [
        f"proven at Linf {key.rpartition('_')[2]} {float(metrics[key]):.4f}"
        for key in metrics
        if key.startswith("certified_linf_fast/")
    ]
    if metrics.get(SELECTED) == epoch:
        parts.append("selected")
    return "  ".join(parts)

"""`raybust data check`: reads a whole dataset once and says what it found, with a picture of a
batch as the network sees it.

Images that cannot be read are named; nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybust import data
from raybust.config import Config, Leaf
from raybust.data.examined import PARTS, Found, examine, save_sheet
from raybust.data.kept import FOLDER
from raybust.disk import runs
from raybust.errors import RequestError
from raybust.stages.bars import Echo, progress_bar

_PICTURED = 32


@dataclass(frozen=True)
class Checked:
    """What was found in a dataset.

    Attributes:
        lines: how it was understood.
        found: what is noteworthy.
        picture: a training batch as the network sees it; None if an image cannot be read.
    """

    lines: tuple[str, ...]
    found: Found
    picture: Path | None

    def text(self) -> str:
        """Returns all of it, a line each."""
        found = self.found
        rows = [*self.lines, *found.facts]
        rows += [f"unreadable: {text}" for text in found.broken]
        rows += [f"doubt: {text}" for text in found.doubts]
        rows += ["no image is unreadable"] * (not found.broken)
        rows += ["no image is in two parts or has two labels"] * (not found.doubts)
        return "\n".join([*rows, *([str(self.picture)] if self.picture else [])])

    def record(self) -> dict[str, Any]:
        """Returns it as JSON can hold it."""
        found, picture = self.found, self.picture and str(self.picture)
        return {"understood": self.lines, "facts": found.facts, "unreadable": found.broken,
                "doubts": found.doubts, "picture": picture}  # fmt: skip


def settings_of(place: str) -> list[Leaf]:
    """Returns the settings that name a dataset by its name, path or URI."""
    if place in data.names() and not Path(place).exists():
        return [Leaf("data.name", place, "command line")]
    named = {"data.name": data.kind_of(place), "data.path": place}
    return [Leaf(key, value, "command line") for key, value in named.items()]


def check(config: Config, echo: Echo) -> Checked:
    """Reads a whole dataset.

    Args:
        config: of a run; its sections `data` and `train`, and its seed, are used.
        echo: prints a line.

    Raises:
        RequestError: the data are not what they should be; an image that cannot be read is no
            such error.
    """
    out = runs.out_folder(config)
    dataset = data.load(config.data, out)
    total = sum(len(getattr(dataset, name)) for name in PARTS)
    with progress_bar(total, "images", echo) as bar:
        found = examine(dataset, bar.update)
    return Checked(tuple(dataset.understood()), found, _picture(config, dataset, out))


def _picture(config: Config, dataset: data.Dataset, out: Path) -> Path | None:
    """Writes images of the first training batch side by side."""
    batches = data.Batches(
        dataset.train, batch_size=config.train.batch_size, device="cpu", seed=config.seed,
        augment=dataset.augment,
    )  # fmt: skip
    try:
        images, _ = next(iter(batches.epoch(0)))
    except RequestError:
        return None
    target = out / FOLDER / f"{config.data.name}-batch.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    save_sheet(images[:_PICTURED], target)
    return target

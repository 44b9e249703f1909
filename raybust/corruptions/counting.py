"""Counts a network's errors on clean and corrupted test images.

Corruptions are keyed by example, so counts do not depend on how examples are split over workers,
and all networks see the same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import nn

from raybust.corruptions.generated import GeneratedSplit
from raybust.corruptions.metrics import BINS, COMMON, EXTRA, SEVERITIES, calibration_bins
from raybust.corruptions.noise import NoisySplit
from raybust.corruptions.published import published
from raybust.corruptions.results import Cell, Corrupted, Kind
from raybust.data import Part
from raybust.errors import RequestError, WorkError, unknown
from raybust.numerics.lp_sets import Row, named

SETS = ("C1", "C2", "C3", "iCE")


class Settings(Protocol):
    """The settings that evaluation reads from section `corruptions` of the configuration."""

    @property
    def sets(self) -> tuple[str, ...]:
        """Named sets of Lp noises from `SETS`."""

    @property
    def rows(self) -> tuple[tuple[float, float], ...]:
        """Further (p, eps)."""

    @property
    def impulse(self) -> Literal["uniform", "binary"]:
        """Values of impulses, p = 0."""

    @property
    def folder(self) -> str | None:
        """Folder of a published corrupted test set."""

    @property
    def generated(self) -> bool:
        """Whether to generate corruptions on the fly."""

    @property
    def names(self) -> tuple[str, ...]:
        """Corruptions, published or generated; all if empty."""

    @property
    def seed(self) -> int:
        """Seed of noise and corruptions."""

    @property
    def examples(self) -> int | None:
        """Maximum examples per cell."""

    @property
    def batch(self) -> int:
        """Images per forward pass."""


class _Source(Protocol):
    """A part of a dataset, clean or corrupted."""

    def __len__(self) -> int: ...

    def fetch(
        self, positions: Sequence[int] | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


def named_sets(settings: Settings, part: Part) -> dict[str, tuple[Row, ...]]:
    """Returns the (p, eps) of the sets in the settings, for the part's image size."""
    return {name: _rows(name, part) for name in settings.sets}


def check_corruptions(part: Part, settings: Settings, classes: Sequence[str] = ()) -> int:
    """Returns the number of cells to evaluate; opens every file but computes nothing.

    Raises:
        RequestError: the settings, or the folder.
    """
    return len(list(_plan(part, settings, named_sets(settings, part), classes)))


def contents(
    part: Part,
    settings: Settings,
    *,
    classes: Sequence[str] = (),
    shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[str, str]]:
    """Yields corruption and severity, like "fog/3", with the digest of its published images and
    labels that `evaluate_corruptions` uses.

    Args:
        part: the clean images.
        settings: which corruptions.
        classes: names of the classes.
        shard: as in `evaluate_corruptions`.
    """
    if settings.folder is None:
        return
    found = published(settings.folder, part, names=settings.names, classes=classes)
    for name, levels in found.items():
        for level, source in levels.items():
            mine = _share(len(source), settings, shard)
            yield f"{name}/{level}", source.content(mine) + source.labeling(mine)


def _share(total: int, settings: Settings, shard: tuple[int, int]) -> torch.Tensor:
    """Returns the positions of a worker's examples out of `total`."""
    most = total if settings.examples is None else min(total, settings.examples)
    return torch.arange(most)[shard[0] :: shard[1]]


def evaluate_corruptions(
    network: nn.Module,
    part: Part,
    settings: Settings,
    device: torch.device,
    *,
    classes: Sequence[str] = (),
    shard: tuple[int, int] = (0, 1),
) -> Corrupted:
    """Evaluates a network on clean and corrupted images.

    Args:
        network: in eval mode, on `device`; images in [0, 1] to logits.
        part: the clean images; noise is keyed by their `indices`.
        settings: which corruptions.
        device: the network's device.
        classes: names of the classes, for folders of images.
        shard: this worker and the number of workers; the merged results equal those of a single
            worker.

    Raises:
        RequestError: the settings, the folder, or images outside [0, 1].
    """
    assert not network.training, "evaluation needs the network in eval mode"
    sets = named_sets(settings, part)
    cells = []
    for kind, name, level, p, source in list(_plan(part, settings, sets, classes)):
        mine = _share(len(source), settings, shard)
        correct, bins = _count(network, source, mine.split(settings.batch), device)
        cells.append(
            Cell(kind=kind, name=name, level=level, p=p, examples=len(mine),
                 correct=correct, bins=bins)
        )  # fmt: skip
    return Corrupted(cells=tuple(cells), sets=sets)


def _rows(name: str, part: Part) -> tuple[Row, ...]:
    if name not in SETS:
        raise unknown("set of Lp noises", name, SETS)
    return named(name, part.shape).rows


_Plan = tuple[Kind, str, float, float, _Source]


def _plan(
    part: Part, settings: Settings, sets: dict[str, tuple[Row, ...]], classes: Sequence[str]
) -> Iterator[_Plan]:
    """Yields kind, name, level, p and images of each cell, without repeating a noise."""
    for name in settings.names:
        if name not in (*COMMON, *EXTRA):
            raise unknown("corruption", name, (*COMMON, *EXTRA))
    nan = float("nan")
    yield "clean", "clean", 0.0, nan, part
    rows = [row for chosen in sets.values() for row in chosen]
    rows += [(float(p), float(eps)) for p, eps in settings.rows]
    for p, eps in dict.fromkeys(rows):
        binary = settings.impulse == "binary"
        yield "lp", f"p={p:g}", eps, p, NoisySplit(part, p, eps, settings.seed, binary)
    if settings.folder is not None:
        found = published(settings.folder, part, names=settings.names, classes=classes)
        for name, levels in found.items():
            for level, source in levels.items():
                yield "published", name, float(level), nan, source
    if settings.generated:
        for name in settings.names or (*COMMON, *EXTRA):
            for level in SEVERITIES:
                made = GeneratedSplit(part, name, level, settings.seed)
                yield "generated", name, float(level), nan, made


@torch.inference_mode()
def _count(
    network: nn.Module, source: _Source, batches: Sequence[torch.Tensor], device: torch.device
) -> tuple[int, torch.Tensor]:
    """Returns the number of correct examples and the bins of the calibration error, on the CPU."""
    correct = torch.zeros((), dtype=torch.int64, device=device)
    bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)
    for at in batches:
        if not len(at):
            continue
        images, labels = source.fetch(at)
        if not (images.min() >= 0 and images.max() <= 1):
            raise RequestError(
                f"images from {images.min():.2f} to {images.max():.2f} look normalized; corruptions"
                " need images in [0, 1]"
            )
        logits = network(images.to(device)).float()
        if int(labels.max()) >= logits.shape[1]:
            raise RequestError(
                f"got the label {int(labels.max())} for a network of {logits.shape[1]} classes; "
                "corruptions.folder belongs to another dataset"
            )
        top, predicted = logits.max(1)
        broken = logits.isnan().any(1)
        if broken.any():
            raise WorkError(f"the network gives NaN for {int(broken.sum())} of {len(at)} images")
        hits = (predicted == labels.to(device)) & ~broken
        confidence = torch.where(top.isinf(), 1.0, logits.softmax(1).amax(1)).where(~broken, 0.0)
        correct += hits.sum()
        bins += calibration_bins(confidence, hits)
    return int(correct), bins.cpu()

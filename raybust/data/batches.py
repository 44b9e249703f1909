"""Training batches on the device.

Order and augmentation of an epoch depend only on (seed, epoch), and each rank takes its slice of
every global batch: any number of workers sees the same images in the same step, and resuming needs
no saved state. In-memory datasets are stored on the device as bytes and a batch is one gather;
streamed datasets are decoded by worker processes, and of those that are read in blocks, a batch
comes from a window of several. Balanced batches hold equally many images of each of several
classes.

Notation: N images of shape C x H x W, B of them in a global batch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from raybust import devices
from raybust.data.augment import KINDS, MARGIN, crops, mirror
from raybust.data.decode import UnreadableError
from raybust.data.seeds import generator, mix
from raybust.data.splits import Part, Split
from raybust.data.streamed import Streamed
from raybust.errors import RequestError, unknown

Batch = tuple[Tensor, Tensor]
"""Images float32 (B / world, C, H, W) in [0, 1], labels int64 (B / world,), on the device."""


class Batches:
    """One rank's batches of one part of a dataset.

    Args:
        split: the part.
        batch_size: B, images per step over all ranks; a multiple of `world`. A smaller part becomes
            one batch, rounded down to a multiple of `world`.
        device: device of the batches.
        seed: seed of order and augmentation.
        augment: one of "none", "flip", "crop", "crop_flip".
        rank: this worker, in [0, world).
        world: number of workers.
        loader_workers: decoding processes of this rank; streamed parts only.
        classes: P distinct classes per batch, with B / P images each, balanced on every rank; 0
            ignores classes. See `balanced`.
        parts: equal parts into which each worker cuts its share of a batch.
        bad: fraction of the part's images that may be unreadable; streamed parts without `classes`
            only. The image at the next place of the batch that can be read stands in for one.

    Attributes:
        steps: batches per epoch, the same on every rank; an incomplete last batch is dropped.
        batch_size: the actual B.

    Raises:
        RequestError: B is not a multiple of `world` times P, the part is smaller than that, or it
            has fewer than P classes.
    """

    def __init__(
        self,
        split: Part,
        *,
        batch_size: int,
        device: torch.device | str,
        seed: int,
        augment: str = "none",
        rank: int = 0,
        world: int = 1,
        loader_workers: int = 0,
        classes: int = 0,
        parts: int = 1,
        bad: float = 0.0,
    ) -> None:
        if augment not in KINDS:
            raise unknown("augmentation", augment, KINDS)
        self.batch_size = fitting_batch(
            split.labels, batch_size, world=world, classes=classes, parts=parts
        )
        self.steps = len(split) // self.batch_size
        self._count, self._seed = len(split), seed
        self._labels, self._classes = split.labels, classes
        self._blocks = split.blocks if isinstance(split, Streamed) else None
        self._window = split.window if isinstance(split, Streamed) else 1
        self._rank, self._world = rank, world
        self._feed: _Memory | _Stream
        if isinstance(split, Streamed):
            self._feed = _Stream(split, torch.device(device), augment, loader_workers)
            # A stand-in has another class, which would unbalance the batch.
            self._feed.most = 0 if classes else math.floor(bad * len(split) + 1e-9)
        else:
            self._feed = _Memory(split, torch.device(device), augment)

    def facts(self) -> dict[str, tuple[Tensor | float, float]]:
        """Returns how the newest epoch was read, each as (sum, count) of this rank for a mean over
        all: seconds in which a rank waited for images, and unreadable images of all ranks; nothing
        for a part in memory."""
        if isinstance(self._feed, _Memory):
            return {}
        return {
            "train/waited": (self._feed.waited, 1.0),
            "train/unreadable": (float(len(self._feed.broken)), 1 / self._world),
        }

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yields the `steps` batches of an epoch.

        Args:
            number: index of the epoch, from 0.

        Raises:
            RequestError: more streamed files than `bad` allows are not images.
        """
        draw = generator(self._seed, number, "order")
        if self._classes:
            per_class = self.batch_size // self._classes
            order = balanced(self._labels, self._classes, per_class, self.steps, draw)
        elif self._blocks is not None:
            order = windowed(self._blocks, self._window, draw)
        else:
            order = torch.randperm(self._count, generator=draw)
        mine = order[: self.steps * self.batch_size]
        mine = mine.view(self.steps, self._world, -1)[:, self._rank]
        return self._feed.epoch(mine, self._seed, number)


def fitting_batch(
    labels: Tensor, batch_size: int, *, world: int = 1, classes: int = 0, parts: int = 1
) -> int:
    """Returns the actual B: `batch_size`, or the largest that a smaller part fills.

    Args:
        labels: int64 (N,), of the part.
        batch_size: see `Batches`, as for the others.
        world: number of workers.
        classes: classes per batch, 0 for any.
        parts: equal parts into which each worker's share of a batch is cut.

    Raises:
        RequestError: see `Batches`.
    """
    unit = world * parts * (classes or 1)
    workers = f"{world} workers"
    if parts > 1:
        workers += f" times {parts} parts (train.accumulate)"
    if classes:
        workers += f" times {classes} classes per batch"
    if batch_size % unit:
        raise RequestError(
            f"train.batch_size: got {batch_size}, expected a multiple of the {workers}"
        )
    if len(labels) < unit:
        raise RequestError(
            f"got {len(labels)} training images for {workers}, expected at least one for each"
        )
    present = len(labels.unique())
    if classes > present:
        raise RequestError(
            f"train.batch_classes: got {classes}, expected <= {present}, the number of classes"
            " among the training images"
        )
    return min(batch_size, len(labels) // unit * unit)


def balanced(
    labels: Tensor, classes: int, per_class: int, steps: int, draw: torch.Generator
) -> Tensor:
    """Returns the positions of consecutive balanced batches, int64 (steps * classes * per_class,).
    Within a batch the classes alternate image by image, so equal slices of it are balanced too.

    The classes in a batch are distinct, and so are a class's images if it has enough. Across
    batches, all classes occur equally often within 1, and so do all images of a class: the least
    used come first, with random ties. A class with fewer than `per_class` images uses all of them
    and starts over, so its images repeat within a batch (our choice).

    Args:
        labels: int64 (N,).
        classes: classes per batch, at most the number in `labels`.
        per_class: images per class.
        steps: number of batches.
        draw: a CPU generator.
    """
    order = labels.argsort(stable=True)
    members = order.split(labels[order].unique_consecutive(return_counts=True)[1].tolist())
    class_uses, uses = torch.zeros(len(members)), [torch.zeros(len(m)) for m in members]
    batches = []
    for _ in range(steps):
        chosen = _least_used(class_uses, classes, draw).tolist()
        parts = [members[at][_least_used(uses[at], per_class, draw)] for at in chosen]
        batches.append(torch.stack(parts, 1).flatten())
    return torch.cat(batches)


def windowed(blocks: Tensor, window: int, draw: torch.Generator) -> Tensor:
    """Returns all positions, int64 (N,), in an order that reads block after block: the blocks are
    shuffled, `window` consecutive ones form a window, and its positions are shuffled.

    Args:
        blocks: int64 (N,), the block of each position.
        window: number of blocks, >= 1; all blocks make the order a uniform permutation.
        draw: a CPU generator.
    """
    present, block = blocks.unique(return_inverse=True)
    rank = torch.randperm(len(present), generator=draw)
    order = torch.randperm(len(blocks), generator=draw)
    return order[(rank[block[order]] // window).argsort(stable=True)]


def _least_used(uses: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Returns the `count` least used positions, in order, and increments their uses."""
    order = (uses + torch.rand(len(uses), generator=draw)).argsort()
    chosen = order.repeat(-(-count // len(order)))[:count]
    uses += chosen.bincount(minlength=len(uses))
    return chosen


class _Memory:
    """Batches of a part stored on the device."""

    def __init__(self, split: Split, device: torch.device, augment: str) -> None:
        images = split.images.to(device)
        self.images = crops(images) if "crop" in augment else images
        self.labels = split.labels.to(device)
        self.scale = split.scale
        self.crop, self.flip = "crop" in augment, "flip" in augment

    def epoch(self, order: Tensor, seed: int, number: int) -> Iterator[Batch]:
        """Yields a batch for each row of positions in `order`.

        Makes all draws of the epoch at once, on the CPU and for every example, so they are the same
        on every device and rank and a step launches only its gather.
        """
        draw = generator(seed, number, "augment")
        count, device = len(self.labels), self.labels.device
        corners = torch.randint(0, 2 * MARGIN + 1, (2, count), generator=draw)[:, order]
        flips = torch.randint(0, 2, (count,), generator=draw)[order] > 0
        order, corners, flips = order.to(device), corners.to(device), flips.to(device)
        for step, at in enumerate(order.unbind()):
            if self.crop:
                images = self.images[at, :, corners[0, step], corners[1, step]]
            else:
                images = self.images.index_select(0, at)
            if self.flip:
                images = mirror(images, flips[step])
            yield images.to(torch.float32).div_(self.scale), self.labels.index_select(0, at)


class _Stream:
    """Batches of a part decoded on demand."""

    def __init__(self, split: Streamed, device: torch.device, augment: str, workers: int) -> None:
        workers = min(workers, os.cpu_count() or 1)
        self.device, self.most = device, 0
        self.waited, self.broken = 0.0, set[str]()
        self.plan: list[list[tuple[int, int]]] = []
        self.loader = DataLoader(
            _Decoded(split, augment),
            batch_sampler=self.plan,
            num_workers=workers,
            collate_fn=_identity,
            pin_memory=device.type == devices.GPU,
            persistent_workers=workers > 0,
            # Connections to a store do not survive a fork.
            multiprocessing_context="forkserver" if workers and split.remote else None,
            # Without its own generator, each epoch would draw from torch's global one.
            generator=torch.Generator(),
        )

    def epoch(self, order: Tensor, seed: int, number: int) -> Iterator[Batch]:
        """Yields a batch for each row of positions in `order`. Each image's augmentation is seeded
        by (seed, epoch, position), independent of the decoding process."""
        self.plan[:] = [[(at, mix(seed, number, at)) for at in row] for row in order.tolist()]
        self.waited, self.broken = 0.0, set()
        batches = iter(self.loader)
        for _ in range(len(self.plan)):
            began = time.perf_counter()
            read = next(batches)
            self.waited += time.perf_counter() - began
            if isinstance(read, RequestError):
                raise read
            batch, broken = read
            self._allow(broken)
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            yield images.to(torch.float32).div_(255), labels

    def _allow(self, broken: list[UnreadableError]) -> None:
        """Counts images that could not be read.

        Raises:
            RequestError: they are too many; the error names the newest.
        """
        self.broken |= set(map(str, broken))
        if len(self.broken) <= self.most:
            return
        if not self.most:
            raise broken[0]
        raise RequestError(
            f"{broken[0]}; it is unreadable image {len(self.broken)} of this epoch, and data.bad"
            f" allows {self.most}; `raybust data check` names all"
        )


class _Decoded(TorchDataset[Tensor]):
    """Decodes whole batches in a worker process. Errors are returned, not raised, because the
    loader would wrap exceptions in a long traceback. The next image of the batch that can be read
    stands in for one that cannot."""

    def __init__(self, split: Streamed, augment: str) -> None:
        self.split, self.augment = split, augment

    def __getitems__(
        self, keys: list[tuple[int, int]]
    ) -> tuple[Batch, list[UnreadableError]] | RequestError:
        images, broken = dict[int, Tensor](), list[UnreadableError]()
        for place, (at, seed) in enumerate(keys):
            try:
                images[place] = self.split.decode(at, self.augment, seed)
            except UnreadableError as error:
                broken.append(error)
            except RequestError as error:
                return error
        if not images:
            return broken[0]
        count = len(keys)
        places = [
            next(one % count for one in range(place, place + count) if one % count in images)
            for place in range(count)
        ]
        labels = self.split.labels[[keys[place][0] for place in places]]
        return (torch.stack([images[place] for place in places]), labels), broken


def _identity(batch: Any) -> Any:
    return batch

"""What a dataset is once it is read: three parts, their classes and constants, and the seeded cuts
that make the parts. Stage `data` of the arrow; sources make these objects, batches, certificates
and evaluation read them.

Legend: N images of shape C x H x W, K classes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raybust.data.digests import digest_of, labels_digest
from raybust.data.folder import StreamedSplit
from raybust.data.seeds import generator

_NAMED = 5
_CHUNK = 1024
"""Images that are copied at a time where all are read."""


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a dataset, in memory.

    Attributes:
        images: uint8 or float32 (N, C, H, W); `images / scale` is in [0, 1].
        labels: int64 (N,), in [0, K).
        indices: int64 (N,), the position of each example in the official training or test set, by
            which certificates name it.
        scale: the value of a full pixel: 255, 16 (digits) or 1 (floats).
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    scale: float = 255.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what `fetch` returns."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def fetch(self, positions: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Returns images float32 (B, C, H, W) in [0, 1] and labels int64 (B,), on the CPU.

        Args:
            positions: B positions in this part, in [0, N); B may be 0.
        """
        at = torch.as_tensor(positions, dtype=torch.int64)
        return self.images[at].to(torch.float32).div_(self.scale), self.labels[at]

    def select(self, positions: Tensor) -> Split:
        """Returns the part that has only these positions, in their order."""
        return Split(
            self.images[positions], self.labels[positions], self.indices[positions], self.scale
        )

    def content(self, positions: Sequence[int] | Tensor) -> str:
        """Returns the digest of some images' pixels, in order.

        Args:
            positions: in this part, in [0, N).
        """
        at = torch.as_tensor(positions, dtype=torch.int64)
        form = f"{self.images.dtype} {(len(at), *self.shape)} {self.scale}"
        chunks = (self.images[some].contiguous() for some in at.split(_CHUNK))
        return digest_of(form, (chunk.numpy().data for chunk in chunks))

    def labeling(self, positions: Sequence[int] | Tensor) -> str:
        """Returns the digest of the labels and indices of some examples, in order."""
        return labels_digest(self.labels, self.indices, positions)

    def feed(self, digest: Callable[[bytes | memoryview], None]) -> None:
        """Passes all that the part is made of to a hash's `update`."""
        digest(f"{self.images.dtype} {tuple(self.images.shape)} {self.scale}".encode())
        for tensor in (self.images, self.labels, self.indices):
            digest(tensor.contiguous().numpy().data)


Part = Split | StreamedSplit
"""A part of a dataset, in memory or decoded on demand: the same interface."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset that is read and cut.

    Attributes:
        name: key of the source, as in `data.name`.
        classes: names of the K classes.
        shape: (C, H, W).
        mean: mean of each channel, in units of [0, 1]; the network's first layer subtracts it.
        std: standard deviation of each channel, in the same units, above 0.
        augment: "none", "flip", "crop" or "crop_flip": what training batches are to use;
            `data.augment`, or the dataset's own where that says "default".
        train: what training sees.
        validation: what search sees.
        test: what neither sees.
        notes: what was understood and what was left out, a line each.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str
    train: Part
    validation: Part
    test: Part
    notes: tuple[str, ...] = ()

    def understood(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> list[str]:
        """Returns what was understood of the data, a line each: parts and their sizes, classes,
        image size, normalization, what was converted and what was left out.

        Args:
            mean: of the network's first layer, where it is not the data set's.
            std: the same.
        """
        few = ", ".join(self.classes[:_NAMED]) + ", ..." * (len(self.classes) > _NAMED)
        channels, height, width = self.shape
        given = " (as set)" if mean or std else ""
        lines = [
            f"{channels} x {height} x {width} pixels, {len(self.classes)} classes: {few}",
            f"normalization{given}: mean {_list(mean or self.mean)}, std {_list(std or self.std)}",
        ]
        first, *others = self.notes or ("",)
        return [f"data  {line}" for line in (first, *lines, *others) if line]

    @functools.cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of the SHA-256 over images, labels and cut. Streamed parts: over
        paths, labels, cut, and the content of a fixed sample of the files. Computed when first
        asked for."""
        digest = hashlib.sha256()
        for part in ("train", "validation", "test"):
            digest.update(part.encode())
            getattr(self, part).feed(digest.update)
        return digest.hexdigest()[:16]


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def hold_out(labels: Tensor, share: float, *keys: int | str) -> tuple[Tensor, Tensor]:
    """Returns the positions that stay and the positions held out, each ascending.

    The cut is stratified: of each class round(share n) examples within 1, and at least one example
    of each class stays.

    Args:
        labels: int64 (N,).
        share: the share held out, in (0, 1).
        keys: what the cut is for; equal keys cut equally.
    """
    order, rank, size = _shuffled(labels, keys)
    height = (rank + 0.5) / size
    height[rank == size - 1] = torch.inf
    count = min(round(share * len(labels)), int(height.isfinite().sum()))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order[height.argsort(stable=True)[:count]]] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def first(labels: Tensor, count: int, *keys: int | str) -> Tensor:
    """Returns the positions, ascending, of the first `count` examples of a seeded shuffle in which
    the classes take turns: equal numbers of each class for as long as each lasts. What a smaller
    `count` chooses is part of what a larger one chooses.

    Args:
        labels: int64 (N,).
        count: at most so many, at least 1.
        keys: what the choice is for; equal keys choose equally.
    """
    order, rank, _ = _shuffled(labels, keys)
    return order[rank.argsort(stable=True)[:count]].sort().values


def channel_moments(images: Tensor, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel over all images and pixels.

    Args:
        images: (N, C, H, W), N at least 1.
        scale: the value of a full pixel.

    Returns:
        C means and C standard deviations in units of [0, 1], computed in float64. The deviation of
        a constant channel is given as 1, because the network divides by it.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for start in range(0, len(images), _CHUNK):
        values = images[start : start + _CHUNK].to(torch.float64) / scale
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    std[std < 1e-6] = 1.0
    return tuple(mean.tolist()), tuple(std.tolist())


def _shuffled(labels: Tensor, keys: tuple[int | str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a seeded permutation and, in its order, each example's rank in its class (0 first)
    and the size of that class."""
    order = torch.randperm(len(labels), generator=generator(*keys))
    shuffled = labels[order]
    sizes = shuffled.bincount()
    grouped = shuffled.argsort(stable=True)
    starts = (sizes.cumsum(0) - sizes)[shuffled[grouped]]
    rank = torch.empty_like(order)
    rank[grouped] = torch.arange(len(labels)) - starts
    return order, rank, sizes[shuffled]

"""A loaded dataset: three parts, their classes and constants, and the seeded splits that create the
parts. Sources create these objects; batches, certificates and evaluation read them.

Notation: N images of shape C x H x W, K classes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raybust.data.digests import digest_of, labels_digest
from raybust.data.seeds import generator
from raybust.data.streamed import Streamed

_NAMED = 5
_CHUNK = 1024
"""Number of images copied at a time when reading all of them."""


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a dataset, in memory.

    Attributes:
        images: uint8 or float32 (N, C, H, W); `images / scale` is in [0, 1].
        labels: int64 (N,), in [0, K).
        indices: int64 (N,), each example's position in the official training or test set, which
            identifies it in certificates.
        scale: the maximum pixel value: 255, 16 (digits) or 1 (floats).
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    scale: float = 255.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images from `fetch`."""
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
        """Returns a part with only these positions, in order."""
        return Split(
            self.images[positions], self.labels[positions], self.indices[positions], self.scale
        )

    def content(self, positions: Sequence[int] | Tensor) -> str:
        """Returns the digest of the selected images' pixels, in order.

        Args:
            positions: in this part, in [0, N).
        """
        at = torch.as_tensor(positions, dtype=torch.int64)
        form = f"{self.images.dtype} {(len(at), *self.shape)} {self.scale}"
        chunks = (self.images[some].contiguous() for some in at.split(_CHUNK))
        return digest_of(form, (chunk.numpy().data for chunk in chunks))

    def labeling(self, positions: Sequence[int] | Tensor) -> str:
        """Returns the digest of the selected examples' labels and indices, in order."""
        return labels_digest(self.labels, self.indices, positions)

    def feed(self, digest: Callable[[bytes | memoryview], None]) -> None:
        """Passes the part's complete content to a hash's `update`."""
        digest(f"{self.images.dtype} {tuple(self.images.shape)} {self.scale}".encode())
        for tensor in (self.images, self.labels, self.indices):
            digest(tensor.contiguous().numpy().data)


Part = Split | Streamed
"""A part of a dataset, in memory or decoded on demand, with the same interface."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A loaded dataset, split into three parts.

    Attributes:
        name: key of the source, as in `data.name`.
        classes: names of the K classes.
        shape: (C, H, W).
        mean: per-channel mean in units of [0, 1], used by the normalization layer.
        std: per-channel standard deviation in the same units, > 0.
        augment: augmentation of training batches: "none", "flip", "crop" or "crop_flip", from
            `data.augment`, or the dataset's default if that is "default".
        train: used by training.
        validation: used by search.
        test: used by neither.
        notes: how the data was interpreted and what was left out, one line each.
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
        """Describes how the data was interpreted, one line each: parts and their sizes, classes,
        image size, normalization, conversions and what was left out.

        Args:
            mean: the normalization layer's mean, if not the dataset's.
            std: its standard deviation, likewise.
        """
        given = " (as set)" if mean or std else ""
        how = f"normalization{given}: mean {_list(mean or self.mean)}, std {_list(std or self.std)}"
        lines = self.described
        return [f"data  {line}" for line in (*lines[:2], how, *lines[2:])]

    @property
    def described(self) -> list[str]:
        """Describes parts and their sizes, image size and classes, then conversions and what was
        left out, one line each."""
        few = ", ".join(self.classes[:_NAMED]) + ", ..." * (len(self.classes) > _NAMED)
        channels, height, width = self.shape
        size = f"{channels} x {height} x {width} pixels, {len(self.classes)} classes: {few}"
        first, *others = self.notes or ("",)
        return [line for line in (first, size, *others) if line]

    @functools.cached_property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 over images, labels and split; for streamed
        parts over paths, labels, split and the content of a fixed sample of the files. Computed on
        first access."""
        digest = hashlib.sha256()
        for part in ("train", "validation", "test"):
            digest.update(part.encode())
            getattr(self, part).feed(digest.update)
        return digest.hexdigest()[:16]


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def hold_out(labels: Tensor, share: float, *keys: int | str) -> tuple[Tensor, Tensor]:
    """Returns the remaining and the held-out positions, each ascending.

    The split is stratified: it holds out round(share n) examples of each class within 1 and leaves
    at least one.

    Args:
        labels: int64 (N,).
        share: fraction to hold out, in (0, 1).
        keys: purpose of the split; equal keys give equal splits.
    """
    order, rank, size = _shuffled(labels, keys)
    height = (rank + 0.5) / size
    height[rank == size - 1] = torch.inf
    count = min(round(share * len(labels)), int(height.isfinite().sum()))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order[height.argsort(stable=True)[:count]]] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def first(labels: Tensor, count: int, *keys: int | str) -> Tensor:
    """Returns the ascending positions of the first `count` examples of a seeded shuffle that
    alternates between classes, so classes are equally represented until exhausted. A smaller
    `count` selects a subset of a larger one.

    Args:
        labels: int64 (N,).
        count: maximum number of examples, >= 1.
        keys: purpose of the selection; equal keys give equal selections.
    """
    order, rank, _ = _shuffled(labels, keys)
    return order[rank.argsort(stable=True)[:count]].sort().values


def channel_moments(images: Tensor, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns each channel's mean and standard deviation over all images and pixels.

    Args:
        images: (N, C, H, W), N >= 1.
        scale: the maximum pixel value.

    Returns:
        C means and C standard deviations in units of [0, 1], computed in float64. A constant
        channel gets standard deviation 1, because the network divides by it.
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
    """Returns a seeded permutation and, in its order, each example's 0-based rank within its class
    and the size of that class."""
    order = torch.randperm(len(labels), generator=generator(*keys))
    shuffled = labels[order]
    sizes = shuffled.bincount()
    grouped = shuffled.argsort(stable=True)
    starts = (sizes.cumsum(0) - sizes)[shuffled[grouped]]
    rank = torch.empty_like(order)
    rank[grouped] = torch.arange(len(labels)) - starts
    return order, rank, sizes[shuffled]


def spread(total: int, count: int) -> list[int]:
    """Returns `count` positions, or all if there are fewer, evenly over a part of `total` examples:
    a part may be sorted by class."""
    count = min(count, total)
    return [at * total // count for at in range(count)]

"""Parts of a dataset whose images stay in their files and are decoded on demand, with the interface
of `Split`.

A loader process reads an image when a batch needs it. `Streamed` is what all of them have in
common; `StreamedSplit` has a file for each image, `raybust.data.packed.PackedSplit` a few large
ones.

Notation: N images of shape C x H x W.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raybust.data.augment import center, random_view
from raybust.data.decode import PLAIN, Decoding, decode
from raybust.data.digests import digest_of, labels_digest
from raybust.errors import RequestError

_SAMPLE = 10_000
"""Images of a part whose content its digest reads (our choice)."""


class Streamed(ABC):
    """One part of a dataset whose images are decoded on demand.

    Attributes:
        labels: int64 (N,).
        indices: int64 (N,), the position of each image in the official part.
        size: side of the images that `fetch` returns, in pixels.
        decoding: how files become pixels.
        blocks: int64 (N,), the block of each image if a file is read in blocks of several images,
            else None: then one image costs as little as any other.
        window: blocks among which the images of an epoch are shuffled.
        remote: whether the files are in a store.
    """

    labels: Tensor
    indices: Tensor
    size: int
    decoding: Decoding
    blocks: Tensor | None = None
    window: int = 1
    remote: bool = False

    @abstractmethod
    def picture(self, position: int) -> Image.Image:
        """Returns one image at its own size, RGB.

        Raises:
            RequestError: it is no image, or cannot be read.
        """

    @abstractmethod
    def fingerprint(self, position: int) -> bytes:
        """Returns the SHA-256 of one image as it is stored.

        Raises:
            RequestError: it cannot be read.
        """

    @abstractmethod
    def named(self, position: int) -> str:
        """Returns where one image is, for messages."""

    @abstractmethod
    def select(self, positions: Tensor) -> Self:
        """Returns the part that has only these positions, in their order."""

    @abstractmethod
    def feed(self, digest: Callable[[bytes | memoryview], None]) -> None:
        """Passes what identifies the part to a hash's `update`: names, labels, indices, sizes, and
        the content of its images; of more than 10,000 that of a sample."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what `fetch` returns."""
        return 3, self.size, self.size

    def fetch(self, positions: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Returns images float32 (B, 3, size, size) in [0, 1], and labels int64 (B,).

        The shorter side is resized to `size`, then the center is cropped.

        Args:
            positions: B positions in this part, in [0, N); B may be 0.

        Raises:
            RequestError: a file is no image.
        """
        at = torch.as_tensor(positions, dtype=torch.int64)
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(self.decode, at.tolist()))
        pixels = torch.stack(images) if images else torch.empty(0, *self.shape)
        return pixels.to(torch.float32).div_(255), self.labels[at]

    def decode(self, position: int, augment: str = "none", seed: int = 0) -> Tensor:
        """Returns one image, uint8 (3, size, size).

        Args:
            position: in [0, N).
            augment: "none" for the view of evaluation, else see `random_view`.
            seed: of the augmentation.

        Raises:
            RequestError: the file is no image.
        """
        image = self.picture(position)
        if augment == "none":
            view = center(image, self.size)
        else:
            view = random_view(image, self.size, augment, seed)
        return torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous()

    def content(self, positions: Sequence[int] | Tensor) -> str:
        """Returns the digest of the bytes of some images' files, in order, and of how they are
        decoded; their names are no part of it.

        Args:
            positions: in this part, in [0, N).

        Raises:
            RequestError: a file cannot be read.
        """
        at = torch.as_tensor(positions, dtype=torch.int64).tolist()
        with ThreadPoolExecutor() as pool:
            form = f"streamed {self.size} {self.decoding}"
            return digest_of(form, pool.map(self.fingerprint, at))

    def labeling(self, positions: Sequence[int] | Tensor) -> str:
        """Returns the digest of the labels and indices of some examples, in order."""
        return labels_digest(self.labels, self.indices, positions)

    def sample(self, most: int = _SAMPLE) -> Sequence[int]:
        """Returns at most `most` positions, or all, spread evenly over the part; of a part in
        blocks all images of some blocks, at least one."""
        if self.blocks is None or len(self) <= most:
            return range(0, len(self), max(1, -(-len(self) // most)))
        blocks, counts = self.blocks.unique(return_counts=True)
        step = max(1, -(-len(self) // most), -(-len(blocks) * int(counts.max()) // most))
        chosen: list[int] = torch.isin(self.blocks, blocks[::step]).nonzero().flatten().tolist()
        return chosen


@dataclass(frozen=True, eq=False)
class StreamedSplit(Streamed):
    """One part of a dataset with a file for each image.

    Attributes:
        root: the dataset's folder.
        files: N paths below `root`.
        labels: int64 (N,).
        indices: int64 (N,), the position of each file in the official part.
        size: side of the images that `fetch` returns, in pixels.
        decoding: how files become pixels.
    """

    root: Path
    files: tuple[str, ...]
    labels: Tensor
    indices: Tensor
    size: int
    decoding: Decoding = PLAIN

    def picture(self, position: int) -> Image.Image:
        """Returns the image of a file at its own size, RGB.

        Raises:
            RequestError: the file is no image.
        """
        return decode(self.root / self.files[position], self.decoding)

    def fingerprint(self, position: int) -> bytes:
        """Returns the SHA-256 of a file.

        Raises:
            RequestError: it cannot be read.
        """
        path = self.root / self.files[position]
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise RequestError(f"{path}: cannot be read: {error.strerror or error}") from None

    def named(self, position: int) -> str:
        """Returns the path of a file."""
        return str(self.root / self.files[position])

    def select(self, positions: Tensor) -> Self:
        """Returns the part that has only these positions, in their order."""
        files = tuple(self.files[position] for position in positions.tolist())
        return dataclasses.replace(
            self, files=files, labels=self.labels[positions], indices=self.indices[positions]
        )

    def feed(self, digest: Callable[[bytes | memoryview], None]) -> None:
        """Passes paths (sorted), labels, indices and the content of all files to a hash's `update`;
        of more than 10,000, the content of a sample of so many, evenly spaced, and all sizes."""
        digest(f"streamed {self.size}".encode())
        rows = zip(self.files, self.labels.tolist(), self.indices.tolist(), strict=True)
        for file, label, index in sorted(rows):
            digest(os.fsencode(file) + f"\t{label}\t{index}\n".encode())
        digest(self.content(self.sample()).encode())
        if len(self) > _SAMPLE:
            sizes = [(self.root / file).stat().st_size for file in sorted(self.files)]
            digest(repr(sizes).encode())

"""Images in a few large files, read in place: a part of such a dataset.

A `Shelf` knows the files: `raybust.data.tarred.TarShards`, `raybust.data.groups.ParquetFiles`.

Notation: N images of a part, M of all its files.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raybust.data.arrays import check_images
from raybust.data.decode import PLAIN, Decoding, decode
from raybust.data.stores import File, remote
from raybust.data.streamed import Streamed


class Shelf(ABC):
    """Files that hold M images, by number.

    Attributes:
        files: in order.
        window: see `Streamed`.
    """

    files: tuple[File, ...]
    window: int = 1

    @abstractmethod
    def named(self, number: int) -> str:
        """Returns file and name of an image, for messages."""

    @abstractmethod
    def read(self, number: int) -> bytes | np.ndarray:
        """Returns an image as it is stored: encoded, or an array.

        Raises:
            RequestError: it cannot be read.
        """

    def blocks(self, numbers: Tensor) -> Tensor | None:
        """Returns the block of each image, int64 (N,), or None; see `Streamed`."""
        return None

    @abstractmethod
    def sizes(self) -> bytes:
        """Returns bytes that change with the place or the size of any image."""


@dataclass(frozen=True, eq=False)
class PackedSplit(Streamed):
    """One part of a dataset whose images lie in a few large files.

    Attributes:
        shelf: the files.
        numbers: int64 (N,), the number of each image on the shelf.
        labels: int64 (N,).
        indices: int64 (N,), the position of each image in the official part.
        size: side of the images that `fetch` returns, in pixels.
        decoding: how files become pixels.
    """

    shelf: Shelf
    numbers: Tensor
    labels: Tensor
    indices: Tensor
    size: int
    decoding: Decoding = PLAIN

    @functools.cached_property
    def blocks(self) -> Tensor | None:  # type: ignore[override]
        """Block of each image; see `Streamed`."""
        return self.shelf.blocks(self.numbers)

    @property
    def window(self) -> int:  # type: ignore[override]
        """Blocks among which the images of an epoch are shuffled."""
        return self.shelf.window

    @property
    def remote(self) -> bool:  # type: ignore[override]
        """Whether the files are in a store."""
        return any(remote(file.path) for file in self.shelf.files)

    def stored(self, position: int) -> bytes | np.ndarray:
        """Returns one image as it is stored.

        Raises:
            RequestError: it cannot be read.
        """
        return self.shelf.read(int(self.numbers[position]))

    def picture(self, position: int) -> Image.Image:
        """Returns one image at its own size, RGB.

        Raises:
            RequestError: it is no image, or cannot be read.
        """
        stored, where = self.stored(position), self.named(position)
        if isinstance(stored, bytes):
            return decode(Path(where), self.decoding, BytesIO(stored))
        images, scale = check_images(stored[None], where)
        pixels = (images[0] * (255 / scale)).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).convert("RGB")

    def fingerprint(self, position: int) -> bytes:
        """Returns the SHA-256 of one image as it is stored.

        Raises:
            RequestError: it cannot be read.
        """
        stored = self.stored(position)
        if isinstance(stored, bytes):
            return hashlib.sha256(stored).digest()
        form = f"{stored.dtype} {stored.shape}".encode()
        return hashlib.sha256(form + np.ascontiguousarray(stored).tobytes()).digest()

    def named(self, position: int) -> str:
        """Returns file and name of one image."""
        return self.shelf.named(int(self.numbers[position]))

    def select(self, positions: Tensor) -> Self:
        """Returns the part that has only these positions, in their order."""
        chosen = {name: getattr(self, name)[positions] for name in ("numbers", "labels", "indices")}
        return dataclasses.replace(self, **chosen)

    def feed(self, digest: Callable[[bytes | memoryview], None]) -> None:
        """Passes names of the files, places and sizes, labels, indices and the content of the
        images to a hash's `update`; of more than 10,000 images that of a sample."""
        names = [os.path.basename(file.path) for file in self.shelf.files]
        digest(f"packed {self.size} {names}".encode())
        digest(self.shelf.sizes())
        for tensor in (self.numbers, self.labels, self.indices):
            digest(tensor.contiguous().numpy().data)
        digest(self.content(self.sample()).encode())


@dataclass(frozen=True)
class Labeled:
    """The images of some files with what is known of their labels.

    Attributes:
        shelf: the M images.
        labels: (M,), integers or texts; unlabeled images are None or negative.
        classes: names of the classes, if the files tell.
        notes: what was left out.
    """

    shelf: Shelf
    labels: Sequence[Any]
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

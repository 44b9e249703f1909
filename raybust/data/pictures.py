"""Image files without labels, as a part of a dataset: what `raybust predict` reads.

Each file becomes an image of the network's size and channels as the files of `image_folder` do: the
central square resized; for one channel its luminance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from raybust.data.augment import center
from raybust.data.decode import Decoding
from raybust.data.given import UNLABELED
from raybust.data.listing import LeftOut, images_below, shown
from raybust.data.streamed import StreamedSplit
from raybust.errors import RequestError


@dataclass(frozen=True, eq=False)
class Pictures(StreamedSplit):
    """Image files of any size and mode, decoded when needed.

    Attributes:
        form: (C, H, W) of what `fetch` returns; C is 1 or 3.
    """

    form: tuple[int, int, int] = (3, 224, 224)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what `fetch` returns."""
        return self.form

    def decode(self, position: int, augment: str = "none", seed: int = 0) -> Tensor:
        """Returns one image, uint8 (C, H, W).

        Args:
            position: in [0, N).
            augment: only "none".
            seed: unused.

        Raises:
            RequestError: the file is no image.
        """
        return fitted(self.picture(position), self.form)


def fitted(image: Image.Image, form: tuple[int, int, int]) -> Tensor:
    """Returns an image at the size and with the channels of a network, uint8 (C, H, W).

    Args:
        image: RGB.
        form: (C, H, W), C 1 or 3.
    """
    channels, height, width = form
    if channels == 1:
        image = image.convert("L")
    if height == width:
        view = center(image, height)
    else:
        view = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(view))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def read_pictures(
    paths: Sequence[str], form: tuple[int, int, int], how: Decoding
) -> tuple[Pictures, list[str]]:
    """Returns image files as a part, and notes on what was left out.

    Args:
        paths: files, and folders whose images are taken at every depth, in sorted order.
        form: (C, H, W) of the network's images.
        how: as the files of the training were decoded.

    Raises:
        RequestError: a path does not exist, or there are no images.
    """
    if form[0] not in (1, 3):
        raise RequestError(f"images: the network takes {form[0]} channels; pass them as an npz")
    files, left = list[str](), LeftOut()
    seen = set[tuple[int, int]]()
    for text in paths:
        path = Path(text).expanduser().absolute()
        if path.is_dir():
            files += images_below(path, seen, left)
        elif path.is_file():
            files.append(str(path))
        else:
            raise RequestError(f"{shown(text)}: there is no such file or folder")
    if not files:
        raise RequestError(f"{', '.join(map(shown, paths))}: no images there")
    count = len(files)
    labels, order = torch.full((count,), UNLABELED), torch.arange(count)
    part = Pictures(Path("/"), tuple(files), labels, order, form[1], how, form)
    return part, [f"left out: {note}" for note in left.notes()]

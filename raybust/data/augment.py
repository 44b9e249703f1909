"""Geometric augmentation of training batches: on whole batches of tensors for datasets in memory,
on one PIL image for streamed ones. Geometry comes first in the order of work on a batch. Stage
`data` of the arrow.

Legend: B images of shape C x H x W.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MARGIN = 4
"""Pixels of zeros around an image from which a crop of its own size is cut, after Krizhevsky's
training on CIFAR-10."""

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
"""Shares of the area and aspect ratios of random crops of streamed images, after Szegedy et al.,
"Going Deeper with Convolutions" (CVPR 2015, arXiv:1409.4842)."""

KINDS = ("none", "flip", "crop", "crop_flip")


def crops(images: Tensor) -> Tensor:
    """Returns a view (N, C, 2 MARGIN + 1, 2 MARGIN + 1, H, W) of all crops of zero-padded images;
    `view[n, :, top, left]` is one crop, and the middle one is the image.

    Args:
        images: (N, C, H, W); copied once, with its margin.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (MARGIN,) * 4)
    return padded.unfold(2, height, 1).unfold(3, width, 1)


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Returns the images, the chosen ones with left and right exchanged.

    Args:
        images: (B, C, H, W).
        chosen: bool (B,).
    """
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def center(image: Image.Image, size: int) -> Image.Image:
    """Returns the centered square of an image, resized to size x size; the same as resizing the
    shorter side to `size` and cropping the center, up to the rounding of the longer side."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )


def random_view(image: Image.Image, size: int, kind: str, seed: int) -> Image.Image:
    """Returns a training view of size x size.

    Args:
        image: an RGB image.
        size: the side of the view, in pixels.
        kind: one of `KINDS`; a crop takes an area in `AREA` of an aspect in `RATIO`, each side at
            most the image's, a flip exchanges left and right in half of the cases.
        seed: of this view's draws.
    """
    draw = random.Random(seed)
    if "crop" in kind:
        area = draw.uniform(*AREA) * image.width * image.height
        ratio = math.exp(draw.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        width = min(max(round(math.sqrt(area * ratio)), 1), image.width)
        height = min(max(round(math.sqrt(area / ratio)), 1), image.height)
        left = draw.randint(0, image.width - width)
        top = draw.randint(0, image.height - height)
        image = image.resize(
            (size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
        )
    else:
        image = center(image, size)
    if "flip" in kind and draw.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image

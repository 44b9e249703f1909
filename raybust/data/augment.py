"""Geometric augmentation of training batches: on batched tensors for in-memory datasets, on single
PIL images for streamed ones. Geometry is the first operation on a batch.

Notation: B images of shape C x H x W.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MARGIN = 4
"""Zero padding in pixels around an image before cropping to its original size, after Krizhevsky's
training on CIFAR-10."""

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
"""Ranges of area fraction and aspect ratio of random crops of streamed images, after Szegedy et
al., "Going Deeper with Convolutions" (CVPR 2015, arXiv:1409.4842)."""

KINDS = ("none", "flip", "crop", "crop_flip")


def crops(images: Tensor) -> Tensor:
    """Returns a view (N, C, 2 MARGIN + 1, 2 MARGIN + 1, H, W) of all crops of zero-padded images;
    `view[n, :, top, left]` is one crop, the central crop is the image itself.

    Args:
        images: (N, C, H, W); copied once, with padding.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (MARGIN,) * 4)
    return padded.unfold(2, height, 1).unfold(3, width, 1)


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Returns the images, with the chosen ones flipped horizontally.

    Args:
        images: (B, C, H, W).
        chosen: bool (B,).
    """
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def center(image: Image.Image, size: int) -> Image.Image:
    """Crops the central square of an image and resizes it to size x size; equals resizing the
    shorter side to `size` and cropping the center, up to rounding of the longer side."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )


def random_view(image: Image.Image, size: int, kind: str, seed: int) -> Image.Image:
    """Returns a randomly augmented view of size x size.

    Args:
        image: an RGB image.
        size: side length of the view, in pixels.
        kind: one of `KINDS`; crops draw an area in `AREA` and an aspect ratio in `RATIO`, with
            sides clipped to the image's; flips are horizontal with probability 1/2.
        seed: seed of this view's draws.
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

"""Drawn shapes: discs, squares, rings and crosses of 16 x 16 pixels, of any size, place and
brightness, on a noisy ground. Drawn from a fixed seed, so there is nothing to download.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raybust.config.inputs import Data
from raybust.data import Parts, Source, parts_of_arrays

CLASSES = ("disc", "square", "ring", "cross")
SIDE = 16
TRAIN, TEST = 1600, 400


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns images uint8 (count, 16, 16) and labels int64 (count,).

    Args:
        count: number of images.
        seed: of all draws.
    """
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    radius = 3 + 3 * torch.rand(count, 1, 1, generator=random)
    center = radius + (SIDE - 1 - 2 * radius) * torch.rand(2, count, 1, 1, generator=random)
    x, y = (torch.arange(SIDE) - center[0]).abs(), (torch.arange(SIDE)[:, None] - center[1]).abs()
    far, near = torch.maximum(x, y), torch.minimum(x, y)
    distance = (x.square() + y.square()).sqrt()
    disc, square = distance <= radius, far <= 0.8 * radius
    ring = disc & (distance > 0.55 * radius)
    cross = (far <= radius) & (near <= 0.3 * radius)
    drawn = torch.stack([disc, square, ring, cross])[labels, torch.arange(count)]
    brightness = 0.4 + 0.4 * torch.rand(count, 1, 1, generator=random)
    noise = 0.2 * torch.rand(count, SIDE, SIDE, generator=random)
    return (255 * (drawn * brightness + noise)).to(torch.uint8), labels


def read(config: Data) -> Parts:
    """Returns the training and the test set; the validation set is cut from the former."""
    train, test = draw(TRAIN, seed=0), draw(TEST, seed=1)
    return parts_of_arrays(train, test, CLASSES, "shapes: ")


SHAPES = Source(
    read=read,
    about="Drawn discs, squares, rings and crosses of any size, place and brightness.",
    augment="flip",
    shape=(1, SIDE, SIDE),
    classes=len(CLASSES),
    examples=(TRAIN, TEST),
)

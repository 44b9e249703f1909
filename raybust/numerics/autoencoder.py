"""A plain convolutional autoencoder, trained in one call: codes of images, and images of codes.

The space in which `geodesic` mixes when it is asked for a latent one. Zhu et al. (2023) show images
that look decoded, and how they were encoded was not read: architecture, size of the code and
training are our choice. Deterministic, with deterministic kernels on a GPU: every rank, and a run
that is resumed, makes the same one. Part of numerics.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 32
"""Channels of the convolutions."""
SIDE = 4
"""Images are halved until no side is longer than that."""
_BATCH, _RATE = 64, 2e-3


class Autoencoder(nn.Module):
    """Strided convolutions and a linear layer down to a code, and back by pixel shuffles."""

    def __init__(self, shape: tuple[int, int, int], size: int) -> None:
        """Draws weights from torch's global generator.

        Args:
            shape: (C, H, W) of an image.
            size: numbers in a code.
        """
        super().__init__()
        channels, height, width = shape
        levels = max(1, math.ceil(math.log2(max(height, width) / SIDE)))
        self.shape = shape
        self.grid = tuple(math.ceil(side / 2**levels) for side in (height, width))
        flat = WIDTH * math.prod(self.grid)
        down: list[nn.Module] = []
        for level in range(levels):
            before = WIDTH if level else channels
            down += [nn.Conv2d(before, WIDTH, 3, stride=2, padding=1), nn.ReLU()]
        up: list[nn.Module] = []
        for _ in range(levels):
            up += [nn.Conv2d(WIDTH, 4 * WIDTH, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2)]
        self.down = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, size))
        self.start = nn.Linear(size, flat)
        self.up = nn.Sequential(*up, nn.Conv2d(WIDTH, channels, 3, padding=1), nn.Sigmoid())

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to codes (B, size)."""
        codes: Tensor = self.down(2 * images - 1)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, size) to images (B, C, H, W) in (0, 1)."""
        features = self.start(codes).relu().view(-1, WIDTH, *self.grid)
        images: Tensor = self.up(features)
        return images[..., : self.shape[1], : self.shape[2]]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to their reconstructions."""
        return self.decode(self.encode(images))


def train_autoencoder(images: Tensor, *, size: int, epochs: int, seed: int) -> Autoencoder:
    """Returns an autoencoder of least squares, frozen, in eval mode, on the images' device and of
    their dtype: Adam, its rate falling linearly to 0, batches of 64.

    Args:
        images: (N, C, H, W) in [0, 1].
        size: numbers in a code.
        epochs: passes over the images.
        seed: of weights and order; torch's generators stay as they are.

    Raises:
        ValueError: there is no image, or one is NaN or infinite.
    """
    if not len(images) or not images.isfinite().all():
        raise ValueError(f"images: got {len(images)}, or NaN among them, expected one or more")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's; torch.manual_seed is all devices'
        coder = Autoencoder((images.shape[1], images.shape[2], images.shape[3]), size)
    coder.to(images)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(coder.parameters(), _RATE)
    total, done = epochs * math.ceil(len(images) / _BATCH), 0
    deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with torch.enable_grad(), deterministic:
        for _ in range(epochs):
            for at in torch.split(torch.randperm(len(images), generator=draw), _BATCH):
                batch = images[at.to(images.device)]
                for group in optimizer.param_groups:
                    group["lr"] = _RATE * (1 - done / total)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(F.mse_loss(coder(batch), batch))
                optimizer.step()
                done += 1
    coder.zero_grad(set_to_none=True)
    return coder.requires_grad_(False).eval()

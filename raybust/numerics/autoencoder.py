"""A plain convolutional autoencoder, trained in one call.

Its codes are the latent space of method `geodesic`. Zhu et al. (2023) show images that look
decoded, but we have not read how they were encoded: architecture, code size and training are our
choice. Training is deterministic, also on a GPU, so all ranks and resumed runs get the same one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 32
"""Channels of the convolutions."""
SIDE = 4
"""Images are halved until no side is longer than this."""
_BATCH, _RATE = 64, 2e-3


class Autoencoder(nn.Module):
    """Strided convolutions and a linear layer to a code, and back by pixel shuffles."""

    def __init__(self, shape: tuple[int, int, int], size: int) -> None:
        """Draws the weights from torch's global generator.

        Args:
            shape: (C, H, W) of an image.
            size: dimension of a code.
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
        """Encodes images (B, C, H, W) in [0, 1] as codes (B, size)."""
        codes: Tensor = self.down(2 * images - 1)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Decodes codes (B, size) to images (B, C, H, W) in (0, 1)."""
        features = self.start(codes).relu().view(-1, WIDTH, *self.grid)
        images: Tensor = self.up(features)
        return images[..., : self.shape[1], : self.shape[2]]

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructs images (B, C, H, W)."""
        return self.decode(self.encode(images))


def train_autoencoder(images: Tensor, *, size: int, epochs: int, seed: int) -> Autoencoder:
    """Returns an autoencoder trained by least squares, frozen, in eval mode, on the images' device
    and in their dtype: Adam with a rate that falls linearly to 0, batches of 64.

    Args:
        images: (N, C, H, W) in [0, 1].
        size: dimension of a code.
        epochs: passes over the images.
        seed: seed of weights and order; torch's generators are restored.

    Raises:
        ValueError: there are no images, or one is NaN or infinite.
    """
    if not len(images) or not images.isfinite().all():
        raise ValueError(f"images: got {len(images)}, or NaN among them, expected one or more")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # CPU only; torch.manual_seed seeds all devices
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

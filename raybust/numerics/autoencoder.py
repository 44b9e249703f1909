"""A convolutional autoencoder, plain or variational, trained in one call.

Its codes are the latent space of method `geodesic`. Zhu et al. (2023) use variational autoencoders
(Kingma and Welling, arXiv:1312.6114) of several code sizes; architecture, sizes and training are in
an appendix that we have not read, so they are our choice. Training is deterministic, also on a GPU,
so all ranks and resumed runs get the same one.
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
    """Strided convolutions and a linear layer to a code, and back by pixel shuffles. A variational
    one has a normal distribution of codes for each image, and their mean is the image's code."""

    def __init__(
        self, shape: tuple[int, int, int], size: int, *, variational: bool = False
    ) -> None:
        """Draws the weights from torch's global generator.

        Args:
            shape: (C, H, W) of an image.
            size: dimension of a code.
            variational: whether codes have a variance.
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
        self.size = size
        self.down = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, size * (1 + variational)))
        self.start = nn.Linear(size, flat)
        self.up = nn.Sequential(*up, nn.Conv2d(WIDTH, channels, 3, padding=1), nn.Sigmoid())

    def encode(self, images: Tensor) -> Tensor:
        """Encodes images (B, C, H, W) in [0, 1] as codes (B, size)."""
        codes: Tensor = self.down(2 * images - 1)[:, : self.size]
        return codes

    def distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns means and log variances (B, size) of the codes of images (B, C, H, W), of a
        variational autoencoder."""
        mean, log_variance = self.down(2 * images - 1).chunk(2, 1)
        return mean, log_variance

    def decode(self, codes: Tensor) -> Tensor:
        """Decodes codes (B, size) to images (B, C, H, W) in (0, 1)."""
        features = self.start(codes).relu().view(-1, WIDTH, *self.grid)
        images: Tensor = self.up(features)
        return images[..., : self.shape[1], : self.shape[2]]

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructs images (B, C, H, W)."""
        return self.decode(self.encode(images))


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Returns KL(N(mean, exp(log_variance)) | N(0, I)) in nats for each code, (B,); both (B, d)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)


def train_autoencoder(
    images: Tensor, *, size: int, epochs: int, seed: int, beta: float = 0.0
) -> Autoencoder:
    """Returns an autoencoder trained by least squares, frozen, in eval mode, on the images' device
    and in their dtype: Adam with a rate that falls linearly to 0, batches of 64.

    With beta it is variational: it minimizes the squared error of an image, summed over its pixels
    and in the mean over its codes, plus beta times their divergence from N(0, I). For beta = 1 this
    is the evidence bound with pixels of variance 1/2 (Higgins et al., ICLR 2017, for other beta).

    Args:
        images: (N, C, H, W) in [0, 1].
        size: dimension of a code.
        epochs: passes over the images.
        seed: seed of weights, order and codes; torch's generators are restored.
        beta: >= 0; 0 for a plain autoencoder.

    Raises:
        ValueError: there are no images, or one is NaN or infinite.
    """
    if not len(images) or not images.isfinite().all():
        raise ValueError(f"images: got {len(images)}, or NaN among them, expected one or more")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # CPU only; torch.manual_seed seeds all devices
        shape = (images.shape[1], images.shape[2], images.shape[3])
        coder = Autoencoder(shape, size, variational=beta > 0)
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
                torch.autograd.backward(_loss(coder, batch, beta, draw))
                optimizer.step()
                done += 1
    coder.zero_grad(set_to_none=True)
    return coder.requires_grad_(False).eval()


def _loss(coder: Autoencoder, images: Tensor, beta: float, draw: torch.Generator) -> Tensor:
    """Returns the mean squared error of a pixel plus the divergence's share of it; codes are drawn
    on the CPU."""
    if not beta:
        return F.mse_loss(coder(images), images)
    mean, log_variance = coder.distribution(images)
    noise = torch.randn(mean.shape, generator=draw).to(mean)
    codes = mean + (log_variance / 2).exp() * noise
    pixels = math.prod(coder.shape)
    rate = divergence(mean, log_variance).mean() / pixels
    return F.mse_loss(coder.decode(codes), images) + beta * rate

"""Noise keyed by (seed, example, stream, draw), and its distributions.

Each block of 100 draws has its own generator, seeded by the key, so a draw's noise is the same for
any batch size, order and worker. Gaussian after Cohen et al. (2019), uniform after Yang et al.
(2020), ablation after Levine and Feizi (2020).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from raybust.errors import RequestError
from raybust.numerics import bounds

BLOCK = 100
"""Draws per block; batches are multiples of it."""

Stream = Literal["pilot", "estimate"]
"""`pilot` draws choose the class, `estimate` draws bound its probability; they are independent."""

NoiseName = Literal["gaussian", "uniform", "ablation"]
Norm = Literal["l2", "linf", "l1", "l0"]

NORMS: dict[str, tuple[Norm, ...]] = {
    "gaussian": ("l2", "linf"),
    "uniform": ("l1",),
    "ablation": ("l0",),
}
"""Norms that each noise certifies, the native one first."""

ABLATED = 0.5
"""Value of a pixel that is not kept (our choice; Levine and Feizi add channels instead, which
needs a special network)."""


def block_seed(seed: int, example: int, stream: Stream, block: int) -> int:
    """Returns the generator seed of a block, in [0, 2^63).

    blake2b of (seed, example) gives the high 31 bits and the start of the low 32; the block counts
    up from that start in stream `estimate`, down in `pilot`. PyTorch's CPU generator reads only the
    low 32 bits: hashed seeds would collide within about one in 10,000 examples of 100,000 draws,
    consecutive ones never do.

    Args:
        seed: the protocol's seed.
        example: index of the example in its dataset.
        stream: `pilot` or `estimate`.
        block: number of the block, from 0, below 2^31.
    """
    key = f"raybust noise 1:{seed}:{example}".encode()
    digest = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
    offset = block if stream == "estimate" else -1 - block
    return digest & ~0xFFFFFFFF | (digest + offset) & 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """A smoothing distribution, the norm it certifies and the shape of its images.

    Attributes:
        noise: `gaussian`, `uniform` or `ablation`.
        norm: norm of the radius; one of `NORMS[noise]`.
        sigma: standard deviation per coordinate, > 0; `uniform` has half-width sigma sqrt(3),
            `ablation` ignores it.
        keep: pixels kept by `ablation`, ignored by the others.
        shape: (C, H, W) of an image.
    """

    noise: NoiseName
    norm: Norm
    sigma: float
    keep: int
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        allowed = NORMS[self.noise]
        if self.norm not in allowed:
            raise RequestError(
                f"certify.norm: {self.noise} noise certifies {' and '.join(allowed)}, "
                f"not {self.norm}"
            )
        if self.noise == "ablation" and not 1 <= self.keep < self.pixels:
            raise RequestError(
                f"certify.keep: got {self.keep}, expected 1 to {self.pixels - 1}, fewer than the "
                f"{self.pixels} pixels of the image"
            )

    @property
    def pixels(self) -> int:
        """H x W."""
        return self.shape[1] * self.shape[2]

    @cached_property
    def _exact_radius(self) -> Callable[[float], float]:
        if self.noise == "uniform":
            return lambda p: bounds.uniform_radius(p, self.sigma * math.sqrt(3.0))
        if self.noise == "ablation":
            return lambda p: bounds.ablation_radius(p, self.pixels, self.keep)
        scale = 1.0 if self.norm == "l2" else 1.0 / math.sqrt(math.prod(self.shape))
        return lambda p: bounds.gaussian_radius(p, self.sigma) * scale

    def radius(self, p: float) -> float:
        """Returns the radius certified by a lower bound p on the class probability, rounded down.

        Linf is the L2 radius over sqrt(d): the L2 ball contains that Linf ball. 0 at p <= 1/2.
        """
        exact = self._exact_radius(p)
        return exact if self.noise == "ablation" else bounds.round_down(exact)

    def probability(self, radius: float) -> float:
        """Returns the smallest p that certifies a radius (inverse of `radius`), 1 if none does."""
        return bounds.invert_increasing(self.radius, radius) if radius > 0 else 0.5

    def fill(self, block: Tensor, image: Tensor, generator: torch.Generator) -> None:
        """Fills `block` with 100 noisy copies of an image, in float32.

        Args:
            block: (100, H, W, C), contiguous: the noise is drawn in this order.
            image: (H, W, C) in [0, 1], on the same device.
            generator: seeded for the block, on the same device.
        """
        if self.noise == "gaussian":
            block.normal_(generator=generator).mul_(self.sigma).add_(image)
        elif self.noise == "uniform":
            half = self.sigma * math.sqrt(3.0)
            block.uniform_(-half, half, generator=generator).add_(image)
        else:
            scores = torch.rand(
                len(block),
                self.pixels,
                dtype=torch.float64,  # in float32 equal scores would favor early pixels
                generator=generator,
                device=block.device,
            )
            kept = scores.argsort(dim=1, stable=True)[:, : self.keep]
            mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, kept, True)
            mask = mask.view(len(block), *self.shape[1:], 1)
            block.copy_(torch.where(mask, image, ABLATED))


def draws(smoothing: Smoothing, seed: int, image: Tensor, key: tuple[int, Stream, int]) -> Tensor:
    """Returns the noisy copies (100, C, H, W) of a block, as the network sees them.

    Args:
        smoothing: the distribution.
        seed: the protocol's seed.
        image: float32 (C, H, W) in [0, 1], on the device whose generator is used.
        key: index of the example in its dataset, `pilot` or `estimate`, number of the block.
    """
    generator = torch.Generator(image.device)
    generator.manual_seed(block_seed(seed, *key))
    pixels = image.permute(1, 2, 0).contiguous()
    noisy = torch.empty((BLOCK, *pixels.shape), device=image.device)
    smoothing.fill(noisy, pixels, generator)
    return noisy.permute(0, 3, 1, 2)

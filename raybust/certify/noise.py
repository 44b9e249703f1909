"""Noise keyed by (seed, example, stream, draw), and the distributions that it is drawn from.

A block of 100 draws comes from one generator whose seed is made of the key, so that a draw's noise
is the same for every batch size, order and worker. Cohen et al. (2019) for the Gaussian, Yang et
al. (2020) for the uniform, Levine and Feizi (2020) for the ablation. Stage `certify` of the arrow.
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
"""Draws per block; a batch is a multiple of it."""

Stream = Literal["pilot", "estimate"]
"""`pilot` draws choose the class, `estimate` draws bound its probability; they are independent."""

NoiseName = Literal["gaussian", "uniform", "ablation"]
Norm = Literal["l2", "linf", "l1", "l0"]

NORMS: dict[str, tuple[Norm, ...]] = {
    "gaussian": ("l2", "linf"),
    "uniform": ("l1",),
    "ablation": ("l0",),
}
"""What each noise can certify; the first is its own norm."""

ABLATED = 0.5
"""Value of a pixel that is not kept (our choice; Levine and Feizi add channels instead, which
needs a network of its own)."""


def block_seed(seed: int, example: int, stream: Stream, block: int) -> int:
    """Returns the seed of the generator of one block, in [0, 2^63).

    The high 31 bits and the start of the low 32 are blake2b of (seed, example); the block counts up
    from that start in the stream `estimate`, down in `pilot`. PyTorch's CPU generator reads the low
    32 bits alone: hashed seeds would collide within an example about once in 10,000 examples of
    100,000 draws, counted ones never do.

    Args:
        seed: the protocol's seed.
        example: index of the example in its dataset.
        stream: which of the example's two streams.
        block: number of the block, from 0, below 2^31.
    """
    key = f"raybust noise 1:{seed}:{example}".encode()
    digest = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
    offset = block if stream == "estimate" else -1 - block
    return digest & ~0xFFFFFFFF | (digest + offset) & 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """A smoothing distribution, the norm that it certifies and the images that it is added to.

    Attributes:
        noise: `gaussian`, `uniform` or `ablation`.
        norm: norm of the radius; one of `NORMS[noise]`.
        sigma: standard deviation of each coordinate, > 0; for `uniform` the half width is
            sigma sqrt(3). Not used by `ablation`.
        keep: pixels kept by `ablation`; not used by the others.
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
                f"image's {self.pixels} pixels"
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
        """Returns the radius that a lower bound p of the class's probability certifies, rounded
        down.

        Linf is the L2 radius over sqrt(d): the Linf ball lies in that L2 ball. 0 at p <= 1/2.
        """
        exact = self._exact_radius(p)
        return exact if self.noise == "ablation" else bounds.round_down(exact)

    def probability(self, radius: float) -> float:
        """Returns the least p that certifies a radius, the inverse of `radius`; 1 where none
        does."""
        return bounds.invert_increasing(self.radius, radius) if radius > 0 else 0.5

    def fill(self, block: Tensor, image: Tensor, generator: torch.Generator) -> None:
        """Writes 100 noisy copies of an image into `block`: drawn and added in float32.

        Args:
            block: float32 (100, H, W, C), contiguous: the noise is drawn in this order.
            image: float32 (H, W, C) in [0, 1], on the same device.
            generator: at the block's seed, on the same device.
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
    """Returns the noisy copies (100, C, H, W) of one block: what the network sees, for an audit.

    Args:
        smoothing: the distribution.
        seed: the protocol's seed.
        image: float32 (C, H, W) in [0, 1]; its device decides the generator.
        key: index of the example in its dataset, `pilot` or `estimate`, number of the block from 0.
    """
    generator = torch.Generator(image.device)
    generator.manual_seed(block_seed(seed, *key))
    pixels = image.permute(1, 2, 0).contiguous()
    noisy = torch.empty((BLOCK, *pixels.shape), device=image.device)
    smoothing.fill(noisy, pixels, generator)
    return noisy.permute(0, 3, 1, 2)

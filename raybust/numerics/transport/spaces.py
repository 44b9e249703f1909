"""Where a batch of images is coupled and mixed: pixels, pixels with the cost of features, codes of
an autoencoder. Part of numerics.

Only where cost and points are the same are the curves geodesics. With the cost of features and a
mixture of pixels they are straight lines between transported pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raybust.numerics.autoencoder import Autoencoder

Counter = Callable[[int], None]
"""Is told how many images go through another network than the one under training."""


class Space(NamedTuple):
    """A batch of B images as points.

    Attributes:
        cost: (B, ...), the points whose squared distances are the cost.
        points: (B, ...), what is mixed.
        decode: from mixed points to images (B, C, H, W); None where they are images.
    """

    cost: Tensor
    points: Tensor
    decode: Callable[[Tensor], Tensor] | None = None


def pixel_space(images: Tensor) -> Space:
    """Returns images (B, C, H, W) as points of their own."""
    return Space(images, images)


def feature_cost(embed: Callable[[Tensor], Tensor], images: Tensor) -> Space:
    """Returns images (B, C, H, W) with the cost of their features.

    Args:
        embed: images to features (B, D), without a gradient.
        images: (B, C, H, W).
    """
    return Space(embed(images).detach(), images)


def latent_space(coder: Autoencoder, images: Tensor, count: Counter) -> Space:
    """Returns the codes of images (B, C, H, W), with the decoder.

    Args:
        coder: frozen.
        images: (B, C, H, W) in [0, 1].
        count: is told of every image that is encoded or decoded.
    """

    def decode(codes: Tensor) -> Tensor:
        count(len(codes))
        return coder.decode(codes)

    count(len(images))
    with torch.no_grad():
        codes = coder.encode(images)
    return Space(codes, codes, decode)


def penultimate(network: nn.Module, images: Tensor) -> Tensor:
    """Returns what goes into the network's last linear layer, flattened (B, D), without a gradient;
    one forward pass in the mode that the network is in.

    Args:
        network: from images to logits, `nn.Linear` at its end.
        images: (B, C, H, W).

    Raises:
        ValueError: it has no linear layer, or did not use it once.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError("penultimate features: the network has no nn.Linear")
    seen: list[Tensor] = []
    handle = layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        # A compiled network calls no hooks of its layers.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            network(images)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ValueError(f"penultimate features: the last nn.Linear was used {len(seen)} times")
    return seen[0].flatten(1)

"""Spaces in which a batch of images is coupled and mixed: pixels, pixels with a feature cost, codes
of an autoencoder.

The curves are geodesics only if cost and points are the same. With a feature cost and mixed pixels
they are straight lines between transported pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raybust.numerics.autoencoder import Autoencoder

Counter = Callable[[int], None]
"""Called with the number of images that pass through a network other than the trained one."""


class Space(NamedTuple):
    """A batch of B images as points.

    Attributes:
        cost: (B, ...), points whose squared distances are the cost.
        points: (B, ...), points to mix.
        decode: mixed points to images (B, C, H, W); None if the points are images.
    """

    cost: Tensor
    points: Tensor
    decode: Callable[[Tensor], Tensor] | None = None


def pixel_space(images: Tensor) -> Space:
    """Returns images (B, C, H, W) as points in pixel space."""
    return Space(images, images)


def feature_cost(embed: Callable[[Tensor], Tensor], images: Tensor) -> Space:
    """Returns images (B, C, H, W) with the cost between their features.

    Args:
        embed: images to features (B, D), without gradient.
        images: (B, C, H, W).
    """
    return Space(embed(images).detach(), images)


def latent_space(coder: Autoencoder, images: Tensor, count: Counter) -> Space:
    """Returns the codes of images (B, C, H, W), with the decoder.

    Args:
        coder: frozen.
        images: (B, C, H, W) in [0, 1].
        count: called with the number of images encoded or decoded.
    """
    count(len(images))
    with torch.no_grad():
        codes = coder.encode(images)
    return Space(codes, codes, decoding(coder, count))


def decoding(coder: Autoencoder, count: Counter) -> Callable[[Tensor], Tensor]:
    """Returns the decoder as a function of codes (B, D) that counts the images it decodes."""

    def decode(codes: Tensor) -> Tensor:
        count(len(codes))
        return coder.decode(codes)

    return decode


def penultimate(network: nn.Module, images: Tensor) -> Tensor:
    """Returns the flattened input (B, D) of the network's last linear layer, without gradient; one
    forward pass in the network's current mode.

    Args:
        network: images to logits, ending in an `nn.Linear`.
        images: (B, C, H, W).

    Raises:
        ValueError: there is no linear layer, or it was not used exactly once.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError("penultimate features: the network has no nn.Linear")
    seen: list[Tensor] = []
    handle = layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        # Compiled networks skip the hooks of their layers.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            network(images)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ValueError(f"penultimate features: the last nn.Linear was used {len(seen)} times")
    return seen[0].flatten(1)

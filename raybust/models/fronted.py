"""A network with a module in front of it that transforms images, such as a defense.

What is in front is part of the network: checkpoint, attack and certificate meet the whole. The
parts keep their names, so that an evaluation can also attack the network without the module.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class Fronted(nn.Sequential):
    """A `front` module and a `network`, in that order."""

    front: nn.Module
    network: nn.Module

    def __init__(self, front: nn.Module, network: nn.Module) -> None:
        """Joins them.

        Args:
            front: images (B, C, H, W) to images of the same shape.
            network: images in [0, 1] to logits (B, K).
        """
        super().__init__(OrderedDict(front=front, network=network))

"""A network behind a module that transforms images, such as a defense.

The front module is part of the network: checkpoint, attack and certificate use the combination. The
parts keep their names, so an evaluation can also attack the network without the module.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class Fronted(nn.Sequential):
    """A `front` module followed by a `network`."""

    front: nn.Module
    network: nn.Module

    def __init__(self, front: nn.Module, network: nn.Module) -> None:
        """Chains the two modules.

        Args:
            front: maps images (B, C, H, W) to images of the same shape.
            network: maps images in [0, 1] to logits (B, K).
        """
        super().__init__(OrderedDict(front=front, network=network))

"""A small ConvMixer: Trockman and Kolter, "Patches Are All You Need?" (2022, arXiv:2201.09792)."""

from __future__ import annotations

from torch import Tensor, nn


def conv_mixer(num_classes: int, in_channels: int) -> nn.Module:
    """A ConvMixer of width 32 and depth 3 with patches of 2 x 2; Trockman and Kolter, 2022,
    arXiv:2201.09792.

    Args:
        num_classes: number of logits.
        in_channels: channels of an image.
    """
    width, depth = 32, 3
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 2, stride=2),
        nn.GELU(),
        nn.BatchNorm2d(width),
        *(Block(width) for _ in range(depth)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )


class Block(nn.Module):
    """A depthwise convolution with a skip connection, then a pointwise one."""

    def __init__(self, width: int) -> None:
        """Builds both.

        Args:
            width: number of channels.
        """
        super().__init__()
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 5, groups=width, padding=2), nn.GELU(), nn.BatchNorm2d(width)
        )
        self.channels = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, width, H, W) to features of the same shape."""
        mixed: Tensor = self.channels(self.spatial(images) + images)
        return mixed

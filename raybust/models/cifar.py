"""Built-in networks for small images; all are plain modules that torch.fx can trace.

ResNet-20/56/110 follow He, Zhang, Ren and Sun (2016, arXiv:1512.03385, section 4.2), with
parameter-free shortcuts (option A). Pre-activation ResNet-18 follows He, Zhang, Ren and Sun (2016,
arXiv:1603.05027), WRN-28-10 Zagoruyko and Komodakis (2016, arXiv:1605.07146) with dropout 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def small_cnn(shape: tuple[int, int, int], num_classes: int, width: int) -> nn.Module:
    """Returns a CNN with three convolutions and two linear layers, without normalization layers.

    Args:
        shape: (C, H, W) of an image, H and W >= 4.
        num_classes: number K of logits.
        width: channels of the first convolution; the other two have twice as many.
    """
    channels, image_height, image_width = shape
    positions = -(-image_height // 4) * -(-image_width // 4)
    network = nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * positions, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )
    return initialize(network)


def lenet(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Returns LeNet-5 (LeCun, Bottou, Bengio and Haffner, 1998) with ReLU and max pooling, as later
    papers on MNIST use it: 61,706 weights for 28 x 28 gray images and ten classes.

    Args:
        shape: (C, H, W) of an image, H and W >= 4. Below 20 pixels the second convolution is padded
            too (our choice).
        num_classes: number K of logits.
    """
    channels, *sides = shape
    padding = 0 if min(sides) >= 20 else 2
    height, width = (((side // 2) - 4 + 2 * padding) // 2 for side in sides)
    network = nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * height * width, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )
    return initialize(network)


def initialize(network: nn.Module) -> nn.Module:
    """Draws convolution and linear weights from N(0, 2 / fan_in) and zeroes biases (He, Zhang, Ren
    and Sun, 2015, arXiv:1502.01852); returns the network."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _conv3x3(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)


class PadShortcut(nn.Module):
    """Option A: takes every second pixel and pads zero channels on both sides; no parameters."""

    def __init__(self, added: int) -> None:
        """Stores the even number of channels to add."""
        super().__init__()
        self.added = added

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (B, C, H, W) to (B, C + added, ceil(H / 2), ceil(W / 2))."""
        return F.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added // 2))


class Block(nn.Module):
    """Convolution, batch norm, ReLU, convolution, batch norm, plus shortcut, ReLU."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        """Builds a block from `before` to `after` channels."""
        super().__init__()
        self.conv1 = _conv3x3(before, after, stride)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(after, after)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Identity() if stride == 1 else PadShortcut(after - before)
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (B, before, H, W) to (B, after, H / stride, W / stride)."""
        inner = self.relu1(self.bn1(self.conv1(features)))
        result: Tensor = self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(features))
        return result


class ResNet(nn.Module):
    """ResNet of depth 6 n + 2 for small images: three stages of n blocks, 16, 32, 64 channels."""

    def __init__(self, channels: int, num_classes: int, depth: int) -> None:
        """Builds the network with He initialization.

        Args:
            channels: number of image channels.
            num_classes: number K of logits.
            depth: 6 n + 2.
        """
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu1 = nn.ReLU()
        self.layer1 = _stage(Block, 16, 16, blocks, stride=1)
        self.layer2 = _stage(Block, 16, 32, blocks, stride=2)
        self.layer3 = _stage(Block, 32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (B, K) of normalized images (B, C, H, W)."""
        features = self.relu1(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(self.flatten(self.pool(features)))
        return logits


class PreActBlock(nn.Module):
    """Batch norm, ReLU, convolution, twice, plus shortcut.

    If the shape changes, the shortcut is a 1x1 convolution of the first ReLU's output.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        """Builds a block from `before` to `after` channels."""
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv3x3(before, after, stride)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu2 = nn.ReLU()
        self.conv2 = _conv3x3(after, after)
        self.projects = stride != 1 or before != after
        if self.projects:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (B, before, H, W) to (B, after, H / stride, W / stride)."""
        active = self.relu1(self.bn1(features))
        inner = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        total: Tensor = inner + (self.shortcut(active) if self.projects else features)
        return total


class PreActResNet(nn.Module):
    """Pre-activation residual network for small images; wide stages make it a WRN."""

    def __init__(
        self, channels: int, num_classes: int, *, stem: int, widths: Sequence[int], blocks: int
    ) -> None:
        """Builds the network with He initialization.

        Args:
            channels: number of image channels.
            num_classes: number K of logits.
            stem: channels of the first convolution.
            widths: channels per stage; all stages but the first halve H and W.
            blocks: blocks per stage.
        """
        super().__init__()
        self.conv1 = _conv3x3(channels, stem)
        self.stages = len(widths)
        for index, (before, after) in enumerate(zip((stem, *widths), widths, strict=False), 1):
            stage = _stage(PreActBlock, before, after, blocks, stride=1 if index == 1 else 2)
            self.add_module(f"layer{index}", stage)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(widths[-1], num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (B, K) of normalized images (B, C, H, W)."""
        features = self.conv1(images)
        for index in range(1, self.stages + 1):
            features = self.get_submodule(f"layer{index}")(features)
        features = self.relu(self.bn(features))
        logits: Tensor = self.linear(self.flatten(self.pool(features)))
        return logits


def _stage(
    block: type[Block] | type[PreActBlock], before: int, after: int, blocks: int, stride: int
) -> nn.Sequential:
    others = (block(after, after, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(before, after, stride), *others)

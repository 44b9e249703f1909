"""Boxes of features, on a tape: what interval propagation carries and linear bounds walk back over.

A box contains the features of every input in the ball. Widened boxes are sound in floating point:
with u the unit roundoff, a sum of n products in any order is off by at most gamma_n = n u / (1 - n
u) times the sum of its terms' sizes (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
section 3.1), once in our arithmetic and once in the network's own, so a widened box contains both
the features of real arithmetic and those that the network computes in the box's dtype.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from raybust.numerics.relaxation.steps import Step

_NUMBERS = itertools.count()

Statistics = Mapping[nn.Module, tuple[Tensor, Tensor]]
"""Mean and biased variance per channel that batch norms in train mode normalize by."""


@dataclass(frozen=True)
class Setting:
    """How boxes are computed.

    Attributes:
        widen: whether rounding errors are added, outward: for certificates. Losses do without.
        tight: whether a ReLU's input is bounded by linear bounds too, at a pass per feature.
        statistics: of batch norms in train mode.
    """

    widen: bool = True
    tight: bool = False
    statistics: Statistics = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Box:
    """The features between center - radius and center + radius, in exact arithmetic.

    Attributes:
        center: (B, C, H, W) or (B, D).
        radius: of the same shape, >= 0.
        setting: how it was computed.
        step: that it came from; None for the input.
        sources: boxes that the step was applied to.
        number: position on the tape.
    """

    center: Tensor
    radius: Tensor
    setting: Setting
    step: Step | None = None
    sources: tuple[Box, ...] = ()
    number: int = field(default_factory=lambda: next(_NUMBERS))

    @property
    def shape(self) -> torch.Size:
        """Shape of one image's features."""
        return self.center.shape[1:]

    @property
    def extent(self) -> Tensor:
        """The largest size of each feature."""
        return self.center.abs() + self.radius

    @property
    def unit(self) -> float:
        """The unit roundoff, 0 if rounding errors are not added."""
        return torch.finfo(self.center.dtype).eps / 2 if self.setting.widen else 0.0

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, rounded outward."""
        radius = self.radius
        if self.setting.widen:
            radius = torch.add(radius, self.extent, alpha=4 * self.unit)
        return self.center - radius, self.center + radius

    def gamma(self, terms: int) -> float:
        """The relative error of a sum of so many terms."""
        return terms * self.unit / (1 - terms * self.unit)


def between(
    lower: Tensor,
    upper: Tensor,
    setting: Setting,
    step: Step | None = None,
    sources: tuple[Box, ...] = (),
) -> Box:
    """Returns the box between two ends of the same shape.

    Args:
        lower: (B, ...).
        upper: (B, ...), nowhere smaller.
        setting: of the box.
        step: that the box came from.
        sources: of the step.
    """
    box = Box((lower + upper) / 2, (upper - lower) / 2, setting, step, sources)
    if not setting.widen:
        return box
    sizes = torch.maximum(lower.abs(), upper.abs())
    radius = torch.add(box.radius.clamp_min(0), sizes, alpha=4 * box.unit)
    return Box(box.center, radius, setting, step, sources)


def ball(images: Tensor, eps: float | Tensor, setting: Setting) -> Box:
    """Returns the Linf ball around images, cut to [0, 1].

    Args:
        images: (B, C, H, W) in [0, 1].
        eps: radius >= 0, pixels in [0, 1]; or float64 (B,), one for each image.
        setting: of the box.
    """
    if isinstance(eps, Tensor):
        eps = eps[:, None, None, None]
    if not setting.widen:
        return between((images - eps).clamp(0, 1), (images + eps).clamp(0, 1), setting)
    exact = images.double()
    lower, upper = (exact - eps).clamp(0, 1), (exact + eps).clamp(0, 1)
    center = ((lower + upper) / 2).to(images.dtype)
    radius = torch.maximum(upper - center.double(), center.double() - lower)
    room = 4 * torch.finfo(torch.float64).eps * (1 + eps)  # of the ends themselves
    tiny = torch.finfo(images.dtype).eps
    widened = (radius * (1 + 4 * tiny) + room).to(images.dtype)
    return Box(center, widened, setting)

"""The steps of a network as boxes and linear bounds see them: affine maps, sums, (leaky) ReLU and
max pooling.

Each step maps boxes forward (interval propagation: Gowal et al., 2018, arXiv:1810.12715) and
coefficients of a linear lower bound backward (CROWN: Zhang et al., NeurIPS 2018, arXiv:1811.00866,
with its adaptive lower line). Notation: J rows of coefficients for each of B images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raybust.numerics.relaxation.box import Box, between


class Step(ABC):
    """One step of a network."""

    @abstractmethod
    def forward(self, *sources: Box) -> Box:
        """Returns the box of the step's output."""

    @abstractmethod
    def backward(self, rows: Tensor, sources: tuple[Box, ...]) -> tuple[list[Tensor], Tensor]:
        """Rewrites a lower bound of rows @ output as one of the sources.

        Args:
            rows: (J, B, ...), coefficients of the step's output.
            sources: the step's inputs.

        Returns:
            The coefficients of each source, (J, B, ...), and the constant (J, B), rounding errors
            taken off.
        """


@dataclass(frozen=True)
class Affine(Step):
    """x -> L x + c.

    Attributes:
        apply: maps features (B, ...) to L x + c.
        magnitude: maps sizes of features (B, ...) to |L| x.
        transpose: maps coefficients (M, ...) of the output, and the shape of an input (...), to
            those of the input.
        constant: c, broadcastable to the output.
        offset: sizes of the constants inside the step, at least |c|, broadcastable too.
        terms: products that an entry of the output or of the transposed map sums up, at least 3;
            0 for a step that only moves features.
    """

    apply: Callable[[Tensor], Tensor]
    magnitude: Callable[[Tensor], Tensor]
    transpose: Callable[[Tensor, torch.Size], Tensor]
    constant: Tensor | None = None
    offset: Tensor | None = None
    terms: int = 0

    def forward(self, *sources: Box) -> Box:
        """|L| maps the radius."""
        (x,) = sources
        center, share = self.apply(x.center), 2 * x.gamma(self.terms)
        if not share:
            return Box(center, self.magnitude(x.radius), x.setting, self, sources)
        radius = self.magnitude(torch.add(x.radius, x.extent, alpha=share))
        if self.offset is not None:
            radius = radius + share * self.offset
        radius = radius * (1 + 2 * share) + torch.finfo(radius.dtype).tiny * self.terms
        return Box(center, radius, x.setting, self, sources)

    def backward(self, rows: Tensor, sources: tuple[Box, ...]) -> tuple[list[Tensor], Tensor]:
        """Exact up to rounding."""
        (x,) = sources
        count, images = rows.shape[:2]
        moved = self.transpose(rows.flatten(0, 1), x.shape).reshape(count, images, *x.shape)
        total = rows.new_zeros(())
        if self.constant is not None:
            total = dot(rows, self.constant, x)
        share = 2 * x.gamma(self.terms)
        if share:
            sizes = self.magnitude(x.extent)
            if self.offset is not None:
                sizes = sizes + self.offset
            total = total - share * (1 + 2 * share) * room(rows, sizes, x)
        return [moved], total


class Sum(Step):
    """x + y."""

    def forward(self, *sources: Box) -> Box:
        """Adds centers and radii."""
        x, y = sources
        radius = x.radius + y.radius
        if x.unit:
            radius = radius + 4 * x.unit * (x.extent + y.extent)
        return Box(x.center + y.center, radius, x.setting, self, sources)

    def backward(self, rows: Tensor, sources: tuple[Box, ...]) -> tuple[list[Tensor], Tensor]:
        """Both sources have the coefficients of the sum."""
        x, y = sources
        total = rows.new_zeros(())
        if x.unit:
            total = -4 * x.unit * room(rows, x.extent + y.extent, x)
        return [rows, rows], total


@dataclass(frozen=True)
class Rectifier(Step):
    """max(x, slope x), 0 <= slope <= 1."""

    slope: float = 0.0

    def forward(self, *sources: Box) -> Box:
        """Maps both ends."""
        (x,) = sources
        lower, upper = (F.leaky_relu(end, self.slope) if self.slope else F.relu(end)
                        for end in x.ends)  # fmt: skip
        if x.unit and self.slope:
            lower = lower - 2 * x.unit * lower.abs()
            upper = upper + 2 * x.unit * upper.abs()
        if not x.unit or self.slope:
            return between(lower, upper, x.setting, self, sources)
        radius = torch.add((upper - lower) / 2, upper, alpha=4 * x.unit)  # 0 <= lower <= upper
        return Box((lower + upper) / 2, radius, x.setting, self, sources)

    def backward(self, rows: Tensor, sources: tuple[Box, ...]) -> tuple[list[Tensor], Tensor]:
        """The chord bounds from above, the line of slope 1 or `slope` with the smaller area from
        below."""
        (x,) = sources
        lower, upper = x.ends
        crosses = (lower < 0) & (upper > 0)
        width = (upper - lower).where(crosses, torch.ones_like(upper))
        below = torch.where(upper > -lower, torch.ones_like(upper), self.slope)
        chord = ((upper - self.slope * lower) / width).clamp(self.slope, 1).where(crosses, below)
        high = torch.maximum(self.slope * lower - chord * lower, upper - chord * upper)
        high = (high + 8 * x.unit * (lower.abs() + upper.abs())).where(
            crosses, torch.zeros_like(high)
        )
        over, under = rows.clamp_max(0), rows.clamp_min(0)
        total = dot(over, high, x)
        if x.unit:
            total = total - 6 * x.unit * room(rows, x.extent, x)
        return [under * below + over * chord], total


@dataclass(frozen=True)
class MaxPool(Step):
    """Max pooling; `options` as in F.max_pool2d."""

    options: dict[str, Any]

    def forward(self, *sources: Box) -> Box:
        """Pools both ends."""
        (x,) = sources
        lower, upper = (F.max_pool2d(end, **self.options) for end in x.ends)
        return between(lower, upper, x.setting, self, sources)

    def backward(self, rows: Tensor, sources: tuple[Box, ...]) -> tuple[list[Tensor], Tensor]:
        """From below the pixel with the largest lower end, from above the largest upper end (our
        choice, the simplest sound one)."""
        (x,) = sources
        lower, upper = x.ends
        pixel = F.max_pool2d(lower, **self.options, return_indices=True)[1].flatten(2)
        over, under = rows.clamp_max(0), rows.clamp_min(0)
        moved = rows.new_zeros(*rows.shape[:3], upper.shape[2:].numel())
        moved = moved.scatter_add(3, pixel.expand(len(rows), *pixel.shape), under.flatten(3))
        total = dot(over, F.max_pool2d(upper, **self.options), x)
        if x.unit:
            window = self.options["kernel_size"]
            terms = window**2 if isinstance(window, int) else window[0] * window[1]
            largest = F.max_pool2d(x.extent, **self.options)
            total = total - 2 * x.gamma(terms) * room(rows, largest, x)
        return [moved.reshape(*rows.shape[:2], *x.shape)], total


def dot(rows: Tensor, values: Tensor, box: Box) -> Tensor:
    """Returns the inner products (J, B) of rows (J, B, ...) and values (B, ...) or broadcastable to
    it, in float64 if the box is widened: their rounding is then below that of the box."""
    kind = torch.float64 if box.setting.widen else rows.dtype
    values = values.reshape([1] * (rows.ndim - 1 - values.ndim) + list(values.shape))
    lone = [axis for axis in range(2, rows.ndim) if values.shape[axis - 1] == 1]
    if lone:
        rows = rows.sum(lone, keepdim=True, dtype=kind)
    values = values.to(kind).expand(rows.shape[1:])
    return torch.einsum("jbd,bd->jb", rows.to(kind).flatten(2), values.flatten(1))


def room(rows: Tensor, sizes: Tensor, box: Box) -> Tensor:
    """Returns an upper bound (J, B) of the inner products of |rows| (J, B, ...) and sizes >= 0, in
    the dtype of the rows.

    Args:
        rows: coefficients.
        sizes: (B, ...) or broadcastable to it.
        box: gives the unit roundoff.
    """
    sizes = sizes.expand(rows.shape[1:]).flatten(1)
    found = torch.einsum("jbd,bd->jb", rows.abs().flatten(2), sizes)
    return found * (1 + 2 * box.gamma(sizes.shape[1] + 3))

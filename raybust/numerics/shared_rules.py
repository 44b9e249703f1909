"""Rules that moments and bounds share: steps that only move features, and ReLUs.

Each kind of value says how it does three things; the checks of a call's arguments are the same.
Notation: features of B images, (B, ...).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shared:
    """What a kind of value does in place of features.

    Attributes:
        kind: its class.
        values: returns features of its shape, (B, ...).
        moved: applies a function that only selects, moves and pads the features of each image.
        flattened: joins channels and pixels into one axis.
        rectified: applies a leaky ReLU of a slope, 0 for a ReLU.
    """

    kind: type[Any]
    values: Callable[[Any], Tensor]
    moved: Callable[[Any, Move], Any]
    flattened: Callable[[Any], Any]
    rectified: Callable[[Any, float], Any]

    def rules(self) -> dict[Any, Callable[..., Any]]:
        """Returns the rules, by module class, function, or name of a tensor method."""
        table: dict[tuple[Any, ...], Callable[..., Any]] = {
            (nn.Identity,): lambda module, x: x,
            ("contiguous",): lambda x, *args, **kwargs: x,
            (nn.Flatten,): lambda module, x: self.flatten(x, module.start_dim, module.end_dim),
            (torch.flatten, "flatten"): self.flatten,
            ("view", "reshape", torch.reshape): self.reshape,
            ("size",): self.size,
            (getattr,): self.attribute,
            (operator.getitem,): self.select,
            (F.pad,): self.pad,
            (nn.ZeroPad2d,): lambda module, x: self.pad(x, module.padding),
            (nn.ReLU,): lambda module, x: self.rectified(x, 0.0),
            (nn.LeakyReLU,): lambda module, x: self.leaky(x, module.negative_slope),
            (F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_"): self.relu,
            (F.leaky_relu,): self.leaky,
        }
        return {key: rule for keys, rule in table.items() for key in keys}

    def flatten(self, x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
        """Joins channels and pixels into one axis."""
        if start_dim != 1 or end_dim not in (-1, self.values(x).ndim - 1):
            raise ValueError(f"flatten({start_dim}, {end_dim}), expected flatten(1)")
        return self.flattened(x)

    def reshape(self, x: Any, *shape: Any) -> Any:
        """The same as a view of shape (B, -1)."""
        sizes = tuple(shape[0]) if isinstance(shape[0], (tuple, list)) else shape
        if len(sizes) != 2 or sizes[0] not in (-1, len(self.values(x))):
            raise ValueError(f"a reshape to {sizes}, expected (B, -1)")
        return self.flattened(x)

    def size(self, x: Any, dim: int | None = None) -> Any:
        """Returns the size of the features."""
        values = self.values(x)
        return values.size() if dim is None else values.size(dim)

    def attribute(self, x: Any, name: str) -> Any:
        """Returns what does not depend on the values of features."""
        if name not in ("shape", "ndim", "device", "dtype"):
            raise ValueError(f"the attribute '{name}' of features")
        return getattr(self.values(x), name)

    def select(self, x: Any, index: Any) -> Any:
        """Selects slices of every image."""
        if not isinstance(x, self.kind):
            return x[index]
        whole = slice(None)
        parts = index if isinstance(index, tuple) else (index,)
        if parts[0] not in (whole, ...) or not all(isinstance(p, slice) or p is ... for p in parts):
            raise ValueError(f"an index {index}, expected slices that keep every image")
        return self.moved(x, lambda features: features[index])

    def pad(self, x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
        """Pads with zeros."""
        if mode != "constant" or value:
            raise ValueError(f"padding in mode '{mode}' with {value}, expected zeros")
        return self.moved(x, lambda features: F.pad(features, pad))

    def relu(self, x: Any, inplace: bool = False) -> Any:
        """A ReLU."""
        return self.rectified(x, 0.0)

    def leaky(self, x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
        """A leaky ReLU."""
        if not 0 <= negative_slope <= 1:
            raise ValueError(f"a leaky slope of {negative_slope}, expected 0 <= slope <= 1")
        return self.rectified(x, negative_slope)

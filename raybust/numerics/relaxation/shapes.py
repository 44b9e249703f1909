"""Rules for layers that pool, select, move and flatten features.

All but max pooling are linear maps without negative entries, so a radius passes through them like
the features themselves; their transposed maps are autograd's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.numerics.relaxation.box import Box
from raybust.numerics.relaxation.layers import RULES, rectified, register
from raybust.numerics.relaxation.steps import Affine, MaxPool
from raybust.numerics.shared_rules import Shared
from raybust.numerics.tracing import named

_AVERAGE = {
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}
_MAX = {"kernel_size": None, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}


def _moved(x: Box, function: Callable[[Tensor], Tensor], terms: int = 0) -> Box:
    """Applies a linear map without negative entries that keeps images apart."""

    def transposed(rows: Tensor, shape: torch.Size) -> Tensor:
        with torch.enable_grad():
            point = rows.new_zeros(len(rows), *shape).requires_grad_()
            value = function(point)
        graph = torch.is_grad_enabled()
        return torch.autograd.grad(value, point, rows, create_graph=graph)[0]

    return Affine(function, function, transposed, terms=terms).forward(x)


@register(nn.AvgPool2d)
def _average_module(module: nn.AvgPool2d, x: Box) -> Box:
    return _average(x, **{name: getattr(module, name) for name in _AVERAGE})


@register(F.avg_pool2d)
def _average(x: Box, *args: Any, **kwargs: Any) -> Box:
    given = named(_AVERAGE, args, kwargs)
    divisor = given["divisor_override"]
    if divisor is not None and divisor <= 0:
        raise ValueError(f"average pooling with divisor_override={divisor}")
    return _moved(x, lambda features: F.avg_pool2d(features, **given), _pixels(x) + 3)


@register(nn.AdaptiveAvgPool2d)
def _adaptive_module(module: nn.AdaptiveAvgPool2d, x: Box) -> Box:
    return _adaptive(x, module.output_size)


@register(F.adaptive_avg_pool2d)
def _adaptive(x: Box, output_size: Any) -> Box:
    return _moved(x, lambda features: F.adaptive_avg_pool2d(features, output_size), _pixels(x) + 3)


@register(torch.mean, "mean")
def _mean(x: Box, dim: Any = None, keepdim: bool = False) -> Box:
    """Mean over height and width, as in the global pooling of torchvision and timm."""
    if sorted(d % x.center.ndim for d in dim or ()) != [2, 3]:
        raise ValueError(f"a mean over dim={dim}, expected height and width, (2, 3)")
    return _moved(x, lambda features: features.mean((2, 3), keepdim), _pixels(x) + 3)


def _pixels(x: Box) -> int:
    return x.shape[1:].numel()


@register(nn.MaxPool2d)
def _max_module(module: nn.MaxPool2d, x: Box) -> Box:
    if module.return_indices:
        raise ValueError("max pooling that returns indices")
    return _max(x, **{name: getattr(module, name) for name in _MAX})


@register(F.max_pool2d)
def _max(x: Box, *args: Any, **kwargs: Any) -> Box:
    given = named({**_MAX, "return_indices": False}, args, kwargs)
    if given.pop("return_indices"):
        raise ValueError("max pooling that returns indices")
    return MaxPool(given).forward(x)


def _flattened(x: Box) -> Box:
    return _moved(x, lambda features: features.flatten(1))


SHARED = Shared(Box, lambda x: x.center, _moved, _flattened, rectified)
RULES.update(SHARED.rules())
flatten = SHARED.flatten

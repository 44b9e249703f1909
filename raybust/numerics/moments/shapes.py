"""Rules for layers that pool, select, move and flatten features.

Average pooling divides a channel covariance by the number of pixels in a window, which is exact for
independent pixels, as in Zhen, Chakraborty and Singh (CVPR 2021, arXiv:2104.05888). Max pooling
(our approximation; they replace it) takes the pixel with the largest mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.numerics.moments.covariance import Pooling
from raybust.numerics.moments.layers import RULES, rectified, register
from raybust.numerics.moments.state import Moments
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
_MAX = {
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "dilation": 1,
    "ceil_mode": False,
    "return_indices": False,
}


@register(nn.AvgPool2d)
def _average_module(module: nn.AvgPool2d, x: Moments) -> Moments:
    return _average(x, **{name: getattr(module, name) for name in _AVERAGE})


@register(F.avg_pool2d)
def _average(x: Moments, *args: Any, **kwargs: Any) -> Moments:
    given = named(_AVERAGE, args, kwargs)
    if given["ceil_mode"] or given["divisor_override"] is not None:
        raise ValueError("average pooling with ceil_mode or divisor_override")
    size, place = given["kernel_size"], (given["kernel_size"], given["stride"], given["padding"])
    windows = torch.tensor(float(math.prod(_two(size))), device=x.mean.device)
    if not given["count_include_pad"]:
        inside = F.avg_pool2d(torch.ones_like(x.mean[:1, :1]), *place)
        windows = inside[0, 0] * windows
    pooling = Pooling(lambda features: F.avg_pool2d(features, **given), windows)
    return x.then(pooling.apply(x.mean), lambda c, before: c.pooled(pooling, before))


@register(nn.AdaptiveAvgPool2d)
def _adaptive_module(module: nn.AdaptiveAvgPool2d, x: Moments) -> Moments:
    return _adaptive(x, module.output_size)


@register(F.adaptive_avg_pool2d)
def _adaptive(x: Moments, output_size: Any) -> Moments:
    sides = x.mean.shape[2:]
    size: Any = [given or side for given, side in zip(_two(output_size), sides, strict=True)]
    counts = [_window_sizes(side, out) for side, out in zip(sides, size, strict=True)]
    windows = (counts[0][:, None] * counts[1]).to(x.mean.device, non_blocking=True)
    pooling = Pooling(lambda features: F.adaptive_avg_pool2d(features, size), windows)
    return x.then(pooling.apply(x.mean), lambda c, before: c.pooled(pooling, before))


def _window_sizes(side: int, out: int) -> Tensor:
    ends = [(i * side // out, -(-(i + 1) * side // out)) for i in range(out)]
    return torch.tensor([float(last - first) for first, last in ends])


@register(torch.mean, "mean")
def _mean(x: Moments, dim: Any = None, keepdim: bool = False) -> Moments:
    """Mean over height and width, as in the global pooling of torchvision and timm."""
    if sorted(d % x.mean.ndim for d in dim or ()) != [2, 3]:
        raise ValueError(f"a mean over dim={dim}, expected height and width, (2, 3)")
    pooled = _adaptive(x, 1)
    return pooled if keepdim else _flattened(pooled)


@register(nn.MaxPool2d)
def _max_module(module: nn.MaxPool2d, x: Moments) -> Moments:
    return _max(x, **{name: getattr(module, name) for name in _MAX})


@register(F.max_pool2d)
def _max(x: Moments, *args: Any, **kwargs: Any) -> Moments:
    given = named(_MAX, args, kwargs)
    if given["return_indices"]:
        raise ValueError("max pooling that returns indices")
    mean, indices = F.max_pool2d(x.mean, **{**given, "return_indices": True})
    return x.then(mean, lambda c, before: c.max_pooled(indices, before))


def _select_or_pad(x: Moments, function: Callable[[Tensor], Tensor]) -> Moments:
    return x.then(function(x.mean), lambda c, before: c.moved(function, before))


def _flattened(x: Moments) -> Moments:
    return x.then(x.mean.flatten(1), lambda c, _: c.flattened())


SHARED = Shared(Moments, lambda x: x.mean, _select_or_pad, _flattened, rectified)
RULES.update(SHARED.rules())
flatten = SHARED.flatten


def _two(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)

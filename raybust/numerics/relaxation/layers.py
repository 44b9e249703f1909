"""Layer rules: each module and function as a step on boxes.

`register(MyLayer)` adds a rule for a module class, which tracing then treats as a leaf; functions
called in a `forward` are looked up in the same table, tensor methods by name. A rule takes boxes in
place of features. What has no rule is refused: a bound through a guessed step proves nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from raybust.numerics.relaxation.box import Box
from raybust.numerics.relaxation.linear import tightened
from raybust.numerics.relaxation.steps import Affine, Rectifier, Sum
from raybust.numerics.tracing import named

R = TypeVar("R", bound=Callable[..., Any])

RULES: dict[Any, Callable[..., Any]] = {}
"""Rules by module class, function, or name of a tensor method."""

_SCALING = 16
"""Roundings in batch norm or a scaling, generously: the network may order them differently."""


def register(*keys: Any) -> Callable[[R], R]:
    """Returns a decorator that registers a function as the rule for module classes, functions or
    method names.

    The rule of a module class is called with (module, box), that of a function with its arguments,
    with a `Box` in place of features; it returns the box of a `Step`.
    """

    def add(rule: R) -> R:
        RULES.update(dict.fromkeys(keys, rule))
        return rule

    return add


@register(nn.Dropout, nn.Dropout1d, nn.Dropout2d)
def _dropout_module(module: nn.Dropout, x: Box) -> Box:
    return _dropout(x, module.p, module.training)


@register(F.dropout, F.dropout2d)
def _dropout(x: Box, p: float = 0.5, training: bool = True, inplace: bool = False) -> Box:
    """Off: the losses of training bound the network without dropout; a certificate needs eval
    mode."""
    if training and x.setting.widen:
        raise ValueError("dropout in train mode")
    return x


@register(nn.Conv2d)
def _conv_module(module: nn.Conv2d, x: Box) -> Box:
    if module.padding_mode != "zeros":
        raise ValueError(f"padding_mode '{module.padding_mode}'")
    place = (module.stride, module.padding, module.dilation, module.groups)
    return _convolved(x, module.weight, module.bias, place)


_CONV = {"weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


@register(F.conv2d)
def _conv(x: Box, *args: Any, **kwargs: Any) -> Box:
    given = named(_CONV, args, kwargs)
    place = tuple(given[key] for key in ("stride", "padding", "dilation", "groups"))
    return _convolved(x, given["weight"], given["bias"], place)


def _convolved(x: Box, weight: Tensor, bias: Tensor | None, place: tuple[Any, ...]) -> Box:
    if isinstance(place[1], str):
        raise ValueError(f"padding='{place[1]}', expected numbers")
    size = weight.abs()
    taps = weight.shape[2:].numel()

    def transposed(rows: Tensor, shape: torch.Size) -> Tensor:
        found: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
            (len(rows), *shape), weight, rows, *place
        )
        return found

    step = Affine(
        apply=lambda features: F.conv2d(features, weight, bias, *place),
        magnitude=lambda sizes: F.conv2d(sizes, size, None, *place),
        transpose=transposed,
        constant=None if bias is None else bias[:, None, None],
        offset=None if bias is None else bias.abs()[:, None, None],
        terms=taps * max(weight.shape[1], weight.shape[0] // place[3]) + 3,
    )
    return step.forward(x)


@register(nn.Linear)
def _linear_module(module: nn.Linear, x: Box) -> Box:
    return _linear(x, module.weight, module.bias)


@register(F.linear)
def _linear(x: Box, weight: Tensor, bias: Tensor | None = None) -> Box:
    if x.center.ndim != 2:
        raise ValueError(f"a linear layer on features of shape {tuple(x.shape)}; flatten them")
    size = weight.abs()
    step = Affine(
        apply=lambda features: F.linear(features, weight, bias),
        magnitude=lambda sizes: F.linear(sizes, size),
        transpose=lambda rows, shape: rows @ weight,
        constant=bias,
        offset=None if bias is None else bias.abs(),
        terms=max(weight.shape) + 3,
    )
    return step.forward(x)


@register(nn.BatchNorm1d, nn.BatchNorm2d)
def _batch_norm_module(module: nn.BatchNorm2d, x: Box) -> Box:
    """The affine map of the running statistics, or in train mode of those of the setting."""
    found = x.setting.statistics.get(module)
    if module.training or module.running_mean is None:
        if found is None:
            raise ValueError("batch norm that normalizes by the batch: it has no bounds per image")
    else:
        assert module.running_var is not None
        found = module.running_mean, module.running_var
    return _normalized(x, found, module.weight, module.bias, module.eps)


_NORM = {"running_mean": None, "running_var": None, "weight": None, "bias": None}


@register(F.batch_norm)
def _batch_norm(x: Box, *args: Any, **kwargs: Any) -> Box:
    given = named({**_NORM, "training": False, "momentum": 0.1, "eps": 1e-5}, args, kwargs)
    if given["training"]:
        raise ValueError("batch norm that normalizes by the batch: it has no bounds per image")
    found = given["running_mean"], given["running_var"]
    return _normalized(x, found, given["weight"], given["bias"], given["eps"])


def _normalized(
    x: Box,
    statistics: tuple[Tensor, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Box:
    mean, variance = statistics
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = -mean * scale if bias is None else bias - mean * scale
    offset = (mean * scale).abs() if bias is None else (mean * scale).abs() + bias.abs()
    shape = (-1, *[1] * (x.center.ndim - 2))
    return scaled(x, scale.reshape(shape), shift.reshape(shape), offset.reshape(shape))


def scaled(
    x: Box, factor: Tensor, constant: Tensor | None = None, offset: Tensor | None = None
) -> Box:
    """Returns the box of factor * x + constant.

    Args:
        x: (B, ...).
        factor: broadcastable to one image's features without changing their shape.
        constant: likewise.
        offset: sizes of the constants that the network adds, at least |constant|.
    """
    if (x.center[:1] * factor).shape[1:] != x.shape or factor.ndim > x.center.ndim:
        raise ValueError(f"a constant that changes the shape {tuple(x.shape)}")

    def apply(features: Tensor) -> Tensor:
        return features * factor if constant is None else features * factor + constant

    step = Affine(
        apply=apply,
        magnitude=lambda sizes: sizes * factor.abs(),
        transpose=lambda rows, shape: rows * factor,
        constant=constant,
        offset=offset,
        terms=_SCALING,
    )
    return step.forward(x)


def rectified(x: Box, slope: float) -> Box:
    """Returns the box after a (leaky) ReLU of slope 0 to 1."""
    return Rectifier(slope).forward(tightened(x) if x.setting.tight else x)


@register(operator.add, operator.iadd, torch.add, "add", "add_")
def _add(x: Any, y: Any) -> Box:
    if isinstance(x, Box) and isinstance(y, Box):
        if x.shape != y.shape:
            raise ValueError(f"a sum of shapes {tuple(x.shape)} and {tuple(y.shape)}")
        return Sum().forward(x, y)
    box, other = (x, y) if isinstance(x, Box) else (y, x)
    constant = torch.as_tensor(other, dtype=box.center.dtype, device=box.center.device)
    return scaled(box, torch.ones_like(constant), constant, constant.abs())


@register(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def _subtract(x: Any, y: Any) -> Box:
    return _add(x, _multiply(y, -1.0) if isinstance(y, Box) else -y)


@register(operator.mul, operator.imul, torch.mul, "mul", "mul_")
def _multiply(x: Any, y: Any) -> Box:
    if isinstance(x, Box) and isinstance(y, Box):
        raise ValueError("a product of two features")
    box, factor = (x, y) if isinstance(x, Box) else (y, x)
    return scaled(box, torch.as_tensor(factor, dtype=box.center.dtype, device=box.center.device))


@register(operator.truediv, operator.itruediv, torch.div, "div", "div_")
def _divide(x: Any, y: Any) -> Box:
    if isinstance(y, Box):
        raise ValueError("a division by features")
    return _multiply(x, 1 / torch.as_tensor(y, dtype=x.center.dtype, device=x.center.device))


@register(operator.neg, torch.neg, "neg")
def _negate(x: Box) -> Box:
    return _multiply(x, -1.0)

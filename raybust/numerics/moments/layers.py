"""Layer rules: the effect of each module and function on means and covariances.

`register(MyLayer)` adds a rule for a module class, which tracing then treats as a leaf; functions
called in a `forward` are looked up in the same table, tensor methods by name. A rule takes moments
in place of features, and the module or the call's other arguments. Rules follow Zhen, Chakraborty
and Singh (CVPR 2021, arXiv:2104.05888, section 3); those for batch norm and max pooling, which the
paper omits, are ours.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.numerics.moments.covariance import Convolution
from raybust.numerics.moments.rectifier import expected_relu
from raybust.numerics.moments.state import Moments
from raybust.numerics.tracing import named

Rule = Callable[..., Moments]
R = TypeVar("R", bound=Rule)

RULES: dict[Any, Rule] = {}
"""Rules by module class, function, or name of a tensor method."""


def register(*keys: Any) -> Callable[[R], R]:
    """Returns a decorator that registers a function as the rule for module classes, functions or
    method names.

    The rule of a module class is called with (module, moments), that of a function with its
    arguments, with `Moments` in place of features. `Moments.then` disables autocast and the graph
    for covariances.
    """

    def add(rule: R) -> R:
        RULES.update(dict.fromkeys(keys, rule))
        return rule

    return add


@register(nn.Dropout, nn.Dropout1d, nn.Dropout2d)
def _dropout(module: nn.Module, x: Moments) -> Moments:
    return x


@register(F.dropout, F.dropout2d)
def _unchanged(x: Moments, *args: Any, **kwargs: Any) -> Moments:
    return x


@register(nn.Conv2d)
def _conv_module(module: nn.Conv2d, x: Moments) -> Moments:
    if module.padding_mode != "zeros" and not x.covariance.rules.mode.startswith("channel"):
        raise ValueError(f"padding_mode '{module.padding_mode}'")
    layer = Convolution(
        module.weight,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
    )
    return x.then(module(x.mean), lambda c, mean: c.convolved(layer, mean))


_CONV = {"weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


@register(F.conv2d)
def _conv(x: Moments, *args: Any, **kwargs: Any) -> Moments:
    given = named(_CONV, args, kwargs)
    bias = given.pop("bias")
    layer = Convolution(**given)
    mean = F.conv2d(x.mean, layer.weight, bias, *layer[1:])
    return x.then(mean, lambda c, before: c.convolved(layer, before))


@register(nn.Linear)
def _linear_module(module: nn.Linear, x: Moments) -> Moments:
    return _dense(x, module.weight, module(x.mean))


@register(F.linear)
def _linear(x: Moments, weight: Tensor, bias: Tensor | None = None) -> Moments:
    return _dense(x, weight, F.linear(x.mean, weight, bias))


def _dense(x: Moments, weight: Tensor, mean: Tensor) -> Moments:
    if x.mean.ndim != 2:
        raise ValueError(f"a linear layer on features of shape {tuple(x.mean.shape)}; flatten them")
    return x.then(mean, lambda c, before: c.dense(weight, before))


@register(nn.BatchNorm1d, nn.BatchNorm2d)
def _batch_norm_module(module: nn.BatchNorm2d, x: Moments) -> Moments:
    """The current affine map of batch norm: with the statistics of the batch of means in train
    mode, which updates the running ones as usual, with the running statistics in eval mode."""
    batch = module.training or module.running_mean is None
    momentum = module.momentum if module.momentum is not None else 0.0
    if module.training and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:
            momentum = 1.0 / float(module.num_batches_tracked)
    return _normalized(
        x,
        (module.weight, module.bias),
        (module.running_mean, module.running_var),
        batch,
        (momentum, module.eps),
    )


_NORM = {"running_mean": None, "running_var": None, "weight": None, "bias": None}


@register(F.batch_norm)
def _batch_norm(x: Moments, *args: Any, **kwargs: Any) -> Moments:
    given = named({**_NORM, "training": False, "momentum": 0.1, "eps": 1e-5}, args, kwargs)
    affine = (given["weight"], given["bias"])
    running = (given["running_mean"], given["running_var"])
    return _normalized(x, affine, running, given["training"], (given["momentum"], given["eps"]))


def _normalized(
    x: Moments,
    affine: tuple[Tensor | None, Tensor | None],
    running: tuple[Tensor | None, Tensor | None],
    batch: bool,
    constants: tuple[float, float],
) -> Moments:
    mean, _, inverse = torch.native_batch_norm(x.mean, *affine, *running, batch, *constants)
    if not batch:
        assert running[1] is not None
        inverse = (running[1] + constants[1]).rsqrt()
    weight = affine[0]
    shape = (-1, *[1] * (x.mean.ndim - 2))

    def scale(c: Any, before: Tensor) -> Any:
        factor = inverse if weight is None else inverse * weight
        return c.scaled(factor.reshape(shape), before)

    return x.then(mean, scale)


def rectified(x: Moments, slope: float) -> Moments:
    """Returns the moments after a (leaky) ReLU of slope 0 to 1."""
    rules = x.covariance.rules
    if rules.expected_relu:
        with rules.path(x.mean.device):
            variances = x.covariance.variances(x.mean)
            floor = 1e-12 * variances.mean() + torch.finfo(variances.dtype).tiny * 1e6
            deviation = torch.maximum(variances, floor).sqrt()
        mean = expected_relu(x.mean, deviation, slope)
    else:
        mean = F.leaky_relu(x.mean, slope) if slope else F.relu(x.mean)
    return x.then(mean, lambda c, before: c.rectified(before, slope))


@register(operator.add, operator.iadd, torch.add, "add", "add_")
def _add(x: Any, y: Any) -> Moments:
    if isinstance(x, Moments) and isinstance(y, Moments):
        if x.mean.shape != y.mean.shape:
            raise ValueError(f"a sum of shapes {tuple(x.mean.shape)} and {tuple(y.mean.shape)}")
        other = y.covariance
        return x.then(x.mean + y.mean, lambda c, _: c.plus(other))
    moments, constant = (x, y) if isinstance(x, Moments) else (y, x)
    return _same_shape(moments, moments.mean + constant, lambda c, _: c)


@register(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def _subtract(x: Any, y: Any) -> Moments:
    if isinstance(y, Moments):
        return _add(x, _multiply(y, -1.0))
    return _add(x, -y)


@register(operator.mul, operator.imul, torch.mul, "mul", "mul_")
def _multiply(x: Any, y: Any) -> Moments:
    if isinstance(x, Moments) and isinstance(y, Moments):
        raise ValueError("a product of two features")
    moments, factor = (x, y) if isinstance(x, Moments) else (y, x)
    constant = torch.as_tensor(factor, device=moments.mean.device)
    return _same_shape(moments, moments.mean * factor, lambda c, before: c.scaled(constant, before))


@register(operator.truediv, operator.itruediv, torch.div, "div", "div_")
def _divide(x: Any, y: Any) -> Moments:
    if isinstance(y, Moments):
        raise ValueError("a division by features")
    constant = 1 / torch.as_tensor(y, device=x.mean.device)
    return _same_shape(x, x.mean / y, lambda c, before: c.scaled(constant, before))


@register(operator.neg, torch.neg, "neg")
def _negate(x: Moments) -> Moments:
    return _multiply(x, -1.0)


def _same_shape(x: Moments, mean: Tensor, step: Callable[[Any, Tensor], Any]) -> Moments:
    if mean.shape != x.mean.shape:
        raise ValueError(f"a constant that changes {tuple(x.mean.shape)} to {tuple(mean.shape)}")
    return x.then(mean, step)

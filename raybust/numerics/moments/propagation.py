"""Propagation of means and covariances of Gaussian noise through an unmodified network.

`trace` traces a network once with torch.fx; `propagate` then runs it on moments, with its own
modules and parameters, to the means of the logits and the covariance of the two largest: all that
the radius of Zhen, Chakraborty and Singh (CVPR 2021, arXiv:2104.05888) needs, so 1000 classes are
affordable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from raybust.numerics.moments.channel import ChannelCovariance
from raybust.numerics.moments.covariance import Covariance, Rules
from raybust.numerics.moments.elementwise import DiagonalCovariance
from raybust.numerics.moments.joint import JointCovariance
from raybust.numerics.moments.layers import RULES
from raybust.numerics.moments.state import Moments

_FORMS: dict[str, type[Covariance]] = {
    "channel": ChannelCovariance,
    "channel_exact": ChannelCovariance,
    "diagonal": DiagonalCovariance,
    "full": JointCovariance,
}

Watch = Callable[[fx.Node, Any], None]


class LogitMoments(NamedTuple):
    """Moments of a network's logits.

    Attributes:
        mean: logits (B, K), K >= 2, with their graph.
        top: two classes, int64 (B, 2): those of the two largest, or the label and the largest
            other one.
        covariance: covariance of those two, (B, 2, 2); without a graph if the rules detach.
    """

    mean: Tensor
    top: Tensor
    covariance: Tensor


class _Tracer(fx.Tracer):
    """Treats torch's layers and all module classes with a rule as leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in RULES or super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module) -> fx.Graph:
    """Returns the graph of a network, which refers to modules by name.

    Raises:
        ValueError: the network cannot be traced because its forward pass depends on its input.
    """
    try:
        return _Tracer().trace(network)
    except Exception as error:  # a network's code may raise anything on proxies
        raise ValueError(
            f"{type(network).__name__} cannot be traced by torch.fx: {error}; its forward pass "
            "must not branch on its input, unless the part that does is a separate module with a "
            "rule (raybust.numerics.moments.register)"
        ) from error


def propagate(
    graph: fx.Graph,
    network: nn.Module,
    images: Tensor,
    sigma: float,
    rules: Rules,
    *,
    labels: Tensor | None = None,
) -> LogitMoments:
    """Returns the moments of the logits under noise N(0, sigma^2 I) on the images.

    Args:
        graph: result of `trace(network)`.
        network: the network; its own modules process the means, so train mode, autocast and
            batch-norm statistics behave as in its forward pass. Dropout is off.
        images: (B, C, H, W), the means of the noisy images, B >= 1.
        sigma: standard deviation of the noise, > 0, in units of the images.
        rules: mode and settings.
        labels: int64 (B,), the first class of each pair; the largest logit's if None.

    Raises:
        ValueError: sigma is not positive, or a layer has no rule or an unsupported setting; names
            the layer.
    """
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma: got {sigma}, expected a finite number > 0")
    head = _head(graph, network)
    found = run(graph, network, noisy(images, sigma, rules), head=head)
    if not isinstance(found, Moments) or found.mean.ndim != 2:
        raise ValueError("the network's output is not logits (B, K) that depend on the images")
    if head is None:
        logits, rows = found.mean, torch.eye(found.mean.shape[1], device=images.device)
    else:
        layer = network.get_submodule(str(head.target))
        logits, rows = layer(found.mean), layer.get_parameter("weight")
    if logits.shape[1] < 2:
        raise ValueError(f"got {logits.shape[1]} logit, expected at least two classes")
    top = contenders(logits, labels)
    with rules.path(images.device):
        before = found.mean.detach() if rules.detach else found.mean
        covariance = found.covariance.pair(rows[top], before)
    return LogitMoments(logits, top, covariance)


def contenders(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """Returns the classes of the two largest logits, or the label and the class of the largest
    other one: int64 (B, 2).

    Args:
        logits: (B, K), K >= 2.
        labels: int64 (B,).
    """
    top = logits.detach().topk(2).indices
    if labels is None:
        return top
    rivals = torch.where(top[:, 0] == labels, top[:, 1], top[:, 0])
    return torch.stack([labels, rivals], 1)


def noisy(images: Tensor, sigma: float, rules: Rules) -> Moments:
    """Returns the moments of images (B, C, H, W) under noise N(0, sigma^2 I)."""
    with rules.path(images.device):
        return Moments(images, _FORMS[rules.mode].of_noise(images, sigma, rules))


def run(
    graph: fx.Graph,
    network: nn.Module,
    value: Any,
    watch: Watch | None = None,
    head: fx.Node | None = None,
) -> Any:
    """Runs the graph on a value; returns the network's output, or with `head` the input of that
    node.

    Steps on `Moments` apply their rules; on a tensor this is the network's own forward pass. Values
    are freed after their last use.

    Args:
        graph: result of `trace(network)`.
        network: the network.
        value: `Moments`, or images (B, C, H, W).
        watch: called with each node and its value.
        head: node to stop at.
    """
    values: dict[fx.Node, Any] = {}
    waiting = {node: len(node.users) for node in graph.nodes}
    inputs = iter([value])
    for node in graph.nodes:
        if node is head or node.op == "output":
            return fx.node.map_arg(node.args[0], values.__getitem__)
        if node.op == "placeholder":
            values[node] = next(inputs, node.args[0] if node.args else None)
        else:
            values[node] = _step(node, network, values)
        if watch is not None:
            watch(node, values[node])
        for used in node.all_input_nodes:
            waiting[used] -= 1
            if not waiting[used]:
                del values[used]
    raise ValueError("the network returns nothing")


def _step(node: fx.Node, network: nn.Module, values: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(network.get_submodule(owner), name)
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    if not any(isinstance(values[used], Moments) for used in node.all_input_nodes):
        if module is not None:
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)
    what, rule = _rule(node, module)
    try:
        return rule(*(() if module is None else (module,)), *args, **kwargs)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{what}: no rule for {error}") from error


def _rule(node: fx.Node, module: nn.Module | None) -> tuple[str, Callable[..., Any]]:
    """Returns the name of a step, for messages, and its rule."""
    if module is not None:
        kind: Any = type(module)
        what = f"layer '{node.target}' ({kind.__name__})"
        keys: tuple[Any, ...] = kind.__mro__
    else:
        kind = node.target
        name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
        what = f"step '{node.name}' ({name})"
        keys = (kind,)
    for key in keys:
        if key in RULES:
            return what, RULES[key]
    raise ValueError(
        f"{what} has no rule for covariances; add one with "
        "raybust.numerics.moments.register, or use a network of convolutions, linear layers, "
        "batch norm, (leaky) ReLU, pooling and sums"
    )


def _head(graph: fx.Graph, network: nn.Module) -> fx.Node | None:
    """Returns the node of the linear layer that gives the output, or None if it is another step."""
    (last,) = graph.output_node().args
    if not isinstance(last, fx.Node) or last.op != "call_module":
        return None
    return last if type(network.get_submodule(str(last.target))) is nn.Linear else None

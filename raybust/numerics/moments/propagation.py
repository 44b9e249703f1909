"""Propagation of means and covariances of Gaussian noise through an unmodified network.

`trace` traces a network once with torch.fx; `propagate` then runs it on moments, with its own
modules and parameters, to the means of the logits and the covariance of the two largest: all that
the radius of Zhen, Chakraborty and Singh (CVPR 2021, arXiv:2104.05888) needs, so 1000 classes are
affordable.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from raybust.numerics import tracing
from raybust.numerics.moments.channel import ChannelCovariance
from raybust.numerics.moments.covariance import Covariance, Rules
from raybust.numerics.moments.elementwise import DiagonalCovariance
from raybust.numerics.moments.joint import JointCovariance
from raybust.numerics.moments.layers import RULES
from raybust.numerics.moments.state import Moments
from raybust.numerics.tracing import Table, Watch

_FORMS: dict[str, type[Covariance]] = {
    "channel": ChannelCovariance,
    "channel_exact": ChannelCovariance,
    "diagonal": DiagonalCovariance,
    "full": JointCovariance,
}


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


_TABLE = Table(RULES, Moments, "covariances", "raybust.numerics.moments.register")


def trace(network: nn.Module) -> fx.Graph:
    """Returns the graph of a network, which refers to modules by name.

    Raises:
        ValueError: the network cannot be traced because its forward pass depends on its input.
    """
    return tracing.trace(network, _TABLE)


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
    """Runs the graph on `Moments`, or on images (B, C, H, W), which is the network's own forward
    pass; see `raybust.numerics.tracing.run`."""
    return tracing.run(graph, network, value, _TABLE, watch=watch, head=head)


def _head(graph: fx.Graph, network: nn.Module) -> fx.Node | None:
    """Returns the node of the linear layer that gives the output, or None if it is another step."""
    (last,) = graph.output_node().args
    if not isinstance(last, fx.Node) or last.op != "call_module":
        return None
    return last if type(network.get_submodule(str(last.target))) is nn.Linear else None

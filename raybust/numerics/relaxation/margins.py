"""Lower bounds of the margins f_y - f_j over a Linf ball, and what they prove.

The last layers are merged into the margins. `ibp` bounds them over the box of the last features,
`crown` over the ball by backward linear bounds with interval bounds inside, `crown_full` with
linear bounds inside too, at a pass per hidden feature.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from raybust.numerics import tracing
from raybust.numerics.relaxation.box import Box, Setting, Statistics, ball
from raybust.numerics.relaxation.layers import RULES
from raybust.numerics.relaxation.linear import substitute
from raybust.numerics.relaxation.steps import Affine, Rectifier
from raybust.numerics.tracing import Table

Bound = Literal["ibp", "crown", "crown_full", "best"]
"""How margins are bounded; `best` is the larger of `ibp` and `crown` for each class."""

_CHECKED = 8
"""Images whose logits are compared with those of the trace (our choice)."""

_TABLE = Table(RULES, Box, "bounds", "raybust.numerics.relaxation.register", strict=True)


def trace(network: nn.Module) -> fx.Graph:
    """Returns the graph of a network, which refers to modules by name.

    Raises:
        ValueError: the network cannot be traced because its forward pass depends on its input.
    """
    return tracing.trace(network, _TABLE)


def enclose(graph: fx.Graph, network: nn.Module, box: Box) -> Box:
    """Returns the box of the logits, (B, K), with its tape.

    Args:
        graph: result of `trace(network)`.
        network: the network; batch norms in train mode need `nominal`'s statistics in the setting.
        box: of the images, see `ball`.

    Raises:
        ValueError: a step has no rule or an unsupported setting; names it.
    """
    found = tracing.run(graph, network, box, _TABLE)
    if not isinstance(found, Box) or found.center.ndim != 2:
        raise ValueError("the network's output is not logits (B, K) that depend on the images")
    return found


def nominal(graph: fx.Graph, network: nn.Module, images: Tensor) -> tuple[Tensor, Statistics]:
    """Returns the network's logits (B, K) and the statistics by which its batch norms normalized,
    with their graph; a plain forward pass, which moves running statistics as usual.

    Args:
        graph: result of `trace(network)`.
        network: in train mode.
        images: (B, C, H, W).
    """
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def watch(node: fx.Node, value: Any) -> None:
        for user in node.users:
            module = network.get_submodule(str(user.target)) if user.op == "call_module" else None
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                others = [axis for axis in range(value.ndim) if axis != 1]
                variance, mean = torch.var_mean(value.to(images.dtype), others, correction=0)
                found[module] = mean, variance

    return tracing.run(graph, network, images, _TABLE, watch=watch), found


def rectified(logits: Box) -> list[Box]:
    """Returns the boxes that enter (leaky) ReLUs on a tape, from input to output.

    Args:
        logits: result of `enclose`.
    """
    found: dict[int, Box] = {}
    waiting = [logits]
    while waiting:
        box = waiting.pop()
        for source in box.sources:
            if isinstance(box.step, Rectifier):
                found[source.number] = source
            waiting.append(source)
    return [found[number] for number in sorted(found)]


def margins(logits: Box, labels: Tensor, bound: Bound) -> Tensor:
    """Returns lower bounds (B, K) of f_y - f_j over the ball, 0 at j = y; float64 if widened.

    Args:
        logits: result of `enclose`; for `crown_full`, of a box with a tight setting.
        labels: int64 (B,), the class y of each image.
        bound: how.
    """
    count = logits.center.shape[1]
    own = F.one_hot(labels, count).to(logits.center)
    every = torch.eye(count, dtype=own.dtype, device=own.device)
    rows = own - every[:, None]  # (K, B, K)
    found = []
    if bound in ("ibp", "best"):
        found.append(substitute(logits, rows, lambda step: isinstance(step, Affine)))
    if bound != "ibp":
        found.append(substitute(logits, rows, lambda step: True))
    return torch.stack(found).amax(0).T


@torch.no_grad()
def certified_margin(
    graph: fx.Graph,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    bound: Bound,
) -> Tensor:
    """Returns a lower bound (B,) of min over j != y of f_y - f_j over the Linf ball of radius eps
    within [0, 1], float64, rounded outward. Above 0, the network answers y on all of it, in real
    arithmetic and in its own.

    Args:
        graph: result of `trace(network)`.
        network: in eval mode, of the images' dtype.
        images: (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        eps: radius, pixels in [0, 1]; or float64 (B,), one for each image.
        bound: how.

    Raises:
        ValueError: a step has no rule or an unsupported setting, or the network's own logits of
            some images are not those of the trace.
    """
    _check_trace(graph, network, images[:_CHECKED])
    box = ball(images, eps, Setting(tight=bound == "crown_full"))
    found = margins(enclose(graph, network, box), labels, bound)
    others = F.one_hot(labels, found.shape[1]).bool()
    return found.masked_fill(others, torch.inf).amin(1)


def _check_trace(graph: fx.Graph, network: nn.Module, images: Tensor) -> None:
    """Rejects a network whose own logits are not in their boxes at eps = 0, which are as narrow as
    rounding errors."""
    lower, upper = enclose(graph, network, ball(images, 0.0, Setting())).ends
    own = network(images)
    if ((own < lower) | (own > upper)).any():
        raise ValueError(
            f"{type(network).__name__} computes something else than its trace: it has hooks, or a"
            " step changes in place what another one uses; remove them"
        )

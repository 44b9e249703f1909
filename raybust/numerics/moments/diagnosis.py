"""How far propagated variances are from the truth, layer by layer.

The covariance rule of Zhen, Chakraborty and Singh (CVPR 2021, arXiv:2104.05888) over-estimates, and
more so with depth; this measures by how much on a network at hand, against the variance of its
features over noise draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from raybust.numerics.moments.covariance import Rules
from raybust.numerics.moments.propagation import noisy, run, trace
from raybust.numerics.moments.state import Moments


@dataclass(frozen=True)
class LayerVariance:
    """One step of a network.

    Attributes:
        name: the layer's name in the network, or the step's in the graph.
        kind: class of the layer, or name of the function.
        propagated: mean over images and features of the propagated variance.
        sampled: the same of the variance over draws.
    """

    name: str
    kind: str
    propagated: float
    sampled: float

    @property
    def ratio(self) -> float:
        """Propagated over sampled variance; infinite or NaN where nothing varies."""
        return self.propagated / self.sampled if self.sampled else self.propagated * float("inf")


def layer_variances(
    network: nn.Module,
    images: Tensor,
    sigma: float,
    rules: Rules,
    *,
    draws: int = 200,
    generator: torch.Generator | None = None,
) -> list[LayerVariance]:
    """Returns propagated and sampled variance of every step, in the order of computation.

    Args:
        network: traceable; its mode counts for batch norm (eval mode, normally).
        images: (B, C, H, W) in [0, 1], a few.
        sigma: standard deviation of the noise, > 0.
        rules: mode and settings.
        draws: noisy copies of each image, >= 2.
        generator: of the noise.
    """
    graph = trace(network)
    moments: dict[fx.Node, Tensor] = {}
    sums: dict[fx.Node, list[Tensor]] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if isinstance(value, Moments):
            moments[node] = value.variances().double().mean()
            sums[node] = [torch.zeros((), dtype=torch.float64), torch.zeros(())]

    def count(node: fx.Node, value: Any) -> None:
        if node not in sums:
            return
        first = sums[node][1].shape == ()
        if first:
            sums[node] = [torch.zeros_like(value), value.clone(), torch.zeros_like(value)]
        total, origin, squares = sums[node]
        shifted = value - origin  # one draw as origin: no cancellation in squares - total^2
        total += shifted
        squares += shifted * shifted

    with torch.no_grad():
        run(graph, network, noisy(images, sigma, rules), keep)
        for _ in range(draws):
            noise = torch.empty_like(images).normal_(generator=generator)
            run(graph, network, images + sigma * noise, count)
    found = []
    for node, propagated in moments.items():
        total, _, squares = sums[node]
        sampled = ((squares - total * total / draws) / (draws - 1)).double().mean()
        name, kind = _names(node, network)
        found.append(LayerVariance(name, kind, float(propagated), float(sampled)))
    return found


def _names(node: fx.Node, network: nn.Module) -> tuple[str, str]:
    if node.op == "call_module":
        return str(node.target), type(network.get_submodule(str(node.target))).__name__
    if node.op == "placeholder":
        return node.name, "input"
    target = node.target
    return node.name, target if isinstance(target, str) else target.__name__

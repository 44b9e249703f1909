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

from raybust.data import Part
from raybust.errors import RequestError
from raybust.numerics.moments.covariance import Mode, Rules
from raybust.numerics.moments.propagation import noisy, run, trace
from raybust.numerics.moments.state import Moments

MODES: tuple[Mode, ...] = ("channel", "channel_exact", "diagonal")


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
    propagated: dict[fx.Node, float] = {}
    sampled: dict[fx.Node, _Spread] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if isinstance(value, Moments):
            propagated[node] = float(value.variances().double().mean())

    def count(node: fx.Node, value: Any) -> None:
        if node in propagated:
            sampled.setdefault(node, _Spread(value)).add(value)

    with torch.no_grad():
        run(graph, network, noisy(images, sigma, rules), keep)
        for _ in range(draws):
            noise = torch.empty_like(images).normal_(generator=generator)
            run(graph, network, images + sigma * noise, count)
    return [
        LayerVariance(*_names(node, network), variance, sampled[node].mean_variance())
        for node, variance in propagated.items()
    ]


class _Spread:
    """Variance of each feature over draws, summed about the first draw: nothing cancels."""

    def __init__(self, origin: Tensor) -> None:
        self.origin, self.draws = origin.clone(), 0  # a ReLU may work in place
        self.total, self.squares = torch.zeros_like(origin), torch.zeros_like(origin)

    def add(self, value: Tensor) -> None:
        shifted = value - self.origin
        self.total += shifted
        self.squares += shifted * shifted
        self.draws += 1

    def mean_variance(self) -> float:
        variance = (self.squares - self.total**2 / self.draws) / (self.draws - 1)
        return float(variance.double().mean())


def _names(node: fx.Node, network: nn.Module) -> tuple[str, str]:
    if node.op == "call_module":
        return str(node.target), type(network.get_submodule(str(node.target))).__name__
    if node.op == "placeholder":
        return node.name, "input"
    target = node.target
    return node.name, target if isinstance(target, str) else target.__name__


def diagnose(
    network: nn.Module, part: Part, sigma: float, *, examples: int = 8, draws: int = 200
) -> dict[str, list[LayerVariance]]:
    """Returns, by mode, propagated and sampled variance of every step of the network.

    Args:
        network: in eval mode, on the CPU.
        part: its images; the first are taken.
        sigma: standard deviation of the noise, pixels in [0, 1].
        examples: how many images.
        draws: noisy copies of each.

    Raises:
        RequestError: a layer has no rule; the message says how to add one.
    """
    images, _ = part.fetch(torch.arange(min(examples, len(part))))
    try:
        return {
            mode: layer_variances(
                network,
                images,
                sigma,
                Rules(mode=mode),
                draws=draws,
                generator=torch.Generator().manual_seed(0),
            )
            for mode in MODES
        }
    except ValueError as error:
        raise RequestError(f"this network cannot be diagnosed: {error}") from None

"""Errors of propagated variances, layer by layer.

The covariance rule of Zhen, Chakraborty and Singh (CVPR 2021, arXiv:2104.05888) overestimates,
increasingly with depth; this measures by how much on a given network, against the sampled variance
of its features under noise.
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
        name: name of the layer in the network, or of the step in the graph.
        kind: class of the layer, or name of the function.
        propagated: propagated variance, mean over images and features.
        sampled: variance over draws, mean over images and features.
    """

    name: str
    kind: str
    propagated: float
    sampled: float

    @property
    def ratio(self) -> float:
        """Propagated over sampled variance; infinite or NaN if nothing varies."""
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
    """Returns propagated and sampled variances of all steps, in order of computation.

    Args:
        network: traceable; normally in eval mode, which matters for batch norm.
        images: a few images (B, C, H, W) in [0, 1].
        sigma: standard deviation of the noise, > 0.
        rules: mode and settings.
        draws: noisy copies per image, >= 2.
        generator: generator of the noise.
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
    """Variance of each feature over draws, relative to the first draw to avoid cancellation."""

    def __init__(self, origin: Tensor) -> None:
        self.origin, self.draws = origin.clone(), 0  # a ReLU may be in place
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
    """Returns, by mode, propagated and sampled variances of all steps of the network.

    Args:
        network: in eval mode, on the CPU.
        part: its images; the first ones are used.
        sigma: standard deviation of the noise, pixels in [0, 1].
        examples: number of images.
        draws: noisy copies per image.

    Raises:
        RequestError: a layer has no rule; explains how to add one.
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

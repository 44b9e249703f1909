"""How far a network's propagated variances are from sampled ones, in each mode of propagation.

For covariance propagation (Zhen, Chakraborty and Singh, CVPR 2021, arXiv:2104.05888), on any
network that traces. Stage `evaluate` of the arrow.
"""

from __future__ import annotations

import torch
from torch import nn

from raybust.data import Part
from raybust.errors import RequestError
from raybust.numerics.moments import LayerVariance, Mode, Rules, layer_variances

MODES: tuple[Mode, ...] = ("channel", "channel_exact", "diagonal")


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

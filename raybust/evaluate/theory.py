"""The sweeps of `raybust.numerics.transport.theory` on scikit-learn's digits. Stage `evaluate` of
the arrow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raybust.config.schema import Data
from raybust.data import Part, load
from raybust.numerics.transport.theory import Panel, sweep


def theory(trials: int = 4) -> list[Panel]:
    """Returns what location on a geodesic and size of a sample do, on Gaussians and on digits.

    Args:
        trials: samples of digits for each point, two or more; Gaussians take more.
    """

    def flat(part: Part) -> tuple[Tensor, Tensor]:
        images, labels = part.fetch(torch.arange(len(part)))
        return images.flatten(1).double(), labels

    digits = load(Data(name="digits"))
    return sweep(flat(digits.train), flat(digits.test), trials=trials)

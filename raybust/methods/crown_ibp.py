"""CROWN-IBP: Zhang, Chen, Xiao, Gowal, Stanforth, Li, Boning and Hsieh, "Towards Stable and
Efficient Training of Verifiably Robust Neural Networks" (ICLR 2020, arXiv:1906.06316).

A backward linear bound, with interval bounds inside, steadies the start of training; its weight
falls as eps rises. The paper's mixture with clean cross entropy is left out (our choice).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raybust.config.options import option
from raybust.methods.ibp import Ibp, Plain
from raybust.numerics.relaxation import Box, margins


@dataclass(frozen=True, kw_only=True)
class CrownIbp(Ibp):
    """Cross entropy of the worst logits under a mixture of linear and interval bounds: loss =
    CE(-(beta lb_crown + (1 - beta) lb_ibp), y) + regularizer, beta from 1 to `beta` as eps rises.
    """

    beta: float = option(
        0.0, "Weight of the linear bounds once eps has risen; 1 at the start.", ge=0, le=1
    )

    def low(self, box: Box, labels: Tensor, progress: float) -> Tensor:
        """Returns the mixture of both bounds; see `Ibp.low`."""
        intervals, beta = margins(box, labels, "ibp"), self.mixture(progress)
        if not beta:
            return intervals
        return beta * margins(box, labels, "crown") + (1 - beta) * intervals

    def passes(self, plain: Plain, progress: float) -> int:
        """Returns the passes per image: centers, radii, and one backward per class."""
        return 2 + bool(self.mixture(progress)) * plain.logits.shape[1]

    def mixture(self, progress: float) -> float:
        """Returns the weight of the linear bounds at a fraction of the run."""
        return 1 - (1 - self.beta) * self.rise(progress)

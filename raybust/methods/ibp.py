"""Interval bound propagation: Gowal et al., "On the Effectiveness of Interval Bound Propagation for
Training Verifiably Robust Models" (2018, arXiv:1810.12715), with the initialization and the
regularizers of Shi et al., "Fast Certified Robust Training with Short Warmup" (NeurIPS 2021,
arXiv:2103.17268).

Batch norm normalizes the bounds by the statistics of the plain pass. Base class of the methods that
train on bounds. eps rises linearly, which is our choice; the papers' rise is smoothed at its start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from raybust.config.options import option
from raybust.errors import RequestError
from raybust.methods.base import Method, StepContext
from raybust.numerics.modes import evaluating
from raybust.numerics.relaxation import (
    Box,
    Setting,
    Statistics,
    ball,
    enclose,
    margins,
    nominal,
    rectified,
    trace,
)

_REGULARIZER = 0.5
_TOLERANCE = 0.5
"""Ratio above which the regularizers ask for nothing, as in the authors' code."""
_TINY = 1e-12


class Plain(NamedTuple):
    """A plain pass: logits (B, K) and the statistics of its batch norms."""

    logits: Tensor
    statistics: Statistics


@dataclass(frozen=True, kw_only=True)
class Ibp(Method):
    """Cross entropy of the worst logits that interval bounds allow in the Linf ball: loss =
    CE(-lb, y) + regularizer, lb_j <= f_y - f_j on all of the ball and lb_y = 0.
    """

    eps: float = option(
        8 / 255, "Radius of the ball.", gt=0, le=1, unit="pixels in [0, 1], in Linf"
    )
    warmup: float = option(
        0.5, "Fraction of the run over which eps rises linearly from 0.", ge=0, lt=1
    )
    regularizer: float | None = option(
        None,
        "Weight of the regularizers of tightness and of balanced ReLUs, which falls to 0 as eps"
        " rises; default: the authors' 0.5, but 0 for a network without batch norm.",
        ge=0,
    )
    l1: float = option(0.0, "Weight of the L1 norm of all kernels and matrices.", ge=0)
    init: Literal["ibp", "network"] = option(
        "ibp",
        "Initial weights: N(0, 2 pi / fan_in^2), with which intervals keep their width from layer"
        " to layer, or the network's own.",
    )

    def initialize(self, network: nn.Module) -> None:
        """Draws convolution and linear weights from N(0, 2 pi / fan_in^2) if `init` says so."""
        if self.init != "ibp":
            return
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                nn.init.normal_(module.weight, std=math.sqrt(2 * math.pi) / fan_in)

    def setup(self, network: nn.Module, images: Tensor, targets: Tensor) -> fx.Graph:
        """Traces the network, bounds two images without gradient and returns the graph.

        Raises:
            RequestError: the network cannot be traced, or the named layer has no rule.
        """
        try:
            with evaluating(network), torch.no_grad():
                graph = trace(network)
                enclose(graph, network, ball(images[:2], 0.0, Setting(widen=False)))
        except ValueError as error:
            raise RequestError(f"method {self.key}: {error}") from error
        return graph

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss above; see `Method.loss`."""
        eps = self.eps * self.rise(context.progress)
        plain = self.plain(network, images, context)
        robust, penalty = self.bounded(network, (images, eps), targets, plain, context)
        return robust + penalty + self.lasso(network)

    def rise(self, progress: float) -> float:
        """Returns the fraction of eps that is reached at a fraction of the run."""
        return min(1.0, progress / self.warmup) if self.warmup else 1.0

    def plain(self, network: nn.Module, images: Tensor, context: StepContext) -> Plain:
        """Passes images (B, C, H, W) through the network, which moves its statistics."""
        found = through(network, lambda inner, x: nominal(context.prepared, inner, x), images, 1)
        return Plain(*found)

    def bounded(
        self,
        network: nn.Module,
        around: tuple[Tensor, float],
        targets: Tensor,
        plain: Plain,
        context: StepContext,
    ) -> tuple[Tensor, Tensor]:
        """Returns the mean cross entropy of the worst logits, and the weighted regularizers.

        Targets that are probabilities count as their likeliest class in the margins.

        Args:
            network: as in `Method.loss`.
            around: centers (B, C, H, W) and radius of the boxes, cut to [0, 1].
            targets: as in `Method.loss`.
            plain: the plain pass whose statistics batch norm takes.
            context: as in `Method.loss`.
        """
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        setting = Setting(widen=False, statistics=plain.statistics)

        def run(inner: nn.Module, images: Tensor) -> tuple[Tensor, Box]:
            with torch.autocast(images.device.type, enabled=False):
                box = enclose(context.prepared, inner, ball(images, around[1], setting))
                return self.low(box, labels, context.progress), box

        low, box = through(network, run, around[0], self.passes(plain, context.progress))
        certified = (low.detach() > 0).sum(1) == low.shape[1] - 1
        context.metrics["train/certified_accuracy"] = certified.float().mean()
        weight = self.regularizer
        if weight is None:
            weight = _REGULARIZER * bool(plain.statistics)
        weight *= 1 - self.rise(context.progress)
        penalty = weight * regularizers(box) if weight else low.new_zeros(())
        return F.cross_entropy(-low, context.sharp(targets)), penalty

    def low(self, box: Box, labels: Tensor, progress: float) -> Tensor:
        """Returns lower bounds (B, K) of the margins, 0 at the label.

        Args:
            box: of the logits.
            labels: int64 (B,).
            progress: completed fraction of the run.
        """
        return margins(box, labels, "ibp")

    def passes(self, plain: Plain, progress: float) -> int:
        """Returns the passes per image that the bounds take: centers and radii."""
        return 2

    def lasso(self, network: nn.Module) -> Tensor | float:
        """Returns the weighted L1 norm of kernels and matrices."""
        if not self.l1:
            return 0.0
        kernels = [p.abs().sum() for p in network.parameters() if p.ndim > 1]
        return self.l1 * torch.stack(kernels).sum()


def through(
    network: nn.Module,
    run: Callable[[nn.Module, Tensor], tuple[Any, ...]],
    images: Tensor,
    passes: int,
) -> tuple[Any, ...]:
    """Returns run(network, images), counted as so many passes if the network counts passes."""
    counted = getattr(network, "through", None)
    if counted is None:
        return run(network, images)
    found: tuple[Any, ...] = counted(run, images, passes)
    return found


def regularizers(logits: Box) -> Tensor:
    """Returns the regularizers of Shi et al. as in their code, means over the ReLUs with tolerance
    0.5: intervals no wider than twice the input's, and active and inactive units in balance, by the
    means and by the variances of their centers.

    Args:
        logits: box of the logits, with its tape; without a ReLU the result is 0.
    """
    total = logits.center.new_zeros(())
    boxes = rectified(logits)
    start = logits
    while start.sources:
        start = start.sources[0]
    width = start.radius.mean()
    for box in boxes:
        total = total + F.relu(_TOLERANCE - width / box.radius.mean().clamp_min(_TINY))
        lower, upper = box.ends
        center, active, idle = box.center, lower > 0, upper < 0
        spread = (center - center.mean()).square()
        both = active.any() & idle.any()
        for on, off in (((center * active).mean(), -(center * idle).mean()),
                        ((spread * active).sum(), (spread * idle).sum())):  # fmt: skip
            on, off = (part.where(both, torch.ones_like(part)) + _TINY for part in (on, off))
            total = total + F.relu(_TOLERANCE - torch.minimum(on / off, off / on)) * both
    return total / (_TOLERANCE * max(1, len(boxes)))

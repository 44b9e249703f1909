"""Covariance propagation: certified training in one noisy pass, of Zhen, Chakraborty and Singh,
"Simpler Certified Radius Maximization by Propagating Covariances" (CVPR 2021, arXiv:2104.05888).

The pass propagates the features and their covariance under the smoothing noise; a hinge on the
resulting radius replaces MACER's k noisy copies. Works on any network that torch.fx can trace
(`raybust.numerics.moments`), with `mode=linear` on any network. The radius is an estimate, never a
certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn

from raybust.config.options import option
from raybust.errors import RequestError
from raybust.methods.base import Method, StepContext
from raybust.numerics.modes import evaluating
from raybust.numerics.moments import (
    LogitMoments,
    Rules,
    contenders,
    linear_score,
    margin_hinge,
    margin_score,
    probability_cross_entropy,
    probability_hinge,
    propagate,
    radius_hinge,
    trace,
)


@dataclass(frozen=True, kw_only=True)
class Covariance(Method):
    """loss = CE + weight (H1 + H2), averaged over the batch, one noisy copy of each image.

    CE = -log(softmax(u)_y + 1e-10); H1 = max(0, gamma - z), z the margin between the two largest
    logits u divided by its propagated standard deviation; H2 = gamma - xi where |xi| <= gamma, xi =
    PHI^-1(q1) - PHI^-1(q2), q the two largest of softmax(beta u). Both hinges include only
    correctly classified images. Defaults are the authors' best reported values, where available.

    With `hinge=radius`: CE + weight max(0, sigma (gamma - z)) over all images, z that of the label
    against the largest other class and without their covariance, as in another implementation
    written from the paper, whose constant is sigma gamma.
    """

    sigma: float = option(0.25, "Standard deviation of the noise.", gt=0, unit="pixels in [0, 1]")
    weight: float = option(0.5, "Weight lambda of the two hinges.", ge=0)
    gamma: float = option(8.0, "Largest score rewarded by a hinge.", gt=0, unit="sigma")
    beta: float = option(16.0, "Inverse temperature of the second hinge.", gt=0)
    warmup: float = option(
        0.25, "Fraction of training with weight 0; the authors use 32 of 120 epochs.", ge=0, lt=1
    )
    hinge: Literal["code", "radius"] = option(
        "code", "H1 and H2 as in the authors' code, or one hinge on the radius of the label."
    )
    mode: Literal["channel", "channel_exact", "diagonal", "full", "linear"] = option(
        "channel",
        "What to propagate: `channel` as in the paper, `full` for tiny networks only; or `linear`: "
        "the slope of the margin at the image, one more backward pass.",
    )
    r_max: float = option(
        0.1, "Assumed bound on pixel correlation in the two channel modes.", ge=0, le=1
    )
    ridge: float = option(
        0.1,
        "Variance added by each ReLU in mode `channel`; the authors use 0.1.",
        ge=0,
        unit="squared units of the features",
    )
    expected_relu: bool = option(
        False,
        "Propagate E relu(X), as in the paper, instead of the network's own relu(E X); batch norm "
        "then learns statistics that the certified network does not have.",
    )
    detach_covariance: bool = option(
        True, "Treat covariances as constants in the gradient, as in the authors' code."
    )

    def setup(self, network: nn.Module, images: Tensor, targets: Tensor) -> fx.Graph | None:
        """Traces the network, test-propagates two images without gradient and returns the graph;
        None for `linear`.

        Raises:
            RequestError: the network cannot be traced, or the named layer has no rule.
        """
        if self.mode == "linear":
            return None
        try:
            with evaluating(network), torch.no_grad():
                graph = trace(network)
                propagate(graph, network, images[:2], self.sigma, self.rules())
        except ValueError as error:
            raise RequestError(f"method covariance: {error}") from error
        return graph

    def rules(self) -> Rules:
        """Returns the propagation settings."""
        assert self.mode != "linear"
        return Rules(
            mode=self.mode,
            r_max=self.r_max,
            ridge=self.ridge,
            expected_relu=self.expected_relu,
            detach=self.detach_covariance,
        )

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss above; see `Method.loss`.

        Metrics: `covariance/radius`, the mean of sigma z, counting misclassified images as 0; an
        estimate.
        """
        noise = torch.empty_like(images).normal_(generator=context.generator)
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        logits, scores = self._scored(
            network, images + self.sigma * noise, context.prepared, labels
        )
        correct = logits.argmax(1) == labels
        context.metrics["covariance/radius"] = (self.sigma * scores * correct).detach().mean()
        loss = probability_cross_entropy(logits.softmax(1), targets).mean()
        if context.progress < self.warmup or self.weight == 0:
            return loss
        if self.hinge == "radius":
            hinges = radius_hinge(scores, self.sigma, self.gamma)
        else:
            hinges = margin_hinge(scores, correct, self.gamma) + probability_hinge(
                (self.beta * logits).softmax(1), labels, self.gamma
            )
        return loss + self.weight * hinges.mean()

    def _scored(
        self, network: nn.Module, inputs: Tensor, graph: fx.Graph | None, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns logits (B, K) of noisy images, and z (B,) of the pair that the hinge compares."""
        first = labels if self.hinge == "radius" else None
        if graph is None:
            with torch.compiler.set_stance("force_eager"):  # compiled code has one backward pass
                logits = network(inputs.requires_grad_())
            pair = contenders(logits, first)
            detach = self.detach_covariance
            return logits, linear_score(logits, pair, inputs, self.sigma, detach=detach)
        rules = self.rules()

        def moments(module: nn.Module, images: Tensor) -> LogitMoments:
            return propagate(graph, module, images, self.sigma, rules, labels=first)

        through = getattr(network, "through", None)  # counts the pass if the network counts passes
        found = moments(network, inputs) if through is None else through(moments, inputs)
        return found[0], margin_score(LogitMoments(*found), crossed=self.hinge == "code")

    def noise(self) -> float:
        """Returns the training sigma, which certification also uses."""
        return self.sigma

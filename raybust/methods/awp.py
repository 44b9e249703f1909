"""Adversarial weight perturbation: Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust
Generalization" (NeurIPS 2020, arXiv:2004.05884). Wraps an adversarial method.

Batch norm's statistics and random draws of the pass that finds the perturbation do not count. With
several ranks, each perturbs the weights by the gradient of its own images (our choice).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from raybust.config.options import option
from raybust.methods.base import Adversarial, Method, StepContext
from raybust.methods.pgd import Pgd
from raybust.numerics.attacks import untracked

_TINY = 1e-20


@dataclass(frozen=True, kw_only=True)
class Awp(Method):
    """The gradient of `base`'s loss at weights w + v, taken at what its attack found at w, for each
    weight tensor of more than one dimension: v = gamma ||w|| g / ||g||, g the gradient at w.

    Around a method without attack it flattens the loss in the same way (our extension); both
    passes then share their random draws.
    """

    base: Method = field(default_factory=Pgd)
    gamma: float = option(
        0.005,
        "Norm of the perturbation in norms of the weights; the authors use 0.005 with trades and"
        " 0.01 with pgd.",
        ge=0,
    )
    after: float = option(
        0.0,
        "Fraction of the run before which nothing is perturbed; the authors use 0.05 with trades.",
        ge=0,
        lt=1,
    )

    def problems(self) -> list[str]:
        """Adds what the base must be: an attack belongs to the weights before they move."""
        found, inner = super().problems(), self.base.wrapped
        while inner is not None and not isinstance(inner, Adversarial):
            inner = inner.wrapped
        unsplit = isinstance(self.base, Adversarial) and type(self.base).loss != Adversarial.loss
        if unsplit or inner is not None:
            inside = f"; put awp inside of {self.base.key}" if inner is not None else ""
            found.append(
                f"base: got {self.base.key}, whose attack cannot be separated from its loss,"
                " expected pgd, trades, smoothadv, multi_norm, avmixup, interpolated_adversarial,"
                f" or a method without attack{inside}"
            )
        return found

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the base's loss at the perturbed weights; see `Method.loss`."""
        base, inner = self.base, self.inner(context)
        step = _Loss(network, base)
        if isinstance(base, Adversarial):
            step.found = base.find(network, images, targets, inner)
        if not self.gamma or context.progress < self.after:
            plain: Tensor = step(images, targets, inner)
            return plain
        with _uncounted(network, inner) as copied:
            shifts = perturbation(network, step(images, targets, copied), self.gamma)
        known = dict(network.named_parameters())
        moved = {f"network.{name}": known[name] + shift for name, shift in shifts.items()}
        loss: Tensor = functional_call(step, moved, (images, targets, inner))
        return loss


class _Loss(nn.Module):
    """A method's loss as a module, whose weights `functional_call` can replace.

    Attributes:
        found: what the attack found.
    """

    def __init__(self, network: nn.Module, method: Method) -> None:
        super().__init__()
        self.network, self._method = network, method
        self.found: Any = None
        self.training = network.training

    def forward(self, images: Tensor, targets: Tensor, context: StepContext) -> Tensor:
        """Returns the loss; arguments as in `Method.loss`."""
        if isinstance(self._method, Adversarial):
            return self._method.loss_at(self.network, images, targets, context, self.found)
        return self._method.loss(self.network, images, targets, context)


def perturbation(network: nn.Module, loss: Tensor, gamma: float) -> dict[str, Tensor]:
    """Returns v = gamma ||w|| g / (||g|| + 1e-20) for each trained tensor of more than one
    dimension, by name.

    Args:
        network: with the weights w.
        loss: a scalar, of which g is the gradient.
        gamma: relative norm.
    """
    weights = {name: p for name, p in network.named_parameters() if p.ndim > 1 and p.requires_grad}
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {
        name: gamma * weight.detach().norm() * g / (g.norm() + _TINY)
        for (name, weight), g in zip(weights.items(), gradients, strict=True)
        if g is not None
    }


@contextmanager
def _uncounted(network: nn.Module, context: StepContext) -> Iterator[StepContext]:
    """Yields a context for a pass that leaves no trace but its count: statistics, random states,
    metrics and memory are as before."""
    place = context.generator.get_state()
    device = context.generator.device
    with (
        untracked(network),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        yield dataclasses.replace(context, metrics={}, memory=dict(context.memory))
    context.generator.set_state(place)

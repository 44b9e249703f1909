"""The state of a network under attack: frozen and in eval mode, then restored.

Parameters require no gradient, so an attack step costs a forward pass and the input gradient. Batch
norm uses running statistics (Pang et al., 2021, "Bag of Tricks for Adversarial Training",
arXiv:2010.00467) or, as in Madry et al., those of the batch, and updates neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from raybust.numerics.attacks.fold import folded
from raybust.numerics.modes import evaluating

Statistics = Literal["running", "batch"]
"""Batch norm statistics that an attack uses."""


@contextmanager
def attacked(
    network: nn.Module, *, statistics: Statistics = "running", fold: bool = True
) -> Iterator[None]:
    """Freezes a network for an attack; restores all flags and modes.

    Args:
        network: the module itself, not a DDP wrapper.
        statistics: `running`: all modules in eval mode. `batch`: batch norms use the statistics of
            the attacked batch and do not update the running ones; all else in eval mode.
        fold: whether to fold batch norms into the preceding convolutions meanwhile, which is
            cheaper and equal up to rounding; for running statistics only.
    """
    # Those of a copied TorchScript network are no leaves.
    asked = [(p, p.requires_grad) for p in network.parameters() if p.is_leaf]
    norms = [module for module in network.modules() if isinstance(module, _NormBase)]
    tracked = [(norm, norm.track_running_stats) for norm in norms]
    try:
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        with ExitStack() as stack:
            stack.enter_context(evaluating(network))
            if statistics == "batch":
                for norm in norms:
                    norm.training, norm.track_running_stats = True, False
            elif fold:
                stack.enter_context(folded(network))
            yield
    finally:
        for parameter, flag in asked:
            parameter.requires_grad_(flag)
        for norm, flag in tracked:
            norm.track_running_stats = flag


@contextmanager
def untracked(network: nn.Module, on: bool = True) -> Iterator[None]:
    """Stops batch norms from updating running statistics; in train mode they still normalize by
    those of the batch.

    Args:
        network: the module itself.
        on: False does nothing.
    """
    norms = [module for module in network.modules() if isinstance(module, _NormBase)] if on else []
    tracked = [(norm, norm.track_running_stats) for norm in norms]
    try:
        for norm, _ in tracked:
            norm.track_running_stats = False
        yield
    finally:
        for norm, flag in tracked:
            norm.track_running_stats = flag


def has_gradient(network: nn.Module, images: Tensor) -> bool:
    """Returns whether the outputs have a gradient with respect to the images (B, C, H, W)."""
    with torch.enable_grad():
        point = images.detach().clone().requires_grad_()
        logits = network(point)
        if not logits.requires_grad:
            return False
        try:
            (found,) = torch.autograd.grad(logits.sum(), point, allow_unused=True)
        except RuntimeError:  # part of the network is not differentiable
            return False
    return found is not None and bool(found.isfinite().any())

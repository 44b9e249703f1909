"""The network's state while it is attacked: frozen, in eval mode, and afterwards as it was.

Parameters ask for no gradient, so that an attack step costs a forward pass and the gradient of the
input alone. Batch norm uses its running statistics (Pang et al., 2021, "Bag of Tricks for
Adversarial Training", arXiv:2010.00467) or, as Madry et al. trained, the batch's, and updates
neither. Part of numerics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from raybust.numerics.attacks.fold import folded

Statistics = Literal["running", "batch"]


@contextmanager
def attacked(
    network: nn.Module, *, statistics: Statistics = "running", fold: bool = True
) -> Iterator[None]:
    """Freezes a network for an attack; flags and modes are as they were afterwards, bit for bit.

    Args:
        network: the module itself, never a DDP wrapper around it.
        statistics: `running`: all modules in eval mode. `batch`: batch norms use the statistics of
            the attacked batch and leave the running ones alone; all else in eval mode.
        fold: whether batch norms are folded into the convolutions before them meanwhile, which
            is cheaper and the same up to rounding; running statistics only.
    """
    modes = [(module, module.training) for module in network.modules()]
    asked = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    norms = [module for module in network.modules() if isinstance(module, _NormBase)]
    tracked = [(norm, norm.track_running_stats) for norm in norms]
    try:
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        for module, _ in modes:
            module.training = False
        with ExitStack() as stack:
            if statistics == "batch":
                for norm in norms:
                    norm.training, norm.track_running_stats = True, False
            elif fold:
                stack.enter_context(folded(network))
            yield
    finally:
        for parameter, flag in asked:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
        for norm, flag in tracked:
            norm.track_running_stats = flag


@contextmanager
def untracked(network: nn.Module, on: bool = True) -> Iterator[None]:
    """Leaves the running statistics of batch norms alone; in train mode they normalize by the
    batch's, as before.

    Args:
        network: the module itself.
        on: False changes nothing.
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
    """Returns whether a gradient leads from the network's outputs to the images (B, C, H, W)."""
    with torch.enable_grad():
        point = images.detach().clone().requires_grad_()
        logits = network(point)
        if not logits.requires_grad:
            return False
        try:
            (found,) = torch.autograd.grad(logits.sum(), point, allow_unused=True)
        except RuntimeError:  # a part of the network has no derivative
            return False
    return found is not None and bool(found.isfinite().any())

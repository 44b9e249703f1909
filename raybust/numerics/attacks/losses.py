"""Losses that attacks maximize: cross entropy, margin, and difference of logits ratio (DLR).

One number per example, so gradients of their sum do not depend on the batch. CW's margin (Carlini
and Wagner, 2017, arXiv:1608.04644), DLR and targeted DLR (Croce and Hein, 2020, arXiv:2003.01690,
equations 4 and 5).

Notation: logits z (B, K), label y, target class t, sorted logits z_(1) >= z_(2) >= ...
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from raybust.errors import RequestError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, K) and labels (B,) to (B,)."""

_TINY = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns -log softmax(z)_y: (B,). Labels may be probabilities (B, K)."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns max over i != y of z_i, minus z_y: (B,), positive if the network errs."""
    true = logits.gather(1, labels[:, None])[:, 0]
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - true


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns -(z_y - max over i != y of z_i) / (z_(1) - z_(3)): (B,); needs K >= 3."""
    check_classes(logits, 3, "the DLR loss")
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Returns -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2): (B,); needs K >= 4.

    Args:
        logits: (B, K).
        labels: int64 (B,).
        targets: int64 (B,), target classes.
    """
    check_classes(logits, 4, "the targeted DLR loss")
    top = logits.topk(4, dim=1).values
    true, target = (logits.gather(1, at[:, None])[:, 0] for at in (labels, targets))
    return (target - true) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


def check_classes(logits: Tensor, least: int, what: str) -> None:
    """Rejects logits (B, K) with fewer classes than a loss needs.

    Raises:
        RequestError: K < least.
    """
    if logits.shape[1] < least:
        raise RequestError(
            f"attacks: {what} needs at least {least} classes, the network has {logits.shape[1]}; "
            "use the attacks fgsm, pgd, apgd-ce and square"
        )

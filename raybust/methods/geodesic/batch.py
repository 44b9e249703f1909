"""What steps and rounds of method `geodesic` share: prepared state, labels as probabilities, checks
of a batch, the count of passes through networks other than the trained one.

Batches have B images of shape C x H x W and K classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from raybust.errors import WorkError
from raybust.methods.base import StepContext
from raybust.numerics.autoencoder import Autoencoder
from raybust.numerics.transport import Counter


class Prepared(NamedTuple):
    """Result of `setup`: number of classes, the base's prepared state, the latent autoencoder."""

    classes: int
    base: Any
    coder: Autoencoder | None = None


def probabilities_of(targets: Tensor, images: Tensor, context: StepContext) -> Tensor:
    """Returns labels (B,) or probabilities (B, K) as probabilities (B, K)."""
    if targets.ndim == 2:
        return targets
    return F.one_hot(targets, context.prepared.classes).to(images.dtype)


def check_finite(images: Tensor, points: Tensor) -> None:
    """Checks images (B, C, H, W) and the points (B, ...) that are coupled, in one read from the
    device.

    Raises:
        WorkError: one is NaN or infinite.
    """
    pixels, features = torch.stack([images.isfinite().all(), points.isfinite().all()]).tolist()
    if not pixels:
        raise WorkError("geodesic: got pixels that are NaN or infinite")
    if not features:
        raise WorkError("geodesic: got features that are NaN or infinite; lower train.lr")


def counter(context: StepContext) -> Counter:
    """Returns a function that counts images through other networks in the context's metrics."""
    metrics, key = context.metrics, "geodesic/other_passes"

    def count(passes: int) -> None:
        metrics[key] = metrics.get(key, 0.0) + passes

    return count

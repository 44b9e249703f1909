"""Preconditions of a certificate: images in [0, 1], and a network in eval mode that treats each
image independently.

Errors state what was found and how to fix it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from raybust.errors import RequestError
from raybust.numerics.logits import FLOAT32, logit_change

TOLERANCE = {"float32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
"""Change of an image's logits with its batch that is tolerated, as a share of their spread:
rounding differs by batch size; batch norm in train mode changes them by more than tenths."""
_SPACING = {"float32": FLOAT32, "tf32": 2.0**-11, "bf16": 2.0**-8}


def check_images(images: Tensor, shape: tuple[int, int, int]) -> None:
    """Rejects images that are not float (B, *shape) in [0, 1].

    Raises:
        RequestError: wrong shape, a value outside [0, 1], NaN.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(shape):
        raise RequestError(
            f"images: got shape {tuple(images.shape)}, expected (B, {', '.join(map(str, shape))})"
        )
    check_range(images)


def check_range(images: Tensor) -> None:
    """Rejects images outside [0, 1].

    Raises:
        RequestError: a value outside [0, 1], NaN.
    """
    low, high = (float(v) for v in images.float().aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= 0.0 and high <= 1.0):
        raise RequestError(
            f"images: got values from {low:g} to {high:g}, expected [0, 1]; normalize in the "
            "network's first layer, so that noise and eps are in pixel units"
        )


def check_mode(network: nn.Module) -> None:
    """Rejects a network with a module in train mode.

    Raises:
        RequestError: names the first such module.
    """
    for name, module in network.named_modules():
        if module.training:
            raise RequestError(
                f"network: module '{name or type(module).__name__}' is in train mode, where "
                "outputs depend on the batch; call network.eval() first"
            )


def check_outputs(forward: Callable[[Tensor], Tensor], noisy: Tensor, precision: str) -> int:
    """Returns the number of classes; rejects a network whose output for an image depends on the
    rest of the batch, or is random.

    Args:
        forward: images to logits.
        noisy: (B, C, H, W), B >= 2: images as the network will see them.
        precision: the protocol's, which sets the tolerance.

    Raises:
        RequestError: logits are not (B, K), are NaN, or depend on the batch.
    """
    logits = forward(noisy).float()
    check_logits(logits, len(noisy))
    change, allowed = batch_effect(
        lambda batch: forward(batch).float(), noisy, logits, TOLERANCE[precision],
        _SPACING[precision],
    )  # fmt: skip
    if not change <= allowed:
        raise RequestError(
            f"network: the logits of an image change by {change:.3g} with the rest of its batch "
            f"(allowed: {allowed:.3g}); certificates need a deterministic network that treats "
            "images independently: no batch statistics, no dropout, no attention across the batch"
        )
    return logits.shape[1]


def check_logits(logits: Tensor, count: int) -> None:
    """Rejects outputs that are not logits (count, K), or NaN.

    Raises:
        RequestError: another shape, NaN.
    """
    if logits.ndim != 2 or len(logits) != count:
        raise RequestError(
            f"network: got outputs of shape {tuple(logits.shape)} for {count} images, "
            f"expected ({count}, classes)"
        )
    if logits.isnan().any():
        raise RequestError("network: its outputs are NaN; the training may have diverged")


def batch_effect(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    logits: Tensor,
    share: float,
    spacing: float = FLOAT32,
) -> tuple[float, float]:
    """Returns the change of an image's logits with its place and company in a batch, and the
    allowed one, see `logit_change`.

    Args:
        forward: images to logits.
        images: (B, C, H, W) in [0, 1].
        logits: of the images, (B, K).
        share: allowed change as a share of the logits' spread.
        spacing: of the arithmetic.
    """
    beside, turned = torch.cat([images[:1], 1.0 - images[1:]]), images.flip(0)
    first, last = forward(images[:1]), forward(images[-1:])
    found = [
        torch.cat([first, logits[1:-1], last])[: len(logits)],
        torch.cat([forward(beside)[:1], logits[1:]]),
        forward(turned).flip(0),
    ]
    ours, theirs = logits.cpu(), torch.stack(found).cpu()
    pairs = [logit_change(ours, other, share, spacing) for other in theirs]
    return max(pairs, key=lambda pair: pair[0] / pair[1])

"""What must hold before a certificate means anything: images in [0, 1], a network in eval mode that
treats every image by itself.

Each check refuses with what it saw and how to mend it. Stage `certify` of the arrow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from raybust.errors import RequestError

TOLERANCE = {"float32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
"""Share of the largest logit by which an image's logits may move with its batch: kernels differ in
rounding by batch size, a batch norm in train mode moves them by more than tenths."""


def check_images(images: Tensor, shape: tuple[int, int, int]) -> None:
    """Refuses images that are not float (B, *shape) in [0, 1].

    Raises:
        RequestError: wrong shape, a value outside [0, 1], NaN.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(shape):
        raise RequestError(
            f"images: got shape {tuple(images.shape)}, expected (B, {', '.join(map(str, shape))})"
        )
    low, high = (float(v) for v in images.float().aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= 0.0 and high <= 1.0):
        raise RequestError(
            f"images: got values from {low:g} to {high:g}, expected [0, 1]; the network's first "
            "layer normalizes, so that the noise is in units of pixels"
        )


def check_mode(network: nn.Module) -> None:
    """Refuses a network of which any module is in train mode.

    Raises:
        RequestError: naming the first such module.
    """
    for name, module in network.named_modules():
        if module.training:
            raise RequestError(
                f"network: its module '{name or type(module).__name__}' is in train mode, in which "
                "outputs depend on the batch; call network.eval() first"
            )


def check_outputs(forward: Callable[[Tensor], Tensor], noisy: Tensor, precision: str) -> int:
    """Returns the number of classes; refuses a network whose output for an image depends on the
    other images of its batch, or on chance.

    Args:
        forward: images to logits.
        noisy: (B, C, H, W), B >= 2: images as the network will see them.
        precision: of the protocol, which sets the tolerance.

    Raises:
        RequestError: logits of another shape than (B, K), NaN, dependence on the batch.
    """
    logits = forward(noisy).float()
    if logits.ndim != 2 or len(logits) != len(noisy):
        raise RequestError(
            f"network: got outputs of shape {tuple(logits.shape)} for {len(noisy)} images, "
            f"expected ({len(noisy)}, classes)"
        )
    if logits.isnan().any():
        raise RequestError("network: its outputs are NaN; certify a checkpoint that trained well")
    others = torch.cat([noisy[:1], 1.0 - noisy[1:]])
    apart = max(
        float((forward(batch)[0].float() - logits[0]).abs().max()) for batch in (noisy[:1], others)
    )
    allowed = TOLERANCE[precision] * max(float(logits.abs().max()), 1e-6)
    if not apart <= allowed:
        raise RequestError(
            f"network: the logits of an image move by {apart:.3g} with the other images of its "
            f"batch (allowed: {allowed:.3g}); certificates need a network that treats images one "
            "by one and without chance: no batch statistics, no dropout, no attention "
            "across the batch"
        )
    return logits.shape[1]

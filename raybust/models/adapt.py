"""Adapts external networks to return float32 logits (B, K): casts weights of other dtypes and
extracts the logits from a tuple, a dictionary or an object.

A forward hook extracts them, so the names of the weights do not change.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raybust.numerics.modes import evaluating

_NAMES = ("logits", "out", "output", "outputs", "prediction")
"""Names of logits in a dictionary or an object, in order of preference."""


def adapt(network: nn.Module, shape: tuple[int, int, int], num_classes: int) -> list[str]:
    """Casts a network's weights to float32 and extracts its logits; returns notes on the changes.

    Args:
        network: in any mode; the mode is restored.
        shape: (C, H, W) of an image.
        num_classes: number K of logits.
    """
    notes = []
    dtypes = {part.dtype for part in network.state_dict().values() if part.is_floating_point()}
    default = torch.get_default_dtype()
    if dtypes - {default}:
        network.to(default)
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        notes.append(f"its weights were cast from {names} to {str(default).removeprefix('torch.')}")
    try:
        with evaluating(network), torch.no_grad():
            output = network(torch.zeros(2, *shape))
    except Exception:
        return notes  # the check of the complete network reports the error
    if isinstance(output, Tensor) and output.shape == (2, num_classes):
        output = _training_output(network, shape, output)
    if isinstance(output, Tensor) and output.shape == (2, num_classes):
        return notes
    key = _logits_key(output, num_classes)
    if key is not None:
        network.register_forward_hook(ExtractLogits(key, num_classes))
        notes.append(f"its logits are extracted from its output: {key or 'flattened'}")
    return notes


def _training_output(network: nn.Module, shape: tuple[int, int, int], default: Any) -> Any:
    """Returns a copy's output in training mode, in which some networks use additional heads."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return copy.deepcopy(network).train()(torch.zeros(2, *shape))
    except Exception:
        return default  # training itself reports the error


class ExtractLogits:
    """A forward hook that replaces a network's output by its logits."""

    def __init__(self, key: str, num_classes: int) -> None:
        """Stores the location of the logits.

        Args:
            key: an item's number or name, or "" for the output itself.
            num_classes: number K of logits.
        """
        self.key, self.num_classes = key, num_classes

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Returns the logits (B, K)."""
        return _item(output, self.key).flatten(1)


def _logits_key(output: Any, num_classes: int) -> str | None:
    """Returns the key of the logits (2, K) in an output for two images, or None."""
    if isinstance(output, Tensor):
        names = [""]
    elif isinstance(output, (tuple, list)) and not hasattr(output, "_fields"):
        names = [str(number) for number in range(len(output))]
    elif isinstance(output, Mapping):
        names = [*(name for name in _NAMES if name in output), *map(str, output)]
    else:
        names = [name for name in _NAMES if hasattr(output, name)]
        names += [str(number) for number in range(len(output) if isinstance(output, tuple) else 0)]
    for name in names:
        item = _item(output, name)
        if isinstance(item, Tensor) and item.ndim > 1:
            size = item.flatten(1).shape
            if size == (2, num_classes) and all(n == 1 for n in item.shape[2:]):
                return name
    return None


def _item(output: Any, key: str) -> Any:
    if not key:
        return output
    if isinstance(output, Mapping):
        return output.get(key)
    if key.isdigit() and isinstance(output, (tuple, list)):
        return output[int(key)]
    if isinstance(output, Tensor):  # some networks return a plain tensor in training mode
        return output
    return getattr(output, key, None)

"""Networks of others made to give float32 logits (B, K): other types of weights are cast, and the
logits are picked out of a tuple, a dictionary or an object.

A hook picks them, so that the names of the weights stay as they are. Between `external` and
`build`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_NAMES = ("logits", "out", "output", "outputs", "prediction")
"""Where logits stand in a dictionary or an object, in this order."""


def adapt(network: nn.Module, shape: tuple[int, int, int], num_classes: int) -> list[str]:
    """Casts a network's weights to float32 and picks its logits; returns what was done.

    Args:
        network: in any mode, which is left as it is.
        shape: (C, H, W) of an image.
        num_classes: number K of logits.
    """
    notes = []
    types = {part.dtype for part in network.state_dict().values() if part.is_floating_point()}
    ours = torch.get_default_dtype()
    if types - {ours}:
        network.to(ours)
        names = ", ".join(sorted(str(one).removeprefix("torch.") for one in types))
        notes.append(f"its weights were {names} and are {str(ours).removeprefix('torch.')} here")
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            output = network.eval()(torch.zeros(2, *shape))
    except Exception:
        return notes  # the check of the whole network says what is wrong
    finally:
        for module, mode in modes:
            module.training = mode
    if isinstance(output, Tensor) and output.shape == (2, num_classes):
        output = _in_training(network, shape, output)
    if isinstance(output, Tensor) and output.shape == (2, num_classes):
        return notes
    place = _place(output, num_classes)
    if place is not None:
        network.register_forward_hook(Pick(place, num_classes))
        notes.append(f"its logits are picked from its output: {place or 'flattened'}")
    return notes


def _in_training(network: nn.Module, shape: tuple[int, int, int], otherwise: Any) -> Any:
    """Returns what a copy of a network gives in training mode, in which some have further heads."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return copy.deepcopy(network).train()(torch.zeros(2, *shape))
    except Exception:
        return otherwise  # training itself tells what is wrong


class Pick:
    """A forward hook that replaces a network's output by the logits in it."""

    def __init__(self, place: str, num_classes: int) -> None:
        """Keeps where the logits are.

        Args:
            place: an item's number or name, or "" for the output itself.
            num_classes: number K of logits.
        """
        self.place, self.num_classes = place, num_classes

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Returns the logits (B, K)."""
        return _item(output, self.place).flatten(1)


def _place(output: Any, num_classes: int) -> str | None:
    """Returns where in an output for two images the logits (2, K) are, or None."""
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


def _item(output: Any, place: str) -> Any:
    if not place:
        return output
    if isinstance(output, Mapping):
        return output.get(place)
    if place.isdigit() and isinstance(output, (tuple, list)):
        return output[int(place)]
    if isinstance(output, Tensor):  # in training mode some networks give a plain tensor
        return output
    return getattr(output, place, None)

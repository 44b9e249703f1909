"""Identifies the function, the images and the labels that produced a result.

Names and weights do not identify a function: the same state dict fits another `forward`. So a
header also records the network's outputs on a few fixed inputs, and digests of the images and
labels in its rows. Used by all stages that keep rows: certify, evaluate, corruptions.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from raybust import devices
from raybust.errors import WorkError

if TYPE_CHECKING:
    from raybust.data import Part

PROBES = 4
"""Number of data images, and of noise images, on which a network is recorded (our choice)."""

TOLERANCE = 1e-4
"""Maximum difference of recorded numbers, all of order 1, between runs of the same function:
kernels and thread counts change rounding by about 1e-6."""

_DIGITS = 8
_FUNCTION, _IMAGES, _LABELS = ("weights", "outputs", "front"), ("data",), ("labels",)
_RECORDED = ("outputs", "data", "labels")
_CHOICE = {"dataset", "split", "examples", "skip"}


def outputs_of(network: nn.Module, images: Tensor, *, gradients: bool = False) -> tuple[float, ...]:
    """Returns a fingerprint of a function on `PROBES` data images, as many of uniform noise, and as
    many with Gaussian noise, which leave [0, 1]: norm and direction of the logits and of their gaps
    to the largest, through asinh, so that neither a huge logit nor a large offset hides changes of
    the others. A function that rejects images outside of [0, 1] is recorded inside only.

    A stochastic network is recorded at a fixed state of torch's global generator, which is restored
    afterwards.

    Args:
        network: images (B, C, H, W) in [0, 1] to logits (B, K), in eval mode.
        images: float (N, C, H, W) in [0, 1], N >= 1; only the first `PROBES` are used.
        gradients: also record norm and direction of each image's gradient, which attacks use.
    """
    assert not network.training, "a function is recorded in eval mode"
    own = next(network.parameters(), next(network.buffers(), images))
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(PROBES, *images.shape[1:], generator=draw)
    inputs = torch.cat([images[:PROBES].float().cpu(), noise]).to(own.device)
    with (
        devices.arithmetic(own.device),
        devices.seeded(own.device, 0),
        torch.set_grad_enabled(gradients),
    ):
        logits = network(inputs.requires_grad_(gradients))
        slopes = _gradient(_project(logits, draw).sum(), inputs) if gradients else None
        outside = _logits_outside(network, noise.to(own.device), logits.detach())
    found: list[Tensor] = []
    for rows in (logits.detach().flatten(1).double(), outside.flatten(1).double()):
        found += _size_and_direction(rows.asinh(), draw)
        found += _size_and_direction((rows - rows.max(1, keepdim=True).values).asinh(), draw)
    if slopes is not None:
        found += _size_and_direction(slopes.flatten(1).double(), draw)
    return _rounded(torch.cat(found))


@torch.no_grad()
def _logits_outside(network: nn.Module, images: Tensor, logits: Tensor) -> Tensor:
    """Returns the logits of images with Gaussian noise; zeros if the network rejects them."""
    draw = torch.Generator().manual_seed(3)
    wide = torch.randn(images.shape, generator=draw).to(images) + images
    try:
        return network(wide)
    except Exception:
        return torch.zeros_like(logits[: len(images)])


def code_of(network: nn.Module, shape: Sequence[int]) -> tuple[float, ...]:
    """Returns a fingerprint of a network's code alone: its outputs with a state drawn from a fixed
    seed. It stays the same in training and shows another `forward` where no weights are left.

    Args:
        network: unchanged by the call.
        shape: (C, H, W) of an image.
    """
    drawn = copy.deepcopy(network).cpu().eval()
    draw = torch.Generator().manual_seed(2)
    for _, tensor in sorted(drawn.state_dict().items()):
        if tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=draw, dtype=torch.float32)
            width = max(1, tensor[0].numel()) if tensor.dim() > 1 else 1
            sign = torch.rand(tensor.shape, generator=draw) < 0.5 if tensor.dim() > 1 else 0
            tensor.copy_((0.5 + values) * (1 - 2 * sign) / math.sqrt(width))
    found = outputs_of(drawn, fixed_images(shape))
    return found if all(map(math.isfinite, found)) else ()


def _size_and_direction(rows: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns each row's log root mean square, and a projection of the row divided by its root
    mean square; zeros for a row of zeros."""
    size = rows.square().mean(1, keepdim=True).sqrt()
    direction = torch.where(size > 0, rows / size, 0.0)
    return torch.where(size > 0, size.log(), 0.0).flatten(), _project(direction, draw)


def record(
    networks: Sequence[nn.Module], part: Part, chosen: Sequence[int], *, gradients: bool = False
) -> dict[str, Any]:
    """Returns the fields of a header that identify what made its rows: `data`, `labels`, `weights`
    and `outputs`.

    Args:
        networks: the network, then those of its parts whose outputs also count.
        part: of the data.
        chosen: positions of the examples of the rows.
        gradients: see `outputs_of`.
    """
    images = part.fetch(chosen[:PROBES])[0]
    outputs = [outputs_of(one, images, gradients=gradients) for one in networks]
    return {
        "data": part.content(chosen),
        "labels": part.labeling(chosen),
        "weights": weights_digest(networks[0]),
        "outputs": tuple(value for one in outputs for value in one),
    }


def fixed_images(shape: Sequence[int]) -> Tensor:
    """Returns uniform-noise images (PROBES, C, H, W), the same for every call.

    Args:
        shape: (C, H, W).
    """
    return torch.rand(PROBES, *shape, generator=torch.Generator().manual_seed(1))


def agree(theirs: Sequence[float], ours: Sequence[float]) -> bool:
    """Returns whether two records of `outputs_of` match up to rounding."""
    if len(theirs) != len(ours) or not all(map(math.isfinite, (*theirs, *ours))):
        return False
    return all(
        abs(a - b) <= TOLERANCE * max(1.0, abs(b)) for a, b in zip(theirs, ours, strict=True)
    )


def same_function(network: nn.Module, manifest: Mapping[str, Any]) -> bool:
    """Returns whether a network with a checkpoint's weights computes what it did when saved.

    Args:
        network: in eval mode.
        manifest: of the checkpoint; those of raybust 0.1 lack the record and pass.
    """
    trained = manifest.get("outputs")
    return trained is None or agree(trained, outputs_of(network, fixed_images(manifest["shape"])))


@torch.no_grad()
def is_random(network: nn.Module, images: Tensor) -> bool:
    """Returns whether two passes differ."""
    with devices.seeded(images.device, 0):
        first, second = network(images), network(images)
        return not torch.equal(first.nan_to_num(), second.nan_to_num())


@dataclass(frozen=True)
class Sent:
    """A network on its way to another process, with its outputs there and then.

    Unpickling builds it from whatever code that process imports, and never calls the user's
    constructor: the same weights can be another function.

    Attributes:
        network: in eval mode.
        shape: (C, H, W) of an image.
        outputs: see `outputs_of`, on `fixed_images`.
        device: type of the device on which they were recorded.
    """

    network: nn.Module
    shape: tuple[int, ...]
    outputs: tuple[float, ...]
    device: str = devices.CPU

    @classmethod
    def of(cls, network: nn.Module, shape: Sequence[int]) -> Sent:
        """Records a network."""
        images = fixed_images(shape)
        own = next(network.parameters(), next(network.buffers(), images)).device.type
        return cls(network, tuple(shape), outputs_of(network, images), own)

    def on(self, device: torch.device | str) -> nn.Module:
        """Returns the network, in eval mode on a device.

        Raises:
            WorkError: it computes another function here.
        """
        network, images = self.network.to(device).eval(), fixed_images(self.shape)
        same = agree(self.outputs, outputs_of(network, images))
        if not same and torch.device(device).type != self.device:
            same = is_random(network, images.to(device))  # draws other numbers there
        if not same:
            raise WorkError(
                "a worker computes another function than the command: the network's code changed"
                " while it ran, or depends on more than its weights, such as a global variable;"
                " nothing of the worker was kept"
            )
        return network


def weights_digest(network: nn.Module) -> str:
    """Returns the SHA-256 of a network's state: sorted names, dtypes, shapes, bytes."""
    return state_digest(network.state_dict())


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Returns the `weights_digest` of a network with this state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Returns how two headers differ, one phrase per kind: function, images, labels, protocol; or
    that the first records too little to prove that they agree.

    Args:
        theirs: fields of the existing header.
        ours: fields of the requested header; lists and tuples compare equal.
    """
    theirs, ours = _plain(theirs), _plain(ours)
    changed = {
        key: f"{key}: {_short(theirs.get(key))} -> {_short(ours.get(key))}"
        for key in [*ours, *(key for key in theirs if key not in ours)]
        if theirs.get(key) != ours.get(key)
    }
    if "outputs" in changed and agree(theirs.get("outputs") or (), ours.get("outputs") or ()):
        del changed["outputs"]
    unproven = [key for key in _RECORDED if key in ours and not theirs.get(key)]
    if unproven:
        changed = {key: text for key, text in changed.items() if key not in _RECORDED}
    elif "data" in changed:  # outputs are recorded on these images
        changed.pop("outputs", None)
    if changed.keys() & _CHOICE:  # digests are of the chosen examples
        changed = {key: text for key, text in changed.items() if key not in ("data", "labels")}
    kinds = (
        ("another function", lambda key: key in _FUNCTION),
        ("other images", lambda key: key in _IMAGES),
        ("other labels", lambda key: key in _LABELS),
        ("another protocol", lambda key: key not in (*_FUNCTION, *_IMAGES, *_LABELS)),
    )
    found = []
    for kind, belongs in kinds:
        texts = [text for key, text in changed.items() if belongs(key)]
        found += [f"{kind} ({'; '.join(texts)})"] if texts else []
    if unproven:
        found.append(f"an unproven origin (its header does not record {', '.join(unproven)})")
    return found


def fields_of(text: str) -> dict[str, Any]:
    """Returns the fields of a header's JSON.

    Raises:
        ValueError: it is not a JSON object.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}


def _project(values: Tensor, draw: torch.Generator) -> Tensor:
    """Returns each row's product with a fixed Gaussian vector, in float64."""
    rows = values.flatten(1).double()
    vector = torch.randn(rows.shape[1], generator=draw, dtype=torch.float64)
    return rows @ vector.to(rows.device) / math.sqrt(rows.shape[1])


def _gradient(total: Tensor, inputs: Tensor) -> Tensor:
    """Returns the gradient with respect to the inputs; zeros where no path is differentiable."""
    if not total.requires_grad:
        return torch.zeros_like(inputs)
    try:
        (found,) = torch.autograd.grad(total, inputs, allow_unused=True)
    except RuntimeError:  # part of the network is not differentiable
        found = None
    return torch.zeros_like(inputs) if found is None else found


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values.detach().cpu().tolist())


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _tuples(value) for key, value in fields.items()}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    """Returns a value shortened for messages: the start of a digest or of a list."""
    if isinstance(value, str) and len(value) >= 16 and set(value) <= set("0123456789abcdef"):
        return value[:8]
    if isinstance(value, tuple) and len(value) > 5:
        return f"({value[0]}, {value[1]}, ...)"
    return str(value)

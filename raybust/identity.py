"""What a result belongs to: the function, the images and the labels that made it.

Names and weights do not tell a function: the same state dict fits another `forward`. So a header
also records what the network computes on a few fixed inputs, and the content of the images and
labels that its rows are about. Used by all stages that keep rows: certify, evaluate, corruptions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PROBES = 4
"""Images of the data, and as many of noise, on which a network is recorded (our choice)."""

TOLERANCE = 1e-4
"""Difference of recorded numbers, all of the order of 1, within which two runs of one function
agree: kernels and numbers of threads differ in rounding, by about 1e-6."""

_DIGITS = 8
_FUNCTION, _IMAGES, _LABELS = ("weights", "outputs", "front"), ("data",), ("labels",)
_RECORDED = ("outputs", "data", "labels")


def outputs_of(network: nn.Module, images: Tensor, *, gradients: bool = False) -> tuple[float, ...]:
    """Returns numbers that tell one function from another, of `PROBES` images of the data and as
    many of uniform noise: size and direction of the logits and of their distances to the largest,
    through asinh. A huge logit then hides no change of the others, nor does a large offset.

    A network that draws at random is recorded at a fixed state of torch's global generator, which
    is put back afterwards.

    Args:
        network: images (B, C, H, W) in [0, 1] to logits (B, K), in eval mode.
        images: float (N, C, H, W) in [0, 1], N at least 1; the first are used.
        gradients: also record size and direction of each image's gradient, on which attacks depend.
    """
    assert not network.training, "a function is recorded in eval mode"
    own = next(network.parameters(), next(network.buffers(), images))
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(PROBES, *images.shape[1:], generator=draw)
    inputs = torch.cat([images[:PROBES].float().cpu(), noise]).to(own.device)
    with _exact(own.device), torch.set_grad_enabled(gradients):
        logits = network(inputs.requires_grad_(gradients))
        slopes = _gradient(_project(logits, draw).sum(), inputs) if gradients else None
    rows = logits.detach().flatten(1).double()
    found = [*_size_and_direction(rows.asinh(), draw)]
    found += _size_and_direction((rows - rows.max(1, keepdim=True).values).asinh(), draw)
    if slopes is not None:
        found += _size_and_direction(slopes.flatten(1).double(), draw)
    return _rounded(torch.cat(found))


def _size_and_direction(rows: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns, for each row, the logarithm of its root mean square, and a projection of the row
    over that; zeros for a row of zeros."""
    size = rows.square().mean(1, keepdim=True).sqrt()
    direction = torch.where(size > 0, rows / size, 0.0)
    return torch.where(size > 0, size.log(), 0.0).flatten(), _project(direction, draw)


def fixed_images(shape: Sequence[int]) -> Tensor:
    """Returns images (PROBES, C, H, W) of uniform noise, the same for every caller.

    Args:
        shape: (C, H, W).
    """
    return torch.rand(PROBES, *shape, generator=torch.Generator().manual_seed(1))


def agree(theirs: Sequence[float], ours: Sequence[float]) -> bool:
    """Returns whether two records of `outputs_of` are of one function, up to rounding."""
    if len(theirs) != len(ours) or not all(map(math.isfinite, (*theirs, *ours))):
        return False
    return all(
        abs(a - b) <= TOLERANCE * max(1.0, abs(b)) for a, b in zip(theirs, ours, strict=True)
    )


def weights_digest(network: nn.Module) -> str:
    """Returns the SHA-256 of a network's state: names in order, dtypes, shapes, bytes."""
    return state_digest(network.state_dict())


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Returns `weights_digest` of the network that has this state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Returns in what two headers differ, one phrase a kind: the function, the images, the labels,
    the protocol; or that the first does not record enough to prove that they are the same.

    Args:
        theirs: fields of the header that is there.
        ours: fields of the header of what is asked for now; lists and tuples are equal.
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
    elif "data" in changed:  # the recorded outputs are of those images
        changed.pop("outputs", None)
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
        found.append(f"unproven origin (its header does not record {', '.join(unproven)})")
    return found


def fields_of(text: str) -> dict[str, Any]:
    """Returns the fields of a header's JSON.

    Raises:
        ValueError: it is no JSON object.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("no JSON object")
    return {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Full float32 without autocast, at a fixed state of torch's global generator."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False),
            torch.autocast(device.type, enabled=False),
        ):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _project(values: Tensor, draw: torch.Generator) -> Tensor:
    """Returns one number a row: its product with a fixed Gaussian vector, in float64."""
    rows = values.flatten(1).double()
    vector = torch.randn(rows.shape[1], generator=draw, dtype=torch.float64)
    return rows @ vector.to(rows.device) / math.sqrt(rows.shape[1])


def _gradient(total: Tensor, inputs: Tensor) -> Tensor:
    """Returns the gradient by the inputs; zeros where no differentiable path leads to them."""
    if not total.requires_grad:
        return torch.zeros_like(inputs)
    try:
        (found,) = torch.autograd.grad(total, inputs, allow_unused=True)
    except RuntimeError:  # a part of the network has no derivative
        found = None
    return torch.zeros_like(inputs) if found is None else found


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values.detach().cpu().tolist())


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _tuples(value) for key, value in fields.items()}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    """Returns a value as a message shows it: the start of a digest, the start of a list."""
    if isinstance(value, str) and len(value) >= 16 and set(value) <= set("0123456789abcdef"):
        return value[:8]
    if isinstance(value, tuple) and len(value) > 5:
        return f"({value[0]}, {value[1]}, ...)"
    return str(value)

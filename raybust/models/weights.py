"""Weights files that others trained, read into a network without running anything that is in them.

Safetensors files (Hugging Face, https://huggingface.co/docs/safetensors) and PyTorch files that
`torch.load(weights_only=True)` accepts. Everything is compared before the first weight is copied:
a file that does not match leaves the network as it was.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raybust.errors import RequestError
from raybust.models.forms import Form, find_form, mismatches, other_types, state_dicts
from raybust.models.fronted import Fronted
from raybust.models.normalize import Normalize, Normalized
from raybust.models.unpickle import read_tensors

_CODE = re.compile(r"GLOBAL (\S+)|reduce for unrecognized|via `add_safe_globals`")
"""What torch says of a pickle that names a function or class, unlike of one that is broken."""


def load_weights(
    network: nn.Module,
    path: str | os.PathLike[str],
    *,
    normalization: bool = True,
    new_head: Literal["never", "of another shape", "always"] = "never",
) -> list[str]:
    """Reads a weights file into a network, strictly; returns what was read, a line each.

    A PyTorch file holds a state dict in one of many forms, see `forms`; objects other than tensors
    are skipped, neither imported nor called. For a `Normalized` or `Fronted` network the file may
    hold the weights of the whole, or of the inner network alone; the other layers then stay as
    built, except that a normalization stored beside the weights is used. Counters of batch norm
    (`num_batches_tracked`), which old files lack, may be missing.

    Args:
        network: what `build` returned, or any module.
        path: the file.
        normalization: whether one that the file has beside the weights is taken.
        new_head: when the network's last layer stays as it was built.

    Raises:
        RequestError: it cannot be read, or its keys and shapes are not the network's.
    """
    content, aside = _read(os.fspath(path))
    if not any(True for _ in state_dicts(content)):
        raise _no_weights(path)
    targets = [network]
    while isinstance(targets[-1], (Fronted, Normalized)):
        targets.append(targets[-1].network)
    try:
        found = [(target, *find_form(content, target.state_dict())) for target in targets]
    except RequestError as error:
        raise RequestError(f"{path}: not loaded: {error}") from None
    fitting = [(target, form, others) for target, form, others in found if form is not None]
    target, form, others = fitting[0] if fitting else (targets[-1], None, [])
    if form is None:
        raise RequestError(f"{path}: not loaded, not the weights of this network", *_nearest(
            content, targets))  # fmt: skip
    fresh = {} if new_head == "never" else _fresh(target, form, always=new_head == "always")
    form = replace(form, weights=form.weights | fresh)
    problems = mismatches(target.state_dict(), form.weights)
    if problems:
        raise RequestError(f"{path}: not loaded, not the weights of this network", *problems)
    _check_values(form, path)
    lines = [f"weights: {form} of {path}"]
    if new_head != "never":
        new = f"; new: {', '.join(fresh)}" * bool(fresh)
        lines.append(f"weights: {len(form.weights) - len(fresh)} tensors read{new}")
    if form.mean is not None:
        lines += _normalize(targets, form, path) if normalization else [
            f"weights: the normalization in {path} is not used, another one is set"
        ]  # fmt: skip
    layer = next((part for part in target.modules() if isinstance(part, Normalize)), None)
    before = None if layer is None else (layer.mean.clone(), layer.std.clone())
    target.load_state_dict(form.weights)
    if layer is not None and before is not None and form.mean is None:
        lines += _checked(layer, before, path, take=normalization)
    return [*lines, *_remarks(form, others, aside, path)]


def _fresh(network: nn.Module, form: Form, *, always: bool) -> dict[str, Tensor]:
    """Returns the tensors of the network's last layer, or those of another shape in the file."""
    layers = [name for name, part in network.named_modules()
              if isinstance(part, (nn.Linear, nn.Conv2d))]  # fmt: skip
    own = network.state_dict()
    head = {key: own[key] for key in own if layers and key.startswith(f"{layers[-1]}.")}
    read = form.weights
    return {k: v for k, v in head.items() if always or (k in read and read[k].shape != v.shape)}


def _check_values(form: Form, path: str | os.PathLike[str]) -> None:
    """Refuses weights without values of their own, or that are not finite."""
    stored = [key for key, v in form.weights.items() if v.is_meta or v.layout != torch.strided]
    if stored:
        raise RequestError(f"{path}: not loaded: {stored[0]} is sparse or has no values")
    broken = [key for key, value in form.weights.items() if not _finite(value)]
    if broken:
        raise RequestError(f"{path}: not loaded: {broken[0]} holds NaN or infinity")


def _remarks(
    form: Form, others: list[str], aside: list[str], path: str | os.PathLike[str]
) -> list[str]:
    """Returns what else to know of a file: what was not used, and in which types it is."""
    lines = []
    if form.unused:
        lines.append(
            f"warning: weights: {', '.join(form.unused[:3])} in {path} may be a normalization, but"
            " is not used; model.mean=[...] model.std=[...] set one"
        )
    if types := other_types(form.weights):
        lines.append(f"weights: {types} in the file, float32 here")
    if others:
        lines.append(f"weights: not read, though they fit too: {'; '.join(others)}")
    if aside:
        few = f"{', '.join(aside[:3])}{', ...' * (len(aside) > 3)}"
        lines.append(f"weights: left aside, neither imported nor called: {few}")
    return lines


def _finite(value: Tensor) -> bool:
    wide = value.float() if value.is_floating_point() else value
    return bool(wide.isfinite().all())


def _checked(
    layer: Normalize, before: tuple[Tensor, Tensor], path: str | os.PathLike[str], *, take: bool
) -> list[str]:
    """Puts back the normalization that the network was built with where the loaded one is not
    wanted, or is not of images in [0, 1]; returns what was done."""
    same = torch.equal(layer.mean, before[0]) and torch.equal(layer.std, before[1])
    found = layer.mean.flatten().tolist(), layer.std.flatten().tolist()
    if same or (take and _usable(*found)):
        return []
    layer.mean.copy_(before[0])
    layer.std.copy_(before[1])
    if take:
        return [_not_usable(path, *found)]
    return [f"weights: the normalization in {path} is not used, another one is set"]


def _nearest(content: Any, targets: list[nn.Module]) -> list[str]:
    """Returns the differences between the closest pair of state dict and network."""
    pairs = [
        (target.state_dict(), _bare(weights))
        for _, weights in state_dicts(content)
        for target in targets
    ]
    expected, weights = min(pairs, key=lambda pair: len(pair[0].keys() ^ pair[1].keys()))
    return mismatches(expected, weights)


def _bare(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns weights without the prefix that all their keys have."""
    while len({head := key.partition(".")[0] for key in weights}) == 1 and all(
        "." in key for key in weights
    ):
        weights = {key.removeprefix(f"{head}."): value for key, value in weights.items()}
    return weights


def _normalize(targets: list[nn.Module], form: Form, path: str | os.PathLike[str]) -> list[str]:
    """Puts the file's normalization into the first layer, where there is one."""
    assert form.mean is not None
    assert form.std is not None
    layer = next((one.normalize for one in targets if isinstance(one, Normalized)), None)
    if layer is None or form.mean.numel() not in (1, layer.mean.numel()):
        return [
            f"weights: the normalization in {path} is not used: this network has none of as many"
            " channels"
        ]
    mean, std = form.mean.tolist(), form.std.tolist()
    if not _usable(mean, std):
        return [_not_usable(path, mean, std)]
    layer.mean.copy_(form.mean.reshape(-1, 1, 1).expand_as(layer.mean))
    layer.std.copy_(form.std.reshape(-1, 1, 1).expand_as(layer.std))
    return ["weights: the normalization of the first layer is the file's own"]


def _usable(mean: list[float], std: list[float]) -> bool:
    """Returns whether a normalization is one of images in [0, 1]."""
    return all(-1 <= value <= 2 for value in mean) and all(0 < value <= 2 for value in std)


def _not_usable(path: str | os.PathLike[str], mean: list[float], std: list[float]) -> str:
    return (
        f"warning: weights: the normalization in {path} (mean {mean}, std {std}) is not of images"
        " in [0, 1] and is not used; model.mean=[...] model.std=[...] set another"
    )


def _read(path: str) -> tuple[Any, list[str]]:
    """Returns what a file holds, and the names of the objects in it that were left aside."""
    try:
        if path.endswith(".safetensors"):
            return load_file(path), []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True), []
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        try:
            content, aside = read_tensors(path)
            if any(True for _ in state_dicts(content)):
                return content, aside
        except ValueError:
            pass  # no file of PyTorch's: the message is about the pickle
        asked = _CODE.search(str(error))
        if asked or _calls(path):
            what = f" ({asked[1]})" if asked and asked[1] else ""
            raise RequestError(
                f"{path}: not loaded: the file would run code{what}; expected a .safetensors file "
                "or a PyTorch state dict"
            ) from None
        raise _no_weights(path) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, LookupError, TypeError):
        raise _no_weights(path) from None


def _calls(path: str) -> bool:
    """Tells whether a plain pickle, of a protocol that torch does not read, calls something."""
    content = Path(path).read_bytes()
    try:
        operations = {code.name for code, _, _ in pickletools.genops(content)}
    except ValueError:
        return False
    return not operations.isdisjoint(("REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"))


def _no_weights(path: str | os.PathLike[str]) -> RequestError:
    return RequestError(
        f"{path}: not a weights file; expected a .safetensors file or a PyTorch state dict, bare "
        "or in a dictionary"
    )

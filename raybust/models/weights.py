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
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raybust.errors import RequestError
from raybust.models.fronted import Fronted
from raybust.models.normalize import Normalized

_SHOWN = 3
_CODE = re.compile(r"GLOBAL (\S+)|reduce for unrecognized|via `add_safe_globals`")
"""What torch says of a pickle that names a function or class, unlike of one that is broken."""


def load_weights(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Reads a weights file into a network, strictly.

    A PyTorch file holds a state dict, bare or under `state_dict` or `model`; a `module.` in front
    of all keys goes. For a `Normalized` or `Fronted` network the file may hold the weights of the
    whole, or of the inner network alone, and the rest then stays as it was built. Counters of batch
    norm (`num_batches_tracked`), which old files lack, may be missing.

    Args:
        network: what `build` returned, or any module.
        path: the file.

    Raises:
        RequestError: it cannot be read, it would run code, or its keys and shapes are not the
            network's.
    """
    weights = _state_dict(_read(os.fspath(path)), path)
    targets = [network]
    while isinstance(targets[-1], (Fronted, Normalized)):
        targets.append(targets[-1].network)
    target = min(targets, key=lambda module: len(module.state_dict().keys() ^ weights.keys()))
    problems = _mismatches(target.state_dict(), weights)
    if problems:
        raise RequestError(f"{path}: not loaded, not the weights of this network", *problems)
    target.load_state_dict(weights)


def _read(path: str) -> Any:
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
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
        "or under 'state_dict' or 'model'"
    )


def _state_dict(content: Any, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Returns the state dict in what the file holds, `module.` stripped."""
    if isinstance(content, Mapping):
        nested = (content.get("state_dict"), content.get("model"))
        content = next((part for part in nested if isinstance(part, Mapping)), content)
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    ):
        raise _no_weights(path)
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value for key, value in content.items()}


def _mismatches(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Returns what keeps weights from a strict load: missing, unexpected, of another shape."""
    missing = [
        key for key in expected if key not in weights and not key.endswith(".num_batches_tracked")
    ]
    unexpected = [key for key in weights if key not in expected]
    shapes = [
        f"{key} is {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return [
        f"{len(found)} {kind}: {', '.join(found[:_SHOWN])}{', ...' * (len(found) > _SHOWN)}"
        for kind, found in kinds
        if found
    ]

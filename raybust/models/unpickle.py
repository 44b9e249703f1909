"""Reads tensors from PyTorch files that `torch.load(weights_only=True)` rejects for other objects.

Nothing in the file is imported or called: every global except those that rebuild tensors becomes an
inert stand-in that ignores whatever the pickle does to it. A tensor is a reference into the archive
and is checked against its actual bytes. Only the zip format of PyTorch 1.6 and later is read.
"""

from __future__ import annotations

import collections
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MAX_DEPTH = 8
_CORRUPT_FILE_ERRORS = (
    pickle.UnpicklingError, zipfile.BadZipFile, OSError, LookupError, TypeError, AttributeError,
    EOFError, RuntimeError, RecursionError, OverflowError, MemoryError,
)  # fmt: skip
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip


class StandIn:
    """Inert replacement for any object that is not a tensor: stores nothing, does nothing."""

    name = ""

    def __new__(cls, *args: Any, **keywords: Any) -> StandIn:  # noqa: D102
        return object.__new__(cls)

    def __init__(self, *args: Any, **keywords: Any) -> None:
        """Ignores its arguments."""

    def __call__(self, *args: Any, **keywords: Any) -> StandIn:
        """Ignores calls."""
        return self

    def __setstate__(self, state: Any) -> None:
        """Ignores state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignores items."""

    def append(self, value: Any) -> None:
        """Ignores items."""

    def extend(self, values: Any) -> None:
        """Ignores items."""

    def __hash__(self) -> int:
        """Makes it usable as a key."""
        return id(self)


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype


class _Reference(StandIn):
    """A tensor in the file: a view of a storage."""

    def __new__(cls, *args: Any, **keywords: Any) -> _Reference:
        reference = object.__new__(cls)
        reference.view = args[:4]
        return reference

    view: tuple[Any, ...]


class _Parameter(StandIn):
    """Replaces torch's _rebuild_parameter; returns the tensor in it."""

    def __new__(cls, *args: Any, **keywords: Any) -> Any:
        return args[0] if args and isinstance(args[0], _Reference) else StandIn()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.skipped: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Reference
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _Parameter
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        self.skipped.add(f"{module}.{name}")
        return type("Skipped", (StandIn,), {"name": f"{module}.{name}"})

    def persistent_load(self, saved: Any) -> Any:
        if (
            isinstance(saved, tuple)
            and len(saved) == 5
            and saved[0] == "storage"
            and isinstance(saved[1], torch.dtype)
            and isinstance(saved[2], str)
        ):
            return _Storage(saved[2], saved[1])
        return StandIn()


def read_tensors(path: str | Path) -> tuple[dict[Any, Any], list[str]]:
    """Returns the nested dictionaries of tensors in a PyTorch file, and the names of the globals
    that were skipped without being imported or called.

    Args:
        path: the file.

    Raises:
        ValueError: the file is not a PyTorch zip file, or is corrupt.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            prefix = pickled.removesuffix("data.pkl")
            with archive.open(pickled) as file:
                unpickler = _Unpickler(file)
                content = unpickler.load()
            read = partial(_tensor, archive=archive, prefix=prefix, cache={})
            tree = _tree(content, read, set(), 0)
    except _CORRUPT_FILE_ERRORS as error:
        raise ValueError(f"not a valid PyTorch file: {error}") from None
    return (tree if isinstance(tree, dict) else {}), sorted(unpickler.skipped)


def _tree(value: Any, read: Callable[[_Reference], Tensor], seen: set[int], depth: int) -> Any:
    """Returns a tensor, or nested dictionaries of tensors with string keys; else None."""
    if isinstance(value, _Reference):
        return read(value)
    if not isinstance(value, Mapping) or depth > _MAX_DEPTH:
        return None
    if id(value) in seen:  # read shared dictionaries only once
        return None
    seen.add(id(value))
    found = {key: _tree(part, read, seen, depth + 1)
             for key, part in value.items() if isinstance(key, str)}  # fmt: skip
    return {key: part for key, part in found.items() if part is not None}


def _tensor(
    reference: _Reference, archive: zipfile.ZipFile, prefix: str, cache: dict[str, bytearray]
) -> Tensor:
    storage, offset, size, stride = reference.view
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    if storage.key not in cache:
        info = archive.getinfo(f"{prefix}data/{storage.key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError("a storage is compressed")
        cache[storage.key] = bytearray(archive.read(info))
    content = cache[storage.key]
    whole = torch.frombuffer(content, dtype=storage.dtype) if content else torch.empty(
        0, dtype=storage.dtype)  # fmt: skip
    numbers = [*size, *stride, offset]
    if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError("a tensor has an invalid shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > len(whole) or (0 not in size and last >= len(whole)):
        raise ValueError("a tensor extends beyond its storage")
    return whole.as_strided(tuple(size), tuple(stride), offset).clone()

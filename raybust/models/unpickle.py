"""The tensors of a PyTorch file whose other objects `torch.load(weights_only=True)` does not admit.

Nothing of the file is imported or called: every global but the few that rebuild a tensor becomes an
inert stand-in, which ignores what the pickle does to it. A tensor is a reference into the archive,
checked against the bytes that are there. Only the zip form of PyTorch 1.6 and later is read.
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

_DEEPEST = 8
_BROKEN = (
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
    """What any object of the file becomes that is no tensor: it keeps nothing and does nothing."""

    name = ""

    def __new__(cls, *args: Any, **keywords: Any) -> StandIn:  # noqa: D102
        return object.__new__(cls)

    def __init__(self, *args: Any, **keywords: Any) -> None:
        """Ignores its arguments."""

    def __call__(self, *args: Any, **keywords: Any) -> StandIn:
        """Ignores a call."""
        return self

    def __setstate__(self, state: Any) -> None:
        """Ignores a state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignores an item."""

    def append(self, value: Any) -> None:
        """Ignores an item."""

    def extend(self, values: Any) -> None:
        """Ignores items."""

    def __hash__(self) -> int:
        """Lets it be a key."""
        return id(self)


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype


class _Reference(StandIn):
    """A tensor of the file: a view of a storage."""

    def __new__(cls, *args: Any, **keywords: Any) -> _Reference:
        made = object.__new__(cls)
        made.view = args[:4]
        return made

    view: tuple[Any, ...]


class _Parameter(StandIn):
    """Stands for torch's _rebuild_parameter: gives the tensor in it."""

    def __new__(cls, *args: Any, **keywords: Any) -> Any:
        return args[0] if args and isinstance(args[0], _Reference) else StandIn()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.strange: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Reference
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _Parameter
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        self.strange.add(f"{module}.{name}")
        return type("Strange", (StandIn,), {"name": f"{module}.{name}"})

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
    """Returns the nested dictionaries of a PyTorch file with their tensors, and the names of what
    was left aside without being imported or called.

    Args:
        path: the file.

    Raises:
        ValueError: it is no zip file of PyTorch's, or is not what it says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            home = pickled.removesuffix("data.pkl")
            with archive.open(pickled) as file:
                unpickler = _Unpickler(file)
                content = unpickler.load()
            read = partial(_tensor, archive=archive, home=home, read={})
            tree = _tree(content, read, set(), 0)
    except _BROKEN as error:
        raise ValueError(f"no file of PyTorch's: {error}") from None
    return (tree if isinstance(tree, dict) else {}), sorted(unpickler.strange)


def _tree(value: Any, read: Callable[[_Reference], Tensor], seen: set[int], depth: int) -> Any:
    """Returns the tensors of a value: alone, or in dictionaries with texts for keys; else None."""
    if isinstance(value, _Reference):
        return read(value)
    if not isinstance(value, Mapping) or depth > _DEEPEST:
        return None
    if id(value) in seen:  # a dictionary that occurs twice is read once
        return None
    seen.add(id(value))
    found = {key: _tree(part, read, seen, depth + 1)
             for key, part in value.items() if isinstance(key, str)}  # fmt: skip
    return {key: part for key, part in found.items() if part is not None}


def _tensor(
    reference: _Reference, archive: zipfile.ZipFile, home: str, read: dict[str, bytearray]
) -> Tensor:
    storage, offset, size, stride = reference.view
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    if storage.key not in read:
        info = archive.getinfo(f"{home}data/{storage.key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError("a storage that is compressed")
        read[storage.key] = bytearray(archive.read(info))
    content = read[storage.key]
    whole = torch.frombuffer(content, dtype=storage.dtype) if content else torch.empty(
        0, dtype=storage.dtype)  # fmt: skip
    numbers = [*size, *stride, offset]
    if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError("a tensor whose shape is none")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > len(whole) or (0 not in size and last >= len(whole)):
        raise ValueError("a tensor beyond its storage")
    return whole.as_strided(tuple(size), tuple(stride), offset).clone()

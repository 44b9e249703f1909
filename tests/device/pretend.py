"""The device "pretend" of pretend.cpp in this process: built once, loaded on import of torch.

Processes find it by torch's entry points for device backends if `FOLDER` is on their PYTHONPATH, so
that Ray's workers have it too. `fell` counts what a GPU would do and wait for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

SOURCE = Path(__file__).with_name("pretend.cpp")
FOLDER = Path(__file__).resolve().parents[2] / "build/pretend"
"""Holds the library and the entry point."""


@dataclass
class Counts:
    """Kernels that ran on the device, values that the host read, and copies to the device that the
    host waited for."""

    kernels: int = 0
    reads: int = 0
    writes: int = 0


def compiler() -> str | None:
    """Returns the C++ compiler, or None."""
    return shutil.which("g++") or shutil.which("c++")


def build() -> Path:
    """Compiles the library unless that is done; returns the file."""
    import torch

    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:12]
    target = FOLDER / f"pretend-{key}.so"
    if not target.exists():
        root = Path(torch.__file__).parent
        paths = [root / "include", root / "include/torch/csrc/api/include"]
        part = target.with_suffix(f".{os.getpid()}")
        FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [compiler() or "c++", "-std=c++20", "-O1", "-w", "-fPIC", "-shared", str(SOURCE),
             *(f"-I{path}" for path in paths), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10",
             "-o", str(part)],
            check=True,
        )  # fmt: skip
        part.replace(target)
        entry = FOLDER / "pretend_device-0.dist-info"
        entry.mkdir(exist_ok=True)
        (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: pretend-device\nVersion: 0\n")
        (entry / "entry_points.txt").write_text("[torch.backends]\npretend = pretend:load\n")
        shutil.copy(__file__, FOLDER / "pretend.py")
    return target


def load() -> None:
    """Makes "pretend" a device of this process."""
    import torch

    (library,) = sorted(FOLDER.glob("pretend-*.so"), key=lambda path: path.stat().st_mtime)[-1:]
    torch.ops.load_library(str(library))
    torch.utils.rename_privateuse1_backend("pretend")
    torch.utils.generate_methods_for_privateuse1_backend()
    torch._register_device_module("pretend", _module())


def _module() -> ModuleType:
    """What PyTorch expects as `torch.pretend`."""
    import torch

    module = ModuleType("torch.pretend")
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.manual_seed_all = lambda seed: None
    module.manual_seed = lambda seed: None
    module.synchronize = lambda device=None: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    module.get_rng_state = lambda device=None: torch.get_rng_state()
    module.set_rng_state = lambda state, device=None: None
    module.get_device_capability = lambda device=None: {}
    module.device = nullcontext
    sys.modules["torch.pretend"] = module
    return module


@contextmanager
def counted() -> Iterator[Counts]:
    """Counts what happens on the device inside the context."""
    import torch

    torch.ops.pretend.take_counts()
    found = Counts()
    yield found
    found.kernels, found.reads, found.writes = torch.ops.pretend.take_counts().tolist()


if __name__ == "__main__":
    if compiler() is None:
        print("no C++ compiler: the tests of a second device are skipped")
        sys.exit(3)
    build()

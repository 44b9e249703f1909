"""Which device and which precision a stage uses; all other code follows the tensors it is given.

A stage's tasks and workers run on the accelerator that PyTorch reports (`torch.accelerator`) if Ray
gives them a GPU, else on the CPU. A protocol records the device's type, because generators and
arithmetic differ between types.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bf16"]

CPU = "cpu"
GPU = "cuda"
"""Assumed type of the cluster's GPUs where this process has no accelerator."""


def local() -> torch.device:
    """Returns the device of this process: its accelerator, else the CPU. Apple's does not count,
    because it has no float64."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device(CPU) if found is None or found.type == "mps" else found


def set_threads(cpus: float) -> None:
    """Sets torch's threads to the CPUs of a worker."""
    torch.set_num_threads(max(1, int(cpus)))


def of_tasks(gpus: float) -> str:
    """Returns the device type of tasks that have a number of GPUs."""
    if not gpus:
        return CPU
    own = local().type
    return GPU if own == CPU else own


def float32(kind: str) -> Precision:
    """Returns how tasks compute float32 by default on a type of device: `tf32` on GPUs, whose
    tensor cores have no full float32, `float32` elsewhere (our choice)."""
    return "tf32" if kind == GPU else "float32"


@contextmanager
def arithmetic(device: torch.device, precision: Precision = "float32") -> Iterator[None]:
    """Runs deterministic kernels at a precision, whatever the surrounding settings.

    Args:
        device: of the tensors.
        precision: `float32`, `tf32`, or `bf16` (autocast).
    """
    tf32, before = precision == "tf32", torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with (
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32
            ),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds torch's global generators inside the block and restores them after."""
    with torch.random.fork_rng(devices=[device] if device.type == GPU else []):
        torch.manual_seed(seed)
        yield


def watch_memory(device: torch.device) -> None:
    """Starts the measurement of `peak_memory`."""
    if device.type == GPU:
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Returns the metric of the most device memory allocated since `watch_memory`, in GiB; none on
    a CPU."""
    if device.type != GPU:
        return {}
    return {"train/peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}


def limit_memory(device: torch.device, share: float) -> None:
    """Limits this process to its share of a GPU's memory, so that several trials fit on one."""
    if device.type == GPU and share < 1:
        torch.cuda.set_per_process_memory_fraction(share, device)


def free_memory(device: torch.device) -> None:
    """Returns memory that no tensor uses to the device."""
    gc.collect()
    if device.type == GPU:
        torch.cuda.empty_cache()


def has_bf16(device: torch.device) -> bool:
    """Returns whether bfloat16 is the fast arithmetic of a device: on GPUs since Ampere."""
    return device.type == GPU and torch.cuda.is_bf16_supported()

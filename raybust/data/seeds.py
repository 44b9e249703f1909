"""Stateless seeding: derives a seed from several keys, so a random choice depends on its purpose
(seed, epoch, example) and never on earlier draws. Resuming a run needs no saved generator state.
"""

from __future__ import annotations

import hashlib

import torch


def mix(*keys: int | str) -> int:
    """Returns a seed in [0, 2^63): the first 63 bits of BLAKE2b over the keys.

    Args:
        keys: integers of any size and strings; order matters, and 1 differs from "1".
    """
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*keys: int | str) -> torch.Generator:
    """Returns a CPU generator seeded with `mix(*keys)`, for identical draws on every device."""
    return torch.Generator().manual_seed(mix(*keys))

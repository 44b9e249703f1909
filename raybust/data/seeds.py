"""Stateless seeding: one seed out of several keys, so that a random choice depends on what it is
for (seed, epoch, example) and never on what was drawn before it. A resumed run needs no saved state
of a generator. Stage `data` of the arrow; later stages may use it too.
"""

from __future__ import annotations

import hashlib

import torch


def mix(*keys: int | str) -> int:
    """Returns a seed in [0, 2^63): the first 63 bits of BLAKE2b over the keys.

    Args:
        keys: integers of any size and texts; the order counts, and 1 is not "1".
    """
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*keys: int | str) -> torch.Generator:
    """Returns a CPU generator seeded by `mix(*keys)`: the same draws for every device."""
    return torch.Generator().manual_seed(mix(*keys))

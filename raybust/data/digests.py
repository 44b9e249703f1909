"""Digests of data, which distinguish the images and labels of a result from others of equal names.

Certificates and attack tables record them in their headers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def digest_of(form: str, parts: Iterable[bytes | memoryview]) -> str:
    """Returns the first 32 hexadecimal digits of the SHA-256 over a description and bytes."""
    digest = hashlib.sha256(form.encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]


def labels_digest(labels: Tensor, indices: Tensor, positions: Sequence[int] | Tensor) -> str:
    """Returns the digest of the labels and indices of selected examples, in order.

    Args:
        labels: int64 (N,).
        indices: int64 (N,), which identify the examples in results.
        positions: selected examples, in [0, N).
    """
    at = torch.as_tensor(positions, dtype=torch.int64)
    return digest_of("labels", (part[at].numpy().data for part in (labels, indices)))

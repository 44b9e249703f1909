"""Corruptions generated on the fly, for datasets without a published corrupted test set: the 19 of
Hendrycks and Dietterich (ICLR 2019, arXiv:1903.12261) from the package imagecorruptions-imaug.

Their strengths are ImageNet's for any image size, so on CIFAR-10 this is not CIFAR-10-C, and the
results, which are labeled as such, are not comparable with published ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raybust.data import Part, mix
from raybust.errors import RequestError

LEAST = 32
"""Smallest side of an image that the package accepts."""


@dataclass(frozen=True, eq=False)
class GeneratedSplit:
    """A part of a dataset under one corruption, with the interface of `Split` that evaluation uses.

    Attributes:
        part: the clean images, with one or three channels.
        name: one of `COMMON` and `EXTRA`.
        severity: 1 to 5.
        seed: seed, which with name, severity and index determines the corruption.
    """

    part: Part
    name: str
    severity: int
    seed: int = 0

    def __post_init__(self) -> None:
        _package()
        channels, height, width = self.part.shape
        if min(height, width) < LEAST or channels not in (1, 3):
            raise RequestError(
                f"corruptions.generated: got images of (C, H, W) = {self.part.shape}, expected 1 "
                f"or 3 channels and sides of at least {LEAST} pixels"
            )

    def __len__(self) -> int:
        return len(self.part)

    def fetch(self, positions: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Returns corrupted images float32 (B, C, H, W) in [0, 1], with 256 levels, and labels
        int64 (B,), on the CPU.

        Args:
            positions: B positions in the part.
        """
        images, labels = self.part.fetch(positions)
        at = torch.as_tensor(positions, dtype=torch.int64)
        levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        corrupt, state = _package(), np.random.get_state()  # noqa: NPY002 - the package uses it
        try:
            for row, index in enumerate(self.part.indices[at].tolist()):
                key = mix("corruption", self.seed, self.name, self.severity, index)
                np.random.seed(key % 2**32)  # noqa: NPY002
                image = np.broadcast_to(levels[row], (*levels.shape[1:3], 3)).copy()
                made = corrupt(image, corruption_name=self.name, severity=self.severity)
                pixels = torch.from_numpy(np.array(made)).permute(2, 0, 1)
                images[row] = pixels[: images.shape[1]].to(torch.float32) / 255
        finally:
            np.random.set_state(state)  # noqa: NPY002
        return images, labels


def _package() -> Callable[..., Any]:
    try:
        from imagecorruptions import corrupt
    except ImportError:
        raise RequestError(
            "corruptions.generated needs imagecorruptions-imaug: pip install 'raybust[corruptions]'"
        ) from None
    found: Callable[..., Any] = corrupt
    return found

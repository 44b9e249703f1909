"""Test images with Lp noise keyed by (seed, p, eps, index), the same for any number of workers and
for every network.

As in the comparisons of Siedel et al. (VISAPP 2024, arXiv:2305.05400), but paired: differences
between networks are not due to the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raybust.data import Part, mix
from raybust.numerics.balls import lp_noise


@dataclass(frozen=True, eq=False)
class NoisySplit:
    """A part of a dataset under one Lp noise, with the interface of `Split` that evaluation uses.

    Attributes:
        part: the clean images.
        p: 0 for impulses, else the norm, in (0, inf].
        eps: the radius, or the share of entries.
        seed: seed of the noise.
        binary: whether impulses are 0 or 1, or uniform in [0, 1).
    """

    part: Part
    p: float
    eps: float
    seed: int = 0
    binary: bool = False

    def __len__(self) -> int:
        return len(self.part)

    def fetch(self, positions: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Returns noisy images float32 (B, C, H, W) in [0, 1] and labels int64 (B,), on the CPU.

        Noise is always drawn there, so it does not depend on the device. Seeds of one noise are
        consecutive in the index: PyTorch's CPU generator reads only 32 bits of a seed, so hashed
        ones would collide.

        Args:
            positions: B positions in the part.
        """
        images, labels = self.part.fetch(positions)
        at = torch.as_tensor(positions, dtype=torch.int64)
        first = mix("lp noise", self.seed, repr(float(self.p)), repr(float(self.eps)))
        generator = torch.Generator()
        for row, index in enumerate(self.part.indices[at].tolist()):
            generator.manual_seed((first + index) % 2**63)
            images[row : row + 1] = lp_noise(
                images[row : row + 1],
                self.p,
                self.eps,
                generator=generator,
                binary=self.binary,
            )
        return images, labels

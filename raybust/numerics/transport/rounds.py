"""Synthetic images that are found once and used for several epochs, as Zhu et al. (2023) do: pairs
of two classes each, drawn apart from the training batches.

Every image is a source as often as there are copies, so one copy doubles the training set.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raybust.numerics.transport.curves import Curves
from raybust.numerics.transport.pairs import Group, permutation


class Stored(NamedTuple):
    """M synthetic images on G geodesics.

    Attributes:
        images: (M, C, H, W), without smoothing noise.
        labels: probabilities (M, K).
        curves: the paths on which they lie, without noise; None if nothing needs them.
        counts: number of paths of each geodesic.
    """

    images: Tensor
    labels: Tensor
    curves: Curves | None
    counts: tuple[int, ...]

    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns `count` of the images and their labels at random, each at most once; all, in
        order, if there are not more."""
        if count >= len(self.images):
            return self.images, self.labels
        order = torch.randperm(len(self.images), generator=generator, device=generator.device)
        at = order[:count].to(self.images.device)
        return self.images[at], self.labels[at]

    def whole(self, count: int, generator: torch.Generator) -> Curves:
        """Returns random whole geodesics, with about `count` paths but at least one geodesic."""
        curves = self.curves
        assert curves is not None
        number = max(1, round(count * len(self.counts) / sum(self.counts)))
        chosen = permutation(len(self.counts), generator)[:number].tolist()
        ranges = torch.split(torch.arange(sum(self.counts)), list(self.counts))
        at = torch.cat([ranges[one] for one in chosen])
        sizes = torch.tensor([self.counts[one] for one in chosen])
        device = curves.start.device
        pair = torch.arange(len(chosen)).repeat_interleave(sizes).to(device)
        return curves.at(at.to(device))._replace(pair=pair, pairs=len(chosen))


def opposite(labels: Tensor, size: int, copies: int, draw: torch.Generator) -> list[Group]:
    """Returns problems from images of one class to as many of another one, drawn uniformly, or of
    the same one if there is no other. Every image is a source in `copies` problems; targets repeat
    only if their class has fewer images.

    Args:
        labels: int64 (N,), on the CPU.
        size: maximum number of sources of a problem.
        copies: >= 1.
        draw: a CPU generator.
    """
    members = [(labels == label).nonzero().flatten() for label in torch.unique(labels).tolist()]
    groups: list[Group] = []
    for _ in range(copies):
        for own, sources in enumerate(members):
            order = sources[permutation(len(sources), draw)]
            for part in order.tensor_split(-(-len(order) // size)):
                step = int(torch.randint(1, max(2, len(members)), (1,), generator=draw))
                other = members[(own + step) % len(members)]
                ends = other[permutation(len(other), draw)].repeat(-(-len(part) // len(other)))
                groups.append((part, ends[: len(part)]))
    return groups


def gathered(groups: list[Group]) -> tuple[Tensor, list[Group]]:
    """Returns the positions that occur in the groups, int64, rising, and the groups as indices into
    them."""
    at = torch.unique(torch.cat([part for group in groups for part in group]))
    return at, [(torch.searchsorted(at, a), torch.searchsorted(at, b)) for a, b in groups]


def stacked(parts: list[Curves]) -> Curves:
    """Returns curves one after the other, without noise."""
    offset, pairs = 0, []
    for part in parts:
        pairs.append(part.pair + offset)
        offset += part.pairs
    return Curves(
        torch.cat([part.start for part in parts]),
        torch.cat([part.end for part in parts]),
        torch.cat([part.source for part in parts]),
        torch.cat([part.target for part in parts]),
        torch.cat(pairs),
        offset,
        0.0,
        parts[0].decode,
    )

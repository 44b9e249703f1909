"""Which image of a labeled batch goes to which: classes in a random cycle, or halves of a batch.

Each class is transported to its successor, so that every image is a source at most once and there
are as many problems as classes. Classes of unequal count are cut at random to the smaller one,
which keeps plans permutations, that is, exact geodesics of the two subsets. Both are our choice:
Zhu et al. (2023) are not read that far. Halves are k-mixup's (Greenewald et al., TMLR 2023,
arXiv:2106.02933), here with squared distances. Part of numerics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raybust.numerics.transport.coupling import assignments, squared_distances

Group = tuple[Tensor, Tensor]
"""Positions in the batch, int64 (n,) each: the sources of one problem and the targets."""


class Paths(NamedTuple):
    """M straight paths between images of one batch, all int64 (M,) on the images' device.

    Attributes:
        source: position in the batch where a path begins.
        partner: where it ends.
        pair: the problem that it is of, in [0, pairs).
        pairs: number of problems.
    """

    source: Tensor
    partner: Tensor
    pair: Tensor
    pairs: int


def class_cycle(
    labels: Tensor, generator: torch.Generator, *, least: int = 4, most: int | None = None
) -> tuple[list[Group], Tensor]:
    """Returns a problem for each class, to the next one in a random cycle, and the positions of
    the images that are in none, for `halves`. Two classes make two problems, there and back.

    Left are the images of classes with fewer than `least`, and all images where fewer than two
    classes have as many. What is cut off a larger class is not left: it just sits out.

    Args:
        labels: int64 (B,).
        generator: order of classes and of images in a class.
        least: images that a class must have, >= 1.
        most: images of a class that take part, at most; None for all.
    """
    order = _permutation(len(labels), generator)
    known = labels.cpu()[order]
    members = [order[known == label] for label in sorted(set(known.tolist()))]
    kept = [positions for positions in members if len(positions) >= least]
    if len(kept) < 2:
        return [], order
    cycle = [kept[at] for at in _permutation(len(kept), generator).tolist()]
    groups = []
    for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True):
        count = min(len(a), len(b), len(order) if most is None else most)
        groups.append((a[:count], b[:count]))
    small = [positions for positions in members if len(positions) < least]
    return groups, torch.cat(small) if small else order[:0]


def halves(positions: Tensor, generator: torch.Generator) -> list[Group]:
    """Returns two problems without regard to classes: each from a random half of the images to the
    other half, the second one from another split; none where there are fewer than two images.

    Args:
        positions: int64 (n,), of an odd number one sits out.
        generator: the splits.
    """
    half = len(positions) // 2
    if not half:
        return []
    splits = [positions[_permutation(len(positions), generator)] for _ in range(2)]
    return [(split[:half], split[half : 2 * half]) for split in splits]


def match(images: Tensor, groups: list[Group], labels: Tensor | None = None) -> list[Group]:
    """Returns the groups with their targets in the order of the exact assignment.

    Args:
        images: (B, ...), or an embedding of them (B, d): where the cost is measured.
        groups: problems of equally many sources and targets.
        labels: int64 (B,) where sources must go to another class as far as that is possible.

    Raises:
        ValueError: an image is NaN or infinite.
    """
    costs = []
    for a, b in groups:
        a, b = a.to(images.device), b.to(images.device)
        cost = squared_distances(images[a], images[b])
        if labels is not None:
            # More than any sum of costs, and far from what would swamp them in float64.
            same = labels[a][:, None] == labels[b]
            cost = cost + same * (1 + len(cost) * cost.max())
        costs.append(cost)
    return [(a, b[s.cpu()]) for (a, b), s in zip(groups, assignments(costs), strict=True)]


def coupled(
    cost: Tensor,
    labels: Tensor,
    pairing: str,
    generator: torch.Generator,
    *,
    least: int = 4,
    most: int | None = None,
) -> tuple[Paths, int]:
    """Returns who goes to whom in a batch, and how many images are paired without regard to their
    class, or not at all, because the batch has fewer than `least` of it.

    Args:
        cost: (B, ...), points whose squared distances are the cost.
        labels: int64 (B,).
        pairing: `ot`, classes in a random cycle by transport; `random`, the same classes at random;
            `kmixup`, halves of the batch by transport.
        generator: of all random choices.
        least: as of `class_cycle`.
        most: as of `class_cycle`.
    """
    if pairing == "kmixup":
        every = torch.arange(len(cost))
        return join(match(cost, halves(every, generator)), cost.device), 0
    groups, rest = class_cycle(labels, generator, least=least, most=most)
    small = halves(rest, generator)
    if pairing == "ot":
        groups, small = match(cost, groups), match(cost, small, labels)
    return join(groups + small, cost.device), len(rest)


def join(groups: list[Group], device: torch.device) -> Paths:
    """Returns the paths from each source to the target at the same place of its group."""
    empty = torch.zeros(0, dtype=torch.int64)
    source = torch.cat([empty, *(a for a, _ in groups)])
    partner = torch.cat([empty, *(b for _, b in groups)])
    sizes = torch.tensor([len(a) for a, _ in groups], dtype=torch.int64)
    pair = torch.arange(len(groups)).repeat_interleave(sizes)
    return Paths(source.to(device), partner.to(device), pair.to(device), len(groups))


def _permutation(count: int, generator: torch.Generator) -> Tensor:
    """Returns a random order on the host, whatever the generator's device."""
    return torch.randperm(count, generator=generator, device=generator.device).cpu()

"""Pairings of a labeled batch: classes in a random cycle, or halves of the batch.

Each class is transported to its successor, so an image is a source at most once and there are as
many problems as classes. Of two classes the larger is cut at random to the size of the smaller, so
plans are permutations, that is, exact geodesics of the two subsets. Both are our choice; Zhu et al.
(2023) project the entropic plan of whole classes, which is `sinkhorn`. Halves are from k-mixup
(Greenewald et al., TMLR 2023, arXiv:2106.02933), here with squared distances.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raybust.numerics.transport.coupling import assignments, on_host, squared_distances
from raybust.numerics.transport.entropic import projection

Group = tuple[Tensor, Tensor]
"""Positions in the batch, int64 (n,) each: sources and targets of one problem."""


class Paths(NamedTuple):
    """M straight paths between images of one batch, all int64 (M,) on the images' device.

    Attributes:
        source: batch position where each path starts.
        partner: batch position where it ends.
        pair: index of its problem, in [0, pairs).
        pairs: number of problems.
        weights: float (M, B); if given, a path ends at this mean of all points, and `partner` is
            the point with the largest weight.
    """

    source: Tensor
    partner: Tensor
    pair: Tensor
    pairs: int
    weights: Tensor | None = None


def class_cycle(
    labels: Tensor,
    generator: torch.Generator,
    *,
    least: int = 4,
    most: int | None = None,
    equal: bool = True,
) -> tuple[list[Group], Tensor]:
    """Returns a problem from each class to the next in a random cycle, and the positions of the
    images left over for `halves`. Two classes give two problems, back and forth.

    Left over are images of classes with fewer than `least` images, or all images if fewer than two
    classes have that many. Images cut from a larger class are not left over: they sit out.

    Args:
        labels: int64 (B,).
        generator: randomizes the order of classes and of images within a class.
        least: minimum images per class, >= 1.
        most: maximum images per class; None for all.
        equal: whether the larger class of a problem is cut to the size of the smaller.
    """
    order = permutation(len(labels), generator)
    known = labels.cpu()[order]
    members = [order[known == label] for label in sorted(set(known.tolist()))]
    kept = [positions for positions in members if len(positions) >= least]
    if len(kept) < 2:
        return [], order
    cycle = [kept[at] for at in permutation(len(kept), generator).tolist()]
    groups = []
    for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True):
        count = min(len(a), len(b), len(order)) if equal else len(order)
        count = count if most is None else min(count, most)
        groups.append((a[:count], b[:count]))
    small = [positions for positions in members if len(positions) < least]
    return groups, torch.cat(small) if small else order[:0]


def halves(positions: Tensor, generator: torch.Generator) -> list[Group]:
    """Returns two problems that ignore classes, each from a random half of the images to the other
    half, with independent splits; none for fewer than two images.

    Args:
        positions: int64 (n,); if n is odd, one sits out.
        generator: randomizes the splits.
    """
    half = len(positions) // 2
    if not half:
        return []
    splits = [positions[permutation(len(positions), generator)] for _ in range(2)]
    return [(split[:half], split[half : 2 * half]) for split in splits]


def match(images: Tensor, groups: list[Group], labels: Tensor | None = None) -> list[Group]:
    """Returns the groups with their targets reordered by the exact assignment.

    Args:
        images: (B, ...), or an embedding (B, d), whose distances are the cost.
        groups: problems with equally many sources and targets.
        labels: int64 (B,); if given, sources go to another class whenever possible.

    Raises:
        ValueError: an image is NaN or infinite.
    """
    costs = []
    for a, b in groups:
        a, b = (part.to(images.device, non_blocking=True) for part in (a, b))
        cost = squared_distances(images[a], images[b])
        if labels is not None:
            # More than any sum of costs, but too little to swamp them in float64.
            same = labels[a][:, None] == labels[b]
            cost = cost + same * (1 + len(cost) * cost.max())
        costs.append(cost)
    return [(a, b[s]) for (a, b), s in zip(groups, assignments(costs), strict=True)]


def coupled(
    cost: Tensor,
    labels: Tensor,
    pairing: str,
    generator: torch.Generator,
    *,
    least: int = 4,
    most: int | None = None,
    entropy: float = 0.01,
) -> tuple[Paths, int]:
    """Pairs the images of a batch; returns the paths and the number of images paired without regard
    to their class, or not at all, because the batch has fewer than `least` of it.

    Args:
        cost: (B, ...), points whose squared distances are the cost.
        labels: int64 (B,).
        pairing: `ot`, classes in a random cycle by transport; `random`, the same classes at random;
            `sinkhorn`, whole classes by the projection of an entropic plan; `kmixup`, halves of the
            batch by transport.
        generator: source of randomness.
        least: as in `class_cycle`.
        most: as in `class_cycle`.
        entropy: of `sinkhorn`, in squared distances of the points.
    """
    draw, known = on_host_with(generator, labels)
    if pairing == "kmixup":
        groups, rest = halves(torch.arange(len(cost)), draw), known[:0]
    else:
        equal = pairing != "sinkhorn"
        groups, rest = class_cycle(known, draw, least=least, most=most, equal=equal)
        groups += halves(rest, draw)
    return solved(cost, groups, labels, pairing, entropy=entropy), len(rest)


def solved(
    cost: Tensor, groups: list[Group], labels: Tensor, pairing: str, *, entropy: float = 0.01
) -> Paths:
    """Returns the paths of given problems; see `coupled`.

    Args:
        cost: (B, ...), points whose squared distances are the cost.
        groups: problems, with equally many sources and targets except for `sinkhorn`.
        labels: int64 (B,); `ot` leaves a class whenever possible.
        pairing: as in `coupled`.
        entropy: of `sinkhorn`, in squared distances of the points.
    """
    if pairing == "sinkhorn":
        return projected(cost, groups, entropy)
    if pairing != "random":
        groups = match(cost, groups, labels if pairing == "ot" else None)
    return join(groups, cost.device)


def projected(images: Tensor, groups: list[Group], entropy: float) -> Paths:
    """Returns the paths from each source to the barycentric projection of its group's plan.

    Args:
        images: (B, ...), points whose squared distances are the cost.
        groups: problems, perhaps with more sources than targets or fewer.
        entropy: in squared distances.

    Raises:
        ValueError: a point is NaN or infinite.
    """
    device = images.device
    found, costs = join([(a, a) for a, _ in groups], device), []
    for group in groups:
        a, b = (part.to(device, non_blocking=True) for part in group)
        costs.append(squared_distances(images[a], images[b]))
    weights = torch.zeros(len(found.source), len(images), dtype=torch.float64)
    start = 0
    for (a, b), cost in zip(groups, on_host(costs), strict=True):
        weights[start : start + len(a), b] = projection(cost, entropy)
        start += len(a)
    partner = weights.argmax(1) if len(weights) else found.partner
    return found._replace(
        partner=partner.to(device, non_blocking=True),
        weights=weights.to(images.dtype).to(device, non_blocking=True),
    )


def join(groups: list[Group], device: torch.device) -> Paths:
    """Returns the paths from each source to the corresponding target of its group."""
    empty = torch.zeros(0, dtype=torch.int64)
    source = torch.cat([empty, *(a for a, _ in groups)])
    partner = torch.cat([empty, *(b for _, b in groups)])
    sizes = torch.tensor([len(a) for a, _ in groups], dtype=torch.int64)
    pair = torch.arange(len(groups)).repeat_interleave(sizes)
    source, partner, pair = (part.to(device, non_blocking=True) for part in (source, partner, pair))
    return Paths(source, partner, pair, len(groups))


def on_host_with(generator: torch.Generator, labels: Tensor) -> tuple[torch.Generator, Tensor]:
    """Returns a generator and labels of the CPU: the same, or with one read from a GPU."""
    if generator.device.type == "cpu":
        return generator, labels.cpu()
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    *known, seed_value = torch.cat([labels, seed]).tolist()
    return torch.Generator().manual_seed(seed_value), torch.tensor(known, dtype=torch.int64)


def permutation(count: int, generator: torch.Generator) -> Tensor:
    """Returns a random permutation on the host, whatever the generator's device."""
    return torch.randperm(count, generator=generator, device=generator.device).cpu()

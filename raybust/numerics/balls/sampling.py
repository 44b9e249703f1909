"""Random points of Lp balls and spheres for every p in (0, inf], and impulse noise for p = 0.

Ball: Calafiore, Dabbene and Tempo (1998); Barthe, Guedon, Mendelson and Naor (2005, math/0503650).
Such points as image corruptions: Siedel et al. (VISAPP 2024, arXiv:2305.05400). Each row of a batch
has its own p, eps and noise. Nothing here draws Gamma(1/p), which in float32 collapses to a single
value for p >= 50.

Notation: B rows of d entries; g has density proportional to exp(-|t|^p), so |g|^p ~ Gamma(1/p).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from raybust.errors import RequestError

_LEAST = 2.0**-25
"""Half of the smallest positive value of torch.rand in float32: keeps zeros from becoming inf."""

_SMALL = 1e-30
"""Lower limit of |g|^p: negligible in the sum over entries."""


def impulses(
    shape: tuple[int, int],
    share: float | Tensor,
    *,
    generator: torch.Generator,
    binary: bool | Tensor = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Draws impulse noise, the "p = 0" of Siedel et al.

    Each row has exactly k = round(share d) impulses, drawn without replacement; halves round to
    even. An entry is one channel of one pixel.

    Args:
        shape: (B, d); B may be 0.
        share: share of the entries, in [0, 1], one or (B,).
        generator: source of randomness, on the device of the results.
        binary: whether values are 0 or 1 with equal probability, or uniform in [0, 1); for all
            rows, or bool (B,).
        dtype: dtype of the values.

    Returns:
        The entries hit, bool (B, d), and values (B, d), used where hit.

    Raises:
        RequestError: a share outside [0, 1]; checked on the CPU only.
    """
    device = generator.device
    shares = _per_row(share, shape[0], device)
    counts = (shares * shape[1]).round_().long()
    if device.type == "cpu":
        _check("eps", shares, (shares >= 0) & (shares <= 1), "a share in [0, 1], because p is 0")
        chosen = _choose(shape, counts, generator)
    else:
        ranked = torch.rand(shape, generator=generator, device=device).argsort(1)
        kept = torch.arange(shape[1], device=device) < counts[:, None]
        chosen = torch.zeros(shape, dtype=torch.bool, device=device).scatter_(1, ranked, kept)
    values = torch.rand(shape, generator=generator, device=device, dtype=dtype)
    ends = (values < 0.5).to(dtype)
    if isinstance(binary, bool):
        return chosen, ends if binary else values
    return chosen, torch.where(binary[:, None], ends, values)


def lp_noise(
    images: Tensor,
    p: float | Tensor,
    eps: float | Tensor,
    *,
    generator: torch.Generator,
    sphere: bool = False,
    binary: bool | Tensor = True,
    mask: Tensor | None = None,
    law: Literal["uniform", "laplace"] = "uniform",
) -> Tensor:
    """Returns corrupted copies of images: with uniform noise of an Lp ball, or impulses if p is 0.

    Differentiable: the gradient is 1, and 0 where an entry is clipped or replaced. Noise is drawn
    and added in at least float32, the sum rounded to the images' dtype and clipped to [0, 1], so
    ||result - image||_p <= eps. CPU and GPU draw different noise from the same generator state.

    Args:
        images: (B, ...) in [0, 1], floating point; B may be 0.
        p: 0 for impulses, else the norm, in (0, inf]; one or (B,). Below 1 a quasi-norm.
        eps: radius in the p-norm, not scaled by d, or the share of entries replaced; one or (B,).
        generator: source of randomness, on the images' device.
        sphere: whether noise is on the sphere; the mean radius in the ball is d / (d + 1).
        binary: see `impulses`.
        mask: bool, broadcast to the images: where noise is allowed; everywhere if None.
        law: `uniform`, or that of `_laplace_points`.

    Raises:
        RequestError: p or eps outside its range; checked on the CPU only, since a GPU would stall.
    """
    if not len(images):
        return images.clone()
    wide = images if images.dtype == torch.float64 else images.float()
    flat = wide.flatten(1)
    shape, dtype, device = (flat.shape[0], flat.shape[1]), wide.dtype, images.device
    orders, radii = _per_row(p, shape[0], device), _per_row(eps, shape[0], device)
    allowed = None if mask is None else mask.expand(images.shape).flatten(1)
    if device.type == "cpu":
        _check("p", orders, orders >= 0, "0 or a norm, > 0")
    sparse = orders == 0
    draw = _points if law == "uniform" else _laplace_points
    noisy = draw(shape[1], orders, radii, generator, (sphere, dtype))
    if allowed is not None:
        noisy.mul_(allowed)
    noisy.add_(flat)
    rows = torch.arange(shape[0], device=device)
    if device.type == "cpu":  # a GPU takes all rows: finding the sparse ones would stall the host
        rows = rows[sparse]
    if len(rows):
        chosen, values = impulses(
            (len(rows), shape[1]),
            torch.where(sparse, radii, 0.0)[rows],
            generator=generator,
            binary=binary if isinstance(binary, bool) else binary[rows],
            dtype=dtype,
        )
        chosen = chosen if allowed is None else chosen & allowed[rows]
        noisy.index_copy_(0, rows, torch.where(chosen, values, noisy[rows]))
    return noisy.clamp_(0.0, 1.0).view_as(wide).to(images.dtype)


def squares(images: Tensor, share: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Returns a square patch for each image, bool (B, 1, H, W): its share of the area is uniform in
    a range, its center is any pixel, and the image border crops it.

    In images that are not square the patch has the image's aspect ratio (our choice).

    Args:
        images: (B, C, H, W).
        share: smallest and largest share of the area, in [0, 1], before cropping.
        generator: source of randomness, on the images' device.
    """
    draws = torch.rand(3, len(images), 1, generator=generator, device=images.device)
    side = (share[0] + (share[1] - share[0]) * draws[0]).sqrt()
    inside = []
    for extent, center in ((images.shape[2], draws[1]), (images.shape[3], draws[2])):
        offset = torch.arange(extent, device=images.device) - (center * extent).floor()
        inside.append(offset.abs() <= side * extent / 2)
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def _choose(shape: tuple[int, int], counts: Tensor, generator: torch.Generator) -> Tensor:
    """Returns bool (B, d) with exactly `counts` entries of each row set, uniform over all choices:
    the first k distinct ones in a sequence of random entries, or all others if k > d/2.

    Sorting random scores, the usual way, takes ten times as long on a CPU.
    """
    rows, d = shape
    inverted = counts > d / 2
    wanted = torch.where(inverted, d - counts, counts)[:, None]
    most = int(wanted.max()) if rows else 0
    length = d * math.log(d / (d - most)) if most else 0.0  # gives `most` distinct ones on average
    steps = torch.arange(int(length + 8 * math.sqrt(length)) + 16)
    while True:
        entries = torch.randint(d, (rows, len(steps)), generator=generator)
        order = steps.expand(rows, -1)
        first = torch.full(shape, len(steps)).scatter_reduce_(1, entries, order, "amin")
        new = first.gather(1, entries) == order
        rank = new.cumsum(1)  # of the distinct ones, in order of appearance
        if (rank[:, -1:] >= wanted).all():
            break  # too many duplicates are very rare at this length
    met = first < len(steps)
    chosen = met & (rank.gather(1, first.clamp_(max=len(steps) - 1)) <= wanted)
    return chosen ^ inverted[:, None]


def _check(name: str, values: Tensor, good: Tensor, allowed: str) -> None:
    if not good.all():
        raise RequestError(f"{name}: got {values[~good][0].item():g}, expected {allowed}")


def _per_row(value: float | Tensor, rows: int, device: torch.device) -> Tensor:
    """Returns float64 (B,) on the device."""
    return torch.as_tensor(value, dtype=torch.float64, device=device).expand(rows)


def _points(
    d: int, p: Tensor, eps: Tensor, generator: torch.Generator, kind: tuple[bool, torch.dtype]
) -> Tensor:
    """Returns points (B, d) of the balls or spheres of p and eps, both (B,); zeros if p is 0."""
    sphere, dtype = kind
    if p.device.type != "cpu":
        dense = p > 0
        orders, radii = p.masked_fill(~dense, torch.inf), eps.masked_fill(~dense, 0.0)
        drawn = _all_orders((len(p), d), orders[:, None].to(dtype), generator, sphere, dtype)
        return drawn.mul_(radii[:, None].to(dtype))
    _check("eps", eps, (p == 0) | ((eps >= 0) & eps.isfinite()), "a radius, >= 0")
    points, radii = torch.zeros(len(p), d, dtype=dtype), eps[:, None].to(dtype)
    rows_of: dict[float, list[int]] = {}
    for row, order in enumerate(p.tolist()):
        rows_of.setdefault(order, []).append(row)
    for order in sorted(rows_of.keys() - {0.0}):
        rows = torch.tensor(rows_of[order])
        drawn = _one_order((len(rows), d), order, generator, sphere, dtype)
        points.index_copy_(0, rows, drawn)
    return points.mul_(radii)


def _laplace_points(
    d: int, p: Tensor, eps: Tensor, generator: torch.Generator, kind: tuple[bool, torch.dtype]
) -> Tensor:
    """Returns points (B, d) in the direction of Laplace variates, on spheres of p and eps, both
    (B,), or for a ball within them; as `_points` for p = 0 and infinity.

    The law of the code of the paper's first version: entries of a Laplace law whatever p is,
    divided by their p-norm, which is uniform on the sphere for p = 1 alone.
    """
    sphere, dtype = kind
    finite = (p > 0) & p.isfinite()
    others = _points(d, torch.where(finite, 0.0, p), eps, generator, kind)
    uniform = torch.empty(len(p), d, dtype=dtype, device=p.device)
    uniform.uniform_(-1, 1, generator=generator)
    signed = uniform.abs().clamp_(min=_LEAST).log_().neg_().copysign(uniform)
    order = torch.where(finite, p, 1.0)[:, None].to(dtype)
    points = _to_unit(signed, signed, order, generator, sphere=True)
    if not sphere:
        share = torch.rand(len(p), 1, generator=generator, device=p.device, dtype=dtype)
        points = points * share.pow(1 / d)
    return torch.where(finite[:, None], points * eps[:, None].to(dtype), others)


def _one_order(
    shape: tuple[int, int], p: float, generator: torch.Generator, sphere: bool, dtype: torch.dtype
) -> Tensor:
    """Returns points (B, d) of the unit ball or sphere of one p, as fast as possible on a CPU."""
    count = shape[0] * shape[1]
    if math.isinf(p):
        signed = torch.empty(shape, dtype=dtype).uniform_(-1, 1, generator=generator)
        return torch.where(signed < 0, -1.0, 1.0).to(dtype) if sphere else signed
    if p == 2:
        signed = torch.randn(count, generator=generator, dtype=dtype).mul_(math.sqrt(0.5))
        power = signed.square()
    elif p == 1:
        signed = torch.empty(count, dtype=dtype).uniform_(-1, 1, generator=generator)
        power = signed.abs().clamp_(min=_LEAST).log_().neg_()
        signed = power.copysign(signed)
    elif p == 0.5:
        signed, power = _of_half_order(count, generator, dtype)
    elif p > 1:
        signed, power = _by_rejection(count, p, generator, dtype)
    else:
        order = torch.full((count, 1), p, dtype=dtype)
        signed, power = _by_gamma((count, 1), order, generator, dtype)
    signed, power = signed.view(shape), power.view(shape)
    return _to_unit(signed, power, torch.full((shape[0], 1), p, dtype=dtype), generator, sphere)


def _all_orders(
    shape: tuple[int, int], p: Tensor, generator: torch.Generator, sphere: bool, dtype: torch.dtype
) -> Tensor:
    """Returns points (B, d) of the unit balls or spheres of p (B, 1), without synchronizing and
    without branching on p."""
    signed, power = _by_gamma(shape, p, generator, dtype)
    points = _to_unit(signed, power, p, generator, sphere)
    return torch.where(p.isinf(), torch.where(signed < 0, -1.0, 1.0), points) if sphere else points


def _to_unit(
    signed: Tensor, power: Tensor, p: Tensor, generator: torch.Generator, sphere: bool
) -> Tensor:
    """Scales g (B, d), given with |g|^p, into the unit ball or onto the sphere.

    Ball: g / (sum |g_i|^p + E)^(1/p), E ~ Exp(1), Barthe et al.'s form; for p = inf the divisor is
    (...)^0 = 1, as required. Sphere: g / ||g||_p, the cone measure: the surface measure only for
    p = 1 and 2, and for p = inf the vertices of the cube, +-1.
    """
    if sphere:  # scaled by the largest: with few entries, |g|^p may underflow in all
        largest = signed.abs().amax(1, keepdim=True)
        scaled = signed / largest
        return scaled / scaled.abs().pow(p).sum(1, keepdim=True).pow(1 / p)
    rest = torch.empty_like(p).exponential_(generator=generator)
    return signed.mul_(power.sum(1, keepdim=True).add_(rest).pow_(-1 / p))


def _by_gamma(
    shape: tuple[int, int], p: Tensor, generator: torch.Generator, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns g and |g|^p by g = V G^(1/p), V ~ U(-1, 1), G ~ Gamma(1 + 1/p): exact for every p,
    without Gamma variates of shape below 1. p = inf gives g = V."""
    uniform = torch.empty(shape, dtype=dtype, device=p.device).uniform_(-1, 1, generator=generator)
    gamma = torch._standard_gamma((1 + 1 / p).expand(shape).contiguous(), generator)
    return uniform * gamma.pow(1 / p), uniform.abs().pow(p) * gamma


def _of_half_order(
    count: int, generator: torch.Generator, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns g and |g|^p for p = 1/2: sqrt|g| ~ Gamma(2) is the sum of two exponentials."""
    coin = torch.empty(count, dtype=dtype).uniform_(-1, 1, generator=generator)
    product = torch.rand(count, generator=generator, dtype=dtype).mul_(coin).abs_()
    power = product.clamp_(min=_LEAST**2).log_().neg_()
    return power.square().copysign_(coin), power


def _by_rejection(
    count: int, p: float, generator: torch.Generator, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns g and |g|^p for p > 1 by rejection; the acceptance rate is Gamma(1 + 1/p) >= 0.88."""
    signed, power, accepted = _candidates(count, p, generator, dtype)
    missing = accepted.logical_not().nonzero().flatten()
    while len(missing):
        found, powers, accepted = _candidates(2 * len(missing) + 16, p, generator, dtype)
        good = accepted.nonzero().flatten()[: len(missing)]
        signed.index_copy_(0, missing[: len(good)], found[good])
        power.index_copy_(0, missing[: len(good)], powers[good])
        missing = missing[len(good) :]
    return signed, power


def _candidates(
    count: int, p: float, generator: torch.Generator, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns candidates t for g, |t|^p, and which of them are accepted.

    exp(-t^p) lies below an envelope that is 1 up to c = 1 - 1/p and exp(-p (t - c)) beyond, touches
    it at t = 1 and has area 1, so one uniform variate and a logarithm give a candidate. Our own
    construction.
    """
    size = torch.rand(count, generator=generator, dtype=dtype)
    beyond = ((1 - size) * p).clamp_(max=1).log_().neg_()  # p (t - c) in the tail, else 0
    size = size.clamp_(max=1 - 1 / p).add_(beyond, alpha=1 / p)
    power = size.clamp(min=_SMALL ** (1 / p)).pow(p)  # subnormal numbers are ten times slower
    coin = torch.empty(count, dtype=dtype).uniform_(-1, 1, generator=generator)
    accepted = beyond.sub_(power).exp_() > coin.abs()
    return size.copysign_(coin), power, accepted

"""The unbalanced Beckmann barycenter of K images: closed form if no mass flows, else iterative.

Problem and constants are from the code released with Subramanyam, "Beckman Defense" (2023,
arXiv:2301.01495); its solver derives from Lee, Bertrand and Rozell (IEEE TCI 6, 2020). The closed
form and the proof of where the flow is zero are ours.

Notation: measures p_1 ... p_K with values in [0, 1], not of unit mass; barycenter q; relaxed
measures x_k, flows m_k, sources r_k, duals d_k, stacked along dimension 0: (K, ..., H, W).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from raybust.errors import RequestError

_SAFETY = 0.95
"""Product of the step sizes, as a share of the largest one that provably converges."""

_CHECK_EVERY = 25


@dataclass(frozen=True)
class Prices:
    """The constants of the problem; the defaults are the released ones.

        minimize   sum_k [ ||m_k||_{2,1} + rho/2 ||x_k - p_k||^2 + mu ||r_k||_1 ] + theta ||q||_1
        subject to Div m_k + x_k - q - r_k = 0,  x_k >= 0,  0 <= q <= 1

    Attributes:
        rho: price of moving a measure, > 0.
        mu: price of creating or destroying a unit of mass, > 0; carrying it one pixel costs 1.
        theta: price of a unit of the barycenter's mass, >= 0.
    """

    rho: float = 0.5
    mu: float = 0.1
    theta: float = 0.1

    def __post_init__(self) -> None:
        for name, value, least in (("rho", self.rho, "> 0"), ("mu", self.mu, "> 0")):
            if not 0 < value < math.inf:
                raise RequestError(f"{name}: got {value}, expected a number {least}")
        if not 0 <= self.theta < math.inf:
            raise RequestError(f"theta: got {self.theta}, expected a number >= 0")


class Solution(NamedTuple):
    """The result of `pdhg`.

    Attributes:
        barycenter: q, (..., H, W), in [0, 1].
        inputs: x_k, (K, ..., H, W), >= 0.
        flow: m_k, (2, K, ..., H, W): down and to the right.
        source: r_k, (K, ..., H, W).
        dual: d_k, (K, ..., H, W).
        iterations: number of iterations.
        residual: largest violation of constraints and optimality at the last check.
    """

    barycenter: Tensor
    inputs: Tensor
    flow: Tensor
    source: Tensor
    dual: Tensor
    iterations: int
    residual: float


class _State(NamedTuple):
    """Primal variables, dual, and the residual Div m + x - q - r of the constraints."""

    flow: Tensor
    inputs: Tensor
    source: Tensor
    barycenter: Tensor
    dual: Tensor
    residual: Tensor


def flow_is_zero(count: int, prices: Prices) -> bool:
    """Returns whether no mass flows between pixels, for any images in [0, 1].

    Without flow the duals are d_k = clip(rho (p_k - q), -mu, mu), so they span at most 2 mu and
    2 rho over an image. For K <= 2 they span at most rho: with d_1 + d_2 = theta (<= theta and
    d_k >= 0 where q = 0) and |d_1 - d_2| <= rho, both lie in [(theta - rho) / 2, (theta + rho) / 2]
    if theta <= rho, and in [0, rho] otherwise. Zero flow is optimal if no gradient of a d_k is
    longer than 1, and a gradient on the grid is at most sqrt(2) times that span.

    Args:
        count: K.
        prices: the constants; the released ones give no flow.
    """
    span = min(2 * prices.mu, prices.rho if count <= 2 else 2 * prices.rho)
    return math.sqrt(2) * span <= 1


def barycenter(measures: Tensor, prices: Prices) -> Tensor:
    """Returns the barycenter (..., H, W) of measures (K, ..., H, W) in [0, 1], differentiable: by
    `closed_form` if that is exact for all images, else by `pdhg`.

    Raises:
        RequestError: K is 0.
    """
    if flow_is_zero(len(measures), prices):
        return closed_form(measures, prices)
    return pdhg(measures, prices).barycenter


def closed_form(measures: Tensor, prices: Prices) -> Tensor:
    """Returns the barycenter without flow, pixel by pixel: argmin over q in [0, 1] of sum_k H(p_k -
    q) + theta q, H the Huber function of slope rho, capped at mu.

    Stationarity is sum_k clip(rho (p_k - q), -mu, mu) = theta. For K = 2 and 0 < theta < 2 mu the
    solution is min(mean - theta / (2 rho), min(p_1, p_2) + (mu - theta) / rho). If a whole interval
    is optimal (theta = j mu, j and K both even or both odd), the result is its midpoint (our
    choice). Autograd gradients are exact; at kinks they are one-sided.

    Args:
        measures: (K, ...) in [0, 1].
        prices: the constants.

    Returns:
        (...), in [0, 1]; 0 everywhere if theta > K mu.

    Raises:
        RequestError: K is 0.
    """
    _check(measures)
    cap, shift = prices.mu / prices.rho, prices.theta / prices.rho
    if len(measures) != 2 or not 0 < prices.theta < 2 * prices.mu:
        return _of_many(measures, cap, shift)
    mean = measures[0].lerp(measures[1], 0.5).sub_(shift / 2)
    least = torch.minimum(measures[0], measures[1])
    if cap != shift:
        least = least + (cap - shift)
    return torch.minimum(mean, least).clamp(0, 1)


def _of_many(measures: Tensor, cap: float, shift: float) -> Tensor:
    """Returns the root q (...) of s(q) = sum_k clip(p_k - q, -cap, cap) = shift for any K.

    s falls along its sorted kinks p_k -+ cap and is linear between them; its slope is the number of
    uncapped terms.
    """
    count = len(measures)
    kinks = torch.cat([measures - cap, measures + cap]).sort(0).values
    scores = torch.stack([(p - kinks).clamp(-cap, cap) for p in measures]).sum(0)
    close = 8 * count * torch.finfo(measures.dtype).eps * (1 + cap)
    above = (scores > shift + close).sum(0, keepdim=True)  # kinks left of all optima
    reached = (scores >= shift - close).sum(0, keepdim=True)
    before = (above - 1).clamp(min=0)
    left, right = kinks.gather(0, before), kinks.gather(0, above.clamp(max=2 * count - 1))
    uncapped = ((measures - (left + right) / 2).abs() < cap).sum(0, keepdim=True).clamp(min=1)
    crossing = left + (scores.gather(0, before) - shift) / uncapped
    flat = reached > above
    low = torch.where(flat, right, crossing).masked_fill(above == 0, 0.0)
    last = kinks.gather(0, (reached - 1).clamp(min=0))
    high = torch.where(flat, last, crossing).masked_fill(reached == 0, 0.0)
    return ((low.clamp(0, 1) + high.clamp(0, 1)) / 2)[0]


def pdhg(
    measures: Tensor,
    prices: Prices,
    *,
    tolerance: float = 1e-5,
    most: int = 5000,
    unrolled: int = 100,
) -> Solution:
    """Solves the full problem, including flow, with the primal-dual iteration of Chambolle and Pock
    (2011) as in the released code; all proximal maps are exact.

    The squared norm of the constraint operator is at most 8 + 2 + K, and the product of the two
    steps stays below 1 / (10 + K), which the released 0.1 x 1 violates for K = 2. The iteration
    ends when constraints and optimality conditions hold to `tolerance` everywhere, or after `most`
    iterations with a warning. Gradients come from `unrolled` further iterations at the solution
    (our choice: a whole run would store thousands of states); they are exact up to the iteration's
    remaining memory of its start. The inputs x are unique. If mass flows, q need not be, since a
    barycenter further along the path costs the same; the result is then the first one reached from
    the mean of the measures.

    Args:
        measures: (K, ..., H, W) in [0, 1].
        prices: the constants.
        tolerance: in units of pixels in [0, 1].
        most: maximum iterations.
        unrolled: iterations to differentiate through, run only if a gradient is needed.

    Raises:
        RequestError: K is 0.
    """
    _check(measures)
    step = math.sqrt(_SAFETY / (10 + len(measures)))
    number, change = 0, math.inf
    with torch.no_grad():
        state = _start(measures)
        while number < most and change > tolerance:
            number += 1
            new = _advance(state, measures, prices, step)
            if number % _CHECK_EVERY == 0 or number == most:
                change = _change(state, new, step)
            state = new
    if change > tolerance:
        warnings.warn(
            f"the barycenter did not converge in {most} steps: residual {change:.1e}, above"
            f" {tolerance:.0e}",
            RuntimeWarning,
            stacklevel=2,
        )
    if torch.is_grad_enabled() and measures.requires_grad:
        for _ in range(unrolled):
            state = _advance(state, measures, prices, step)
        number += unrolled
    return Solution(
        state.barycenter, state.inputs, state.flow, state.source, state.dual, number, change
    )


def divergence(flow: Tensor) -> Tensor:
    """Returns Div m of a flow (2, ..., H, W), down and to the right: (..., H, W).

    Backward differences; nothing flows across the border, so the sum is 0.
    """
    down, right = flow[0][..., :-1, :], flow[1][..., :-1]
    vertical = F.pad(down, (0, 0, 0, 1)) - F.pad(down, (0, 0, 1, 0))
    return vertical + F.pad(right, (0, 1)) - F.pad(right, (1, 0))


def transposed_divergence(dual: Tensor) -> Tensor:
    """Returns Div^T d, (2, ..., H, W), of d (..., H, W): negative forward differences, 0 across
    the border."""
    down = F.pad(dual[..., :-1, :] - dual[..., 1:, :], (0, 0, 0, 1))
    right = F.pad(dual[..., :-1] - dual[..., 1:], (0, 1))
    return torch.stack([down, right])


def rotations(images: Tensor, count: int, angle: float, *, spread: bool = True) -> Tensor:
    """Returns rotated copies (K, B, C, H, W) of images (B, C, H, W): nearest pixel, 0 outside.

    Angles are counterclockwise; K = 2 is the released choice, other K are ours; a single copy is
    rotated by `angle`. Differentiable.

    Args:
        images: (B, C, H, W).
        count: K, at least 1.
        angle: angle of the first copy, in degrees.
        spread: whether the angles are evenly spaced from `angle` to -`angle`; else all are `angle`.
    """
    batch, channels, height, width = images.shape
    last = -angle if spread else angle
    sources = _sources(height, width, count, (angle, last), images.device)
    padded = F.pad(images.flatten(2), (0, 1))
    copies = padded.gather(2, sources.expand(batch, channels, -1))
    return copies.view(batch, channels, count, height, width).movedim(2, 0)


@lru_cache(maxsize=64)
def _sources(
    height: int, width: int, count: int, angles: tuple[float, float], device: torch.device
) -> Tensor:
    """Returns the source pixel of each pixel of each copy, H W for none: int64 (K H W). `angles`
    are those of the first and the last copy.

    Cached: computing it takes longer than rotating a batch.
    """
    with torch.inference_mode(False):
        turns = torch.linspace(*angles, count, dtype=torch.float64).deg2rad()
        cos, sin = turns.cos()[:, None, None], turns.sin()[:, None, None]
        down = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
        right = torch.arange(width, dtype=torch.float64)[None] - (width - 1) / 2
        row = (sin * right + cos * down + (height - 1) / 2).round()
        column = (cos * right - sin * down + (width - 1) / 2).round()
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = torch.where(inside, row * width + column, height * width)
        return index.long().flatten().to(device, non_blocking=True)


def _check(measures: Tensor) -> None:
    if len(measures) == 0:
        raise RequestError("views: got 0 measures, expected at least 1")


def _start(measures: Tensor) -> _State:
    """Returns the state without flow and source, at the measures and their mean."""
    zeros = torch.zeros_like(measures)
    mean = measures.mean(0)
    return _State(torch.stack([zeros, zeros]), measures, zeros, mean, zeros, measures - mean)


def _advance(state: _State, measures: Tensor, prices: Prices, step: float) -> _State:
    """Returns the state after one iteration with the same step for primal and dual."""
    flow, inputs, source, mean, dual, residual = state
    rho, mu, theta = prices.rho, prices.mu, prices.theta
    flow = flow - step * transposed_divergence(dual)
    length = flow.square().sum(0).clamp(min=step**2).sqrt()
    flow = flow * (1 - step / length)
    inputs = ((rho * step * measures + inputs - step * dual) / (1 + rho * step)).clamp(min=0)
    source = source + step * dual
    source = source - source.clamp(-mu * step, mu * step)
    mean = (mean + step * (dual.sum(0) - theta)).clamp(0, 1)
    new = divergence(flow) + inputs - mean - source
    dual = dual + step * (2 * new - residual)
    return _State(flow, inputs, source, mean, dual, new)


def _change(old: _State, new: _State, step: float) -> float:
    """Returns the largest violation of the constraints or of primal or dual optimality."""
    moved = [float((a - b).abs().max()) for a, b in zip(old[:5], new[:5], strict=True)]
    return max(max(moved) / step, float(new.residual.abs().max()))

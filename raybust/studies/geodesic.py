"""Effects of the location on a geodesic and of the sample size: sweeps over both, on two Gaussians,
where closed forms exist, and on the images of a dataset.

Both questions come from the theory of Zhu et al. (ICML 2023, arXiv:2302.02092), which is for
Gaussians; we have not read its statements, so setting and closed forms are ours. Classifiers are
linear, because their accuracy under L2 perturbations is exact.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raybust.config.inputs import Data
from raybust.data import Part, load
from raybust.numerics.transport.bures import (
    bures_geodesic,
    gaussian_distance,
    mean_classifier_accuracy,
)
from raybust.numerics.transport.curves import Curves, between
from raybust.numerics.transport.pairs import coupled
from raybust.numerics.transport.spaces import pixel_space

DIMENSION, SEPARATION, EPS = 20, 1.5, 0.5
"""The Gaussians N(+-theta, I): d, |theta|, and the radius of the perturbation."""
LOCATIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
SHARES = (1, 4)
"""Synthetic points over real ones."""
SIZES = (8, 16, 32, 64, 128, 256)
"""Points per class."""
IMAGES, IMAGES_EPS, DECAY = (8, 32, 96), 0.5, 1e-3
"""Images per class, radius in pixels in [0, 1], weight of the squared norm in the loss."""
_CLOSED = "lines: closed form"
_LABELS = {"source": "label of the nearer end", "soft": "mixed label"}

Sample = tuple[Tensor, Tensor]
"""Points (N, d), float64, and labels, int64 (N,)."""


@dataclass(frozen=True)
class Line:
    """One measured line of a figure, with its closed form if there is one.

    Attributes:
        name: label of the line.
        x: (P,).
        values: (P,), means over trials.
        halves: (P,), half-widths of the 95% intervals of the values, by normal approximation.
        exact: (P,), the closed form; empty if there is none.
        control: whether it is a control.
        group: lines of one group share a color.
    """

    name: str
    x: tuple[float, ...]
    values: tuple[float, ...]
    halves: tuple[float, ...]
    exact: tuple[float, ...] = ()
    control: bool = False
    group: int = 0


@dataclass(frozen=True)
class Panel:
    """Lines that share their axes; `x` and `y` are axis labels, `log` sets a log axis for sizes,
    `exact` describes the closed form."""

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    log: bool = False
    exact: str = ""


def sweep(images: Sample, tested: Sample, *, trials: int = 4) -> list[Panel]:
    """Returns all panels: three for two Gaussians, three for the images.

    Args:
        images: to draw samples from, at least `max(IMAGES)` per class.
        tested: to measure accuracy on.
        trials: samples of images per point, at least two; Gaussians use more.

    Raises:
        ValueError: a class has too few images.
    """
    if int(images[1].bincount().min()) < max(IMAGES):
        raise ValueError(
            f"images: got a class of {int(images[1].bincount().min())}, expected {max(IMAGES)}"
        )
    return [
        _gaussians_by_location(50 * trials),
        _gaussians_by_size(50 * trials),
        _gaussian_variance(2 * trials),
        *(_images_by_location(images, tested, rule, trials) for rule in _LABELS),
        _image_variance(images, trials),
    ]


def _line(name: str, x: Sequence[float], trials: Sequence[Sequence[float]], **more: object) -> Line:
    """Returns a line of means over trials; `trials` has a list of values for each x."""
    means = tuple(statistics.mean(values) for values in trials)
    halves = tuple(1.96 * statistics.stdev(values) / len(values) ** 0.5 for values in trials)
    return Line(name, tuple(x), means, halves, **more)  # type: ignore[arg-type]


def gaussian_sample(size: int, seed: int) -> Sample:
    """Draws `size` points of each of the two classes, with theta along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * size, DIMENSION, generator=generator, dtype=torch.float64)
    y = torch.arange(2).repeat_interleave(size)
    x[:, 0] += SEPARATION * (2 * y - 1)
    return x, y


def _mean_classifier(size: int, share: int, t: float, seed: int) -> float:
    """Returns the robust accuracy of the mean classifier of one sample and `share` times as many
    new points of the barycenters."""
    sample = gaussian_sample(size, seed)
    total = _signed_sum(sample)
    if share:
        fresh, y = gaussian_sample(share * size, seed + 10**6)
        fresh[:, 0] -= 2 * t * SEPARATION * (2 * y - 1)
        total = total + _signed_sum((fresh, y))
    return _gaussian_accuracy(total)


def _transported_classifier(size: int, t: float, seed: int) -> float:
    """Returns the robust accuracy of the mean classifier of one sample and its own transported
    points, labeled like their nearer ends."""
    sample = gaussian_sample(size, seed)
    curves = curves_of(sample, "ot", seed)
    points = curves.images(t), curves.source.argmax(1)
    return _gaussian_accuracy(_signed_sum(sample) + _signed_sum(points))


def _signed_sum(sample: Sample) -> Tensor:
    x, y = sample
    return ((2 * y - 1)[:, None] * x).sum(0)


def _gaussian_accuracy(weight: Tensor) -> float:
    margin = SEPARATION * float(weight[0] / weight.norm()) - EPS
    return 0.5 * (1 + math.erf(margin / 2**0.5))


def _gaussian_line(
    name: str, points: Sequence[tuple[int, int, float]], x: Sequence[float], trials: int
) -> Line:
    """Returns the line for some (size, share, t), with its closed form."""
    values = [[_mean_classifier(*point, seed) for seed in range(trials)] for point in points]
    exact = tuple(
        mean_classifier_accuracy(SEPARATION, DIMENSION, 2 * n, 2 * n * share, t, eps=EPS)
        for n, share, t in points
    )
    return _line(name, x, values, exact=exact)


def _gaussians_by_location(trials: int) -> Panel:
    size = SIZES[0]
    lines = [_gaussian_line("none", [(size, 0, t) for t in LOCATIONS], LOCATIONS, trials)]
    for share in SHARES:
        points = [(size, share, t) for t in LOCATIONS]
        lines.append(_gaussian_line(f"{share * size} new points", points, LOCATIONS, trials))
    values = [[_transported_classifier(size, t, seed) for seed in range(trials)] for t in LOCATIONS]
    lines.append(_line("its own points, transported", LOCATIONS, values, control=True))
    return Panel(
        f"Gaussians, {size} points of a class",
        "location t",
        "robust accuracy",
        _grouped(lines),
        exact=_CLOSED,
    )


def _grouped(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Returns the lines, each in its own color."""
    return tuple(dataclasses.replace(line, group=at) for at, line in enumerate(lines))


def _gaussians_by_size(trials: int) -> Panel:
    lines = [_gaussian_line("none", [(n, 0, 0.0) for n in SIZES], SIZES, trials)]
    for t in (0.1, 0.2, 0.5):
        points = [(n, 1, t) for n in SIZES]
        lines.append(_gaussian_line(f"n new points at t = {t:g}", points, SIZES, trials))
    return Panel(
        "Gaussians",
        "points of a class n",
        "robust accuracy",
        _grouped(lines),
        log=True,
        exact=_CLOSED,
    )


def curves_of(sample: Sample, pairing: str, seed: int) -> Curves:
    """Returns the curves of one sample as in method `geodesic`, with classes in a random cycle;
    `pairing` is `ot` or `random`."""
    x, y = sample
    classes = int(y.max()) + 1
    paths, _ = coupled(x, y, pairing, torch.Generator().manual_seed(seed), least=1)
    return between(pixel_space(x), F.one_hot(y, classes).double(), paths)


def kept_variance(curves: Curves, t: float) -> float:
    """Returns the total variance at t, averaged over the geodesics, over that of the start."""

    def total(points: Tensor) -> float:
        of = [points[curves.pair == pair] for pair in range(curves.pairs)]
        return statistics.mean(float(cloud.var(0).sum()) for cloud in of)

    return total(curves.images(t)) / total(curves.start)


def _variance_panel(
    draw: Callable[[int, int], Sample],
    sizes: Sequence[int],
    exact: tuple[float, str],
    name: str,
    trials: int,
) -> Panel:
    lines = []
    for pairing, limit in (("ot", exact[0]), ("random", 0.5)):
        values = [
            [kept_variance(curves_of(draw(n, seed), pairing, seed), 0.5) for seed in range(trials)]
            for n in sizes
        ]
        label = {"ot": "transport", "random": "random pairs"}[pairing]
        lines.append(
            _line(
                label,
                sizes,
                values,
                exact=(limit,) * len(sizes),
                control=pairing != "ot",
                group=int(pairing != "ot"),
            )
        )
    label = "variance kept at t = 1/2"
    return Panel(name, "points of a class n", label, tuple(lines), log=True, exact=exact[1])


def _gaussian_variance(trials: int) -> Panel:
    eye = torch.eye(DIMENSION, dtype=torch.float64)
    exact = float(bures_geodesic(eye, eye, 0.5).trace() / eye.trace())
    name = f"Gaussians in {DIMENSION} dimensions"
    return _variance_panel(gaussian_sample, SIZES, (exact, _CLOSED), name, trials)


def image_sample(images: Sample, size: int, seed: int) -> Sample:
    """Draws `size` random images of each class."""
    x, y = images
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in range(int(y.max()) + 1):
        members = (y == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:size]])
    at = torch.cat(chosen)
    return x[at], y[at]


def logistic(x: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Returns weights (K, d) and biases (K,) of the logistic regression that minimizes the cross
    entropy to the probabilities (N, K) plus DECAY |W|^2, by L-BFGS."""
    weight = x.new_zeros(probabilities.shape[1], x.shape[1]).requires_grad_()
    bias = x.new_zeros(probabilities.shape[1]).requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=60, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, probabilities) + DECAY * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    solver.step(objective)
    return weight.detach(), bias.detach()


def robust_accuracy(weight: Tensor, bias: Tensor, tested: Sample, eps: float) -> float:
    """Returns the exact share of points that withstand all L2 perturbations of size eps, from the
    distances to the half-spaces of the other classes."""
    x, y = tested
    logits = x @ weight.T + bias
    gaps = logits.gather(1, y[:, None]) - logits
    distances = gaps / (weight[y][:, None] - weight).norm(dim=2).clamp(min=1e-12)
    distances.scatter_(1, y[:, None], math.inf)
    return float((distances.amin(1) >= eps).double().mean())


def _images_by_location(images: Sample, tested: Sample, rule: str, trials: int) -> Panel:
    def accuracy(size: int, pairing: str, t: float, seed: int) -> float:
        x, y = sample = image_sample(images, size, seed)
        curves = curves_of(sample, pairing, seed)
        own = F.one_hot(y, curves.source.shape[1]).double()
        both = torch.cat([x, curves.images(t)]), torch.cat([own, curves.labels(t, rule)])
        return robust_accuracy(*logistic(*both), tested, IMAGES_EPS)

    lines = []
    for size in IMAGES:
        # At t = 0 each image appears twice: no augmentation, for either pairing.
        base = [accuracy(size, "ot", 0.0, seed) for seed in range(trials)]
        for pairing, name in (("ot", "transport"), ("random", "random pairs")):
            values = [
                [accuracy(size, pairing, t, seed) for seed in range(trials)] for t in LOCATIONS[1:]
            ]
            label = f"n = {size}, {name}"
            control = pairing == "random"
            lines.append(_line(label, LOCATIONS, [base, *values], control=control, group=size))
    return Panel(f"Images, {_LABELS[rule]}", "location t", "robust accuracy", tuple(lines))


def _image_variance(images: Sample, trials: int) -> Panel:
    """With the closed form for Gaussians with the moments of the classes, in class order."""
    x, y = images
    clouds = [x[y == label] for label in range(int(y.max()) + 1)]
    kept, whole = [], statistics.mean(float(cloud.var(0).sum()) for cloud in clouds)
    for a, b in zip(clouds, clouds[1:] + clouds[:1], strict=True):
        s0, s1 = a.T.cov(), b.T.cov()
        squared = gaussian_distance(a[0] * 0, s0, b[0] * 0, s1) ** 2
        kept.append(float(s0.trace() + s1.trace()) / 2 - float(squared) / 4)
    exact = (statistics.mean(kept) / whole, "lines: Gaussians of their moments")
    return _variance_panel(
        lambda n, seed: image_sample(images, n, seed), IMAGES, exact, "Images", trials
    )


def theory(trials: int = 4) -> list[Panel]:
    """Returns the panels of the sweep over location and sample size, on Gaussians and on digits.

    Args:
        trials: samples of digits per point, at least two; Gaussians use more.
    """

    def flat(part: Part) -> tuple[Tensor, Tensor]:
        images, labels = part.fetch(torch.arange(len(part)))
        return images.flatten(1).double(), labels

    digits = load(Data(name="digits"))
    return sweep(flat(digits.train), flat(digits.test), trials=trials)

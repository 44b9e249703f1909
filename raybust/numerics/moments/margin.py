"""Estimated radii from the moments of the logits, and the hinge losses that increase them.

The score z of Zhen, Chakraborty and Singh (CVPR 2021, arXiv:2104.05888), the radius in units of
sigma, and the hinge on probabilities of MACER (Zhai et al., ICLR 2020, arXiv:2001.02378), which
both methods use. These radii are estimates for training and screening; never present them as
certificates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raybust.numerics.moments.covariance import Rules
from raybust.numerics.moments.propagation import LogitMoments, propagate, trace

SCREENING = Rules(mode="channel_exact", r_max=0.0, expected_relu=False)
"""Settings of the screening radius (our choice, by the rank correlations reported in docs)."""


def margin_score(logits: LogitMoments, *, crossed: bool = True) -> Tensor:
    """Returns z = (u1 - u2) / sqrt(Q11 + Q22 + 2 |Q12|) for the two classes, (B,); below 0 only
    where the first is a label that is not the largest.

    With - 2 Q12 instead of + 2 |Q12|, PHI(z) would be the probability that the first wins; |z| is
    never larger. It is finite at Q = 0, thanks to a floor of 1e-12 under the square root.

    Args:
        logits: moments of the two.
        crossed: False leaves out the term 2 |Q12|.
    """
    q = logits.covariance
    spread = q[:, 0, 0] + q[:, 1, 1]
    if crossed:
        spread = spread + 2 * q[:, 0, 1].abs()
    return _gap(logits.mean, logits.top) / spread.clamp_min(1e-12).sqrt()


def linear_score(
    logits: Tensor, pair: Tensor, images: Tensor, sigma: float, *, detach: bool = True
) -> Tensor:
    """Returns z = (u1 - u2) / (sigma ||d(u1 - u2)/dx||), the margin over its standard deviation if
    the network is linear around the images, (B,). Our own form.

    The variance is exact for linear layers, whatever the correlations between pixels and channels,
    and takes a ReLU by its slope at the mean. It costs one backward pass to the images, keeps the
    graph of the logits, and needs no rule of a layer. Batch norm in train mode adds the effect of
    an image on the others' margins. Finite at slope 0, like `margin_score`.

    Args:
        logits: (B, K), the network's output.
        pair: classes int64 (B, 2), see `contenders`.
        images: (B, C, H, W), its input, requires a gradient.
        sigma: standard deviation of the noise, > 0.
        detach: whether the slope is a constant in the gradient of z, else that is of second order.
    """
    gap = _gap(logits, pair)
    (slope,) = torch.autograd.grad(gap.sum(), images, retain_graph=True, create_graph=not detach)
    variance = (sigma * slope).flatten(1).square().sum(1)
    return gap / variance.clamp_min(1e-12).sqrt()


def _gap(logits: Tensor, pair: Tensor) -> Tensor:
    first, second = logits.gather(1, pair).unbind(1)
    return first - second


def probability_cross_entropy(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Returns -log(q_y + 1e-10), or its mean under target probabilities: (B,). The constant is in
    the code of both methods; it limits the loss of a saturated wrong example to 23.

    Args:
        probabilities: q (B, K), rows sum to 1.
        targets: int64 (B,), or probabilities (B, K).
    """
    losses = -torch.log(probabilities + 1e-10)
    if targets.ndim == 1:
        return losses.gather(1, targets[:, None])[:, 0]
    return (targets * losses).sum(1)


def radius_hinge(scores: Tensor, sigma: float, gamma: float) -> Tensor:
    """Returns max(0, sigma (gamma - z)), the radius sigma z that is missing to sigma gamma: (B,).

    Args:
        scores: z (B,) of the label against the largest other class, negative where misclassified.
        sigma: standard deviation of the noise.
        gamma: largest rewarded score.
    """
    return (sigma * (gamma - scores)).clamp_min(0)


def margin_hinge(scores: Tensor, correct: Tensor, gamma: float) -> Tensor:
    """Returns max(0, gamma - z) if `correct`, else 0: (B,).

    Args:
        scores: z (B,).
        correct: bool (B,).
        gamma: largest rewarded score.
    """
    return torch.where(correct, (gamma - scores).clamp_min(0), 0.0)


def probability_hinge(probabilities: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Returns gamma - xi, xi = PHI^-1(q1) - PHI^-1(q2) for the two largest, (B,); 0 if the largest
    is not the label's, if xi is not finite (saturated: q1 = 1 or q2 = 0), or if xi > gamma. Such
    examples have gradient 0, not NaN: PHI^-1 is not evaluated for them.

    Args:
        probabilities: (B, K), rows sum to 1, K >= 2; float32 or wider.
        labels: int64 (B,).
        gamma: largest rewarded xi.
    """
    q, top = probabilities.topk(2)
    with torch.no_grad():
        xi = torch.special.ndtri(q[:, 0]) - torch.special.ndtri(q[:, 1])
        counted = (top[:, 0] == labels) & xi.isfinite() & (xi.abs() <= gamma)
    safe = torch.where(counted[:, None], q, 0.5)
    xi = torch.special.ndtri(safe[:, 0]) - torch.special.ndtri(safe[:, 1])
    return torch.where(counted, gamma - xi, 0.0)


def screening_radii(
    network: nn.Module,
    images: Tensor,
    sigma: float,
    *,
    rules: Rules = SCREENING,
    batch: int = 100,
) -> tuple[Tensor, Tensor]:
    """Returns the estimate sigma z of each image's radius under noise and its class: float (B,) and
    int64 (B,). Not a certificate.

    Args:
        network: in eval mode, traceable; images (B, C, H, W) in [0, 1] to logits.
        images: without noise.
        sigma: standard deviation of the noise, > 0.
        rules: mode and settings.
        batch: images at a time.
    """
    graph = trace(network)
    radii, classes = [], []
    with torch.no_grad():
        for part in torch.split(images, batch):
            logits = propagate(graph, network, part, sigma, rules)
            radii.append(sigma * margin_score(logits))
            classes.append(logits.top[:, 0])
    return torch.cat(radii), torch.cat(classes)


def moment_acr(network: nn.Module, images: Tensor, labels: Tensor, sigma: float) -> float:
    """Returns the mean screening radius over images, counting misclassified ones as 0: it ranks
    networks of one architecture with one pass per image. Not an average *certified* radius.

    Args:
        network: in eval mode, traceable.
        images: (B, C, H, W) in [0, 1], B >= 1.
        labels: int64 (B,).
        sigma: standard deviation of the noise, > 0.
    """
    radii, classes = screening_radii(network, images, sigma)
    return float((radii * (classes == labels)).mean())

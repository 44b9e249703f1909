"""The sweeps over location and sample size: closed forms against samples, identities, and the exact
robust accuracy against an attack."""

import math

import pytest
import torch
import torch.nn.functional as F

from raybust.numerics.transport import gaussian_distance, mean_classifier_accuracy
from raybust.studies.geodesic import (
    DIMENSION,
    EPS,
    IMAGES,
    SEPARATION,
    _image_variance,
    _mean_classifier,
    _transported_classifier,
    curves_of,
    gaussian_sample,
    image_sample,
    kept_variance,
    logistic,
    robust_accuracy,
    sweep,
)


@pytest.mark.parametrize(("size", "share", "t"), [(8, 0, 0.0), (8, 1, 0.2), (16, 4, 0.5)])
def test_the_closed_form_is_the_mean_over_samples(size, share, t):
    values = torch.tensor([_mean_classifier(size, share, t, seed) for seed in range(2000)])
    exact = mean_classifier_accuracy(SEPARATION, DIMENSION, 2 * size, 2 * size * share, t, eps=EPS)
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / 2000**0.5 + 1e-4


def test_the_closed_form_at_its_limits():
    """Infinitely many points give the best classifier, PHI(|theta| - eps); new points at t = 0 are
    more real points; at t = 1/2 they are noise; for m = n they help up to t = 1 - 1/sqrt(2)."""
    best = 0.5 * (1 + math.erf((1.5 - 0.5) / 2**0.5))
    assert mean_classifier_accuracy(1.5, 20, 10**9, 0, 0.0, eps=0.5) == pytest.approx(best)

    def at(real, synthetic, t):
        return mean_classifier_accuracy(1.5, 20, real, synthetic, t, eps=0.5)

    assert at(16, 48, 0.0) == pytest.approx(at(64, 0, 0.0), abs=1e-12)
    assert at(16, 16, 0.5) < at(16, 0, 0.0) < at(16, 16, 0.0)
    # w scales with n + m (1 - 2t), its noise with sqrt(n + m): equal where 1 - 2t = sqrt(2) - 1.
    assert at(16, 16, 1 - 2**-0.5) == pytest.approx(at(16, 0, 0.0), abs=1e-9)


def test_transported_points_of_the_sample_add_nothing_to_the_mean_classifier():
    """sum y x_t over a permutation and its inverse is (1 - 2 t) sum y x."""
    for t in (0.1, 0.35, 0.5):
        for seed in range(5):
            own = _mean_classifier(8, 0, 0.0, seed)
            assert _transported_classifier(8, t, seed) == pytest.approx(own, abs=1e-12)


def test_variance_kept_on_the_path():
    sample = gaussian_sample(400, 0)
    random, ot = (curves_of(sample, pairing, 0) for pairing in ("random", "ot"))
    assert kept_variance(random, 0.0) == pytest.approx(1)
    assert kept_variance(random, 0.5) == pytest.approx(0.5, abs=0.02)
    for t in (0.25, 0.5):
        assert kept_variance(random, t) == pytest.approx((1 - t) ** 2 + t**2, abs=0.03)
        assert kept_variance(random, t) < kept_variance(ot, t) < 1
    few = kept_variance(curves_of(gaussian_sample(8, 0), "ot", 0), 0.5)
    assert few < kept_variance(ot, 0.5), "the plan of a large sample is nearer to the map"


def test_the_closed_form_of_images_is_that_of_gaussians_with_their_moments():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([[1.0, 2.0], [3.0, 1.0]], dtype=torch.float64)
    x = torch.randn(2, 4000, 2, generator=generator, dtype=torch.float64) * scales[:, None]
    labels = torch.arange(2).repeat_interleave(4000)
    panel = _image_variance((x.flatten(0, 1), labels), trials=2)
    kept = ((scales[0] / 2 + scales[1] / 2) ** 2).sum() / scales.square().sum(1).mean()
    assert panel.lines[0].exact[0] == pytest.approx(float(kept), rel=0.05)
    assert panel.lines[0].values[-1] == pytest.approx(float(kept), rel=0.1)
    zero = torch.zeros(2, dtype=torch.float64)
    squared = gaussian_distance(zero, scales[0].square().diag(), zero, scales[1].square().diag())
    torch.testing.assert_close(squared**2, (scales[0] - scales[1]).square().sum())


def test_robust_accuracy_is_what_the_worst_perturbation_leaves():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    x = torch.randn(300, 6, generator=generator, dtype=torch.float64)
    y = (x @ weight.T + bias).argmax(1)
    y[::10] = (y[::10] + 1) % 4
    for eps in (0.0, 0.2, 1.0):
        survived = torch.ones(300, dtype=torch.bool)
        for other in range(4):
            direction = weight[other] - weight[y]
            norms = direction.norm(dim=1, keepdim=True)
            moved = x + (eps + 1e-9) * direction / norms.clamp(min=1e-12)
            logits = moved @ weight.T + bias
            beaten = logits[:, other] > logits.gather(1, y[:, None])[:, 0]
            survived &= ~beaten | (y == other)
        found = robust_accuracy(weight, bias, (x, y), eps)
        assert found == pytest.approx(float(survived.double().mean()))


def test_logistic_regression_is_at_its_minimum():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    p = torch.rand(60, 3, generator=generator, dtype=torch.float64)
    p = p / p.sum(1, keepdim=True)
    weight, bias = (part.requires_grad_() for part in logistic(x, p))
    loss = F.cross_entropy(x @ weight.T + bias, p) + 1e-3 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert float(gradient.abs().max()) < 1e-4


def test_samples_are_balanced_and_too_few_images_are_refused():
    x = torch.rand(50, 2, dtype=torch.float64)
    y = torch.arange(50) % 5
    chosen, labels = image_sample((x, y), 4, seed=0)
    assert labels.bincount().tolist() == [4] * 5
    assert len(chosen.unique(dim=0)) == 20
    with pytest.raises(ValueError, match=f"got a class of 10, expected {max(IMAGES)}"):
        sweep((x, y), (x, y))

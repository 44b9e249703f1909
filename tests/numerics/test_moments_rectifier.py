"""ReLU moments against closed forms, sampling, and finite differences."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from raybust.numerics.moments import (
    expected_relu,
    mean_relu_covariance,
    relu_covariance,
    relu_variance,
)

# (m1, d1, m2, d2, r), then mean1, var1, E[xy], cov: checked against 4e6 draws by the specification.
EXAMPLES = [
    ((0.3, 1.0, -0.5, 0.7, 0.6), (0.566761, 0.466721, 0.131286, 0.075960)),
    ((1.0, 0.5, 0.8, 2.0, -0.4), (1.004245, 0.240049, 1.011397, -0.254833)),
    ((-1.0, 1.0, -1.0, 1.0, 0.9), (0.083315, 0.068398, 0.062352, 0.055411)),
]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("given", "expected"), EXAMPLES)
def test_bivariate_examples(given, expected):
    m1, d1, m2, d2, r = (f64(value) for value in given)
    cov = relu_covariance((m1, m2), (d1, d2), r)
    first, second = expected_relu(m1, d1), expected_relu(m2, d2)
    found = (first, relu_variance(m1, d1), cov + first * second, cov)
    assert [round(float(value), 6) for value in found] == list(expected)


@pytest.mark.parametrize(("given", "expected"), EXAMPLES)
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_series_equals_the_integral(given, expected, slope):
    m1, d1, m2, d2, r = given
    matrix = f64([d1**2, r * d1 * d2], [r * d1 * d2, d2**2])[None]
    series = mean_relu_covariance(f64([m1], [m2])[None], matrix, slope, terms=60)[0]
    exact = relu_covariance((f64(m1), f64(m2)), (f64(d1), f64(d2)), f64(r), slope)
    assert float(series[0, 1]) == pytest.approx(float(exact), abs=1e-5)
    short = mean_relu_covariance(f64([m1], [m2])[None], matrix, slope)[0]
    assert float(short[0, 1]) == pytest.approx(float(exact), abs=3e-4 * d1 * d2)
    diagonal = relu_variance(f64(m1, m2), f64(d1, d2), slope)
    torch.testing.assert_close(series.diagonal(), diagonal)


def test_leaky_covariance_against_sampling():
    generator = torch.Generator().manual_seed(0)
    m1, d1, m2, d2, r, slope = 0.3, 1.0, -0.5, 0.7, 0.6, 0.25
    z = torch.randn(2, 2_000_000, generator=generator, dtype=torch.float64)
    x = torch.nn.functional.leaky_relu(m1 + d1 * z[0], slope)
    y = torch.nn.functional.leaky_relu(m2 + d2 * (r * z[0] + math.sqrt(1 - r * r) * z[1]), slope)
    sampled = ((x - x.mean()) * (y - y.mean())).mean()
    exact = relu_covariance((f64(m1), f64(m2)), (f64(d1), f64(d2)), f64(r), slope)
    assert float(exact) == pytest.approx(float(sampled), abs=2e-3)
    assert float(relu_variance(f64(m1), f64(d1), slope)) == pytest.approx(float(x.var()), rel=5e-3)
    assert float(expected_relu(f64(m1), f64(d1), slope)) == pytest.approx(float(x.mean()), abs=3e-3)


def test_correlation_one_is_the_variance():
    means = torch.linspace(-4, 4, 41, dtype=torch.float64)
    ones = torch.ones_like(means)
    found = relu_covariance((means, means), (ones, ones), ones)
    torch.testing.assert_close(found, relu_variance(means, ones), atol=2e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes(dtype):
    means = torch.tensor([-1e6, -30.0, -1e-30, 0.0, 1e-30, 30.0, 1e6], dtype=dtype)
    for deviation in (1e-12, 1.0, 1e9):
        spread = torch.full_like(means, deviation)
        expected, variance = expected_relu(means, spread), relu_variance(means, spread)
        assert expected.isfinite().all()
        assert variance.isfinite().all()
        assert (variance >= 0).all()
        assert (variance <= spread**2 * (1 + 1e-6)).all(), "Var relu(X) <= Var X"
        assert (expected >= means.clamp_min(0) * (1 - 1e-6) - 1e-6).all(), "Jensen"
    zero = torch.zeros_like(means)
    assert relu_variance(means, zero).count_nonzero() == 0
    torch.testing.assert_close(expected_relu(means, spread * 0 + 1e-20), means.relu())


def test_variance_keeps_its_digits_in_float32():
    means = torch.linspace(-5, 8, 131)
    ones = torch.ones_like(means)
    exact = relu_variance(means.double(), ones.double())
    assert ((relu_variance(means, ones) - exact).abs() < 1e-6).all()


def test_gradients():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    deviations = torch.rand(4, 3, 1, dtype=torch.float64).add(0.2).requires_grad_()
    for slope in (0.0, 0.1):
        assert gradcheck(lambda m, d: expected_relu(m, d, slope), (means, deviations))  # noqa: B023
        assert gradcheck(lambda m, d: relu_variance(m, d, slope), (means, deviations))  # noqa: B023
    pair = (means[0], means[1]), (deviations[0], deviations[1])
    r = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda r: relu_covariance(*pair, r), (r,))


def test_gradient_of_the_means_alone_in_float32():
    """The kept probability is float16: the gradient is right to 2^-11."""
    means = torch.linspace(-6, 6, 49, requires_grad=True)
    expected_relu(means, torch.ones(49)).sum().backward()
    torch.testing.assert_close(means.grad, torch.special.ndtr(means.detach()), atol=5e-4, rtol=0)


def test_series_is_positive_semidefinite():
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(3, 6, 8, generator=generator)
    means = 2 * torch.randn(3, 6, 10, generator=generator)
    for matrix in (root @ root.mT, torch.ones(3, 6, 6), torch.zeros(3, 6, 6)):
        found = mean_relu_covariance(means, matrix)
        assert found.isfinite().all()
        assert (torch.linalg.eigvalsh(found.double()) > -1e-6 * (1 + matrix.max())).all()
        assert (found.diagonal(dim1=1, dim2=2) >= 0).all()

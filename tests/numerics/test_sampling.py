"""Exact laws of the samplers: Barthe et al. (2005), and the tests of the specification, 3.4."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from raybust.errors import RequestError
from raybust.numerics.balls import impulses, lp_noise, sampling, squares
from raybust.numerics.lp_sets import CIFAR_SHAPE, TINY_SHAPE, eps_of, named, rms

INF = math.inf
FINITE = (0.5, 2.0, 200.0)
"""Below 1, the Gaussian case, and where t^p underflows."""
ALPHA = 1e-3
D = 3072


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ball(shape, p, eps, *, sphere=False, seed=0, dtype=torch.float32):
    """Points (B, d) of balls or spheres, for one p and eps or one per row."""
    orders, radii = (torch.as_tensor(v, dtype=torch.float64).expand(shape[0]) for v in (p, eps))
    return sampling._points(shape[1], orders, radii, generator(seed), (sphere, dtype))


def grouped(shape, p, *, sphere=False, seed=0, dtype=torch.float32):
    return ball(shape, p, 1.0, sphere=sphere, seed=seed, dtype=dtype)


def at_once(shape, p, *, sphere=False, seed=0, dtype=torch.float32):
    """The code path of GPUs, run on the CPU."""
    orders = torch.full((shape[0], 1), p, dtype=dtype)
    return sampling._all_orders(shape, orders, generator(seed), sphere, dtype)


DRAWS = pytest.mark.parametrize("draw", [grouped, at_once])


def norm(x, p):
    x = x.double().abs()
    if math.isinf(p):
        return x.amax(1)
    largest = x.amax(1, keepdim=True)
    return largest[:, 0] * (x / largest).pow(p).sum(1).pow(1 / p)


def small_power_cdf(t, p, a, b):
    """CDF at t of |x|, where |x|^p ~ Beta(a, b) and a = 1/p: by logarithms, as t^p underflows."""
    logs = p * np.log(t)
    inside = special.betainc(a, b, np.exp(np.maximum(logs, -40.0)))
    return np.where(logs < -40, t / (a * special.beta(a, b)), inside)


def entry_cdf(p, d, sphere):
    """CDF of log |x_1| of a point of the unit ball or sphere."""
    b = (d - 1) / p + (0 if sphere else 1)
    return lambda logs: small_power_cdf(np.exp(logs), p, 1 / p, b)


def log_entries(x):
    return np.log(x[:, 0].double().abs().numpy())


# 1, 11: norms


@DRAWS
@pytest.mark.parametrize("p", FINITE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_of_the_sphere_have_norm_one(draw, p, dtype):
    x = draw((8, D), p, sphere=True, dtype=dtype)
    assert x.dtype == dtype
    assert (norm(x, p) - 1).abs().max() < 1e-5


@DRAWS
def test_the_sphere_of_inf_is_vertices(draw):
    x = draw((8, D), INF, sphere=True)
    assert (x.abs() == 1).all()
    assert abs((x > 0).double().mean() - 0.5) < 4 * 0.5 / math.sqrt(8 * D)


def test_c1_has_the_predicted_size_in_l2():
    rows = named("C1", CIFAR_SHAPE).rows
    assert len(rows) == 90
    gray = torch.full((1, D), 0.5)
    for number, (p, eps) in enumerate(rows):
        draws = 1500 if p == 0.5 else 20  # at p = 0.5 one point fluctuates by 4.5 %
        if p == 0:
            noisy = lp_noise(gray, 0.0, eps, generator=generator(number))
            measured, predicted = (noisy - gray).norm(), 0.5 * math.sqrt(round(eps * D))
        else:
            x = ball((draws, D), p, eps, seed=number)
            measured, predicted = x.norm(dim=1).mean(), rms(p, eps, D) * math.sqrt(D)
        assert abs(float(measured) / predicted - 1) < 0.01, (p, eps)


# 2: radius


@DRAWS
@pytest.mark.parametrize("p", [*FINITE, INF])
@pytest.mark.parametrize("d", [2, 32])
def test_the_radius_to_the_power_d_is_uniform(draw, p, d):
    radius = norm(draw((20_000, d), p, seed=d), p)
    assert stats.kstest((radius**d).numpy(), "uniform").pvalue > ALPHA


@pytest.mark.parametrize("p", FINITE)
def test_mean_and_variance_of_the_radius_at_image_size(p):
    n = 1000
    radius = norm(grouped((n, D), p, dtype=torch.float64), p)
    variance = D / ((D + 1) ** 2 * (D + 2))
    assert abs(radius.mean() - D / (D + 1)) < 5 * math.sqrt(variance / n)
    # the radius is 1 - E/d, whose variance has a spread of sqrt(8/n)
    assert abs(radius.var() / variance - 1) < 5 * math.sqrt(8 / n)


# 3, 4: the generalized normal variates


def variates(p, count, seed=0, dtype=torch.float32):
    """g and |g|^p, from each of the samplers that can draw them."""
    order = torch.full((count, 1), p, dtype=dtype)
    found = [sampling._by_gamma((count, 1), order, generator(seed), dtype)]
    if p > 1:
        found.append(sampling._by_rejection(count, p, generator(seed), dtype))
    if p == 0.5:
        found.append(sampling._of_half_order(count, generator(seed), dtype))
    return [(g.flatten(), power.flatten()) for g, power in found]


def gennorm_cdf(x, p):
    logs = p * np.log(np.abs(x) + 1e-300)
    half = special.gammainc(1 / p, np.exp(np.clip(logs, -40, 10))) / 2
    near = np.abs(x) / special.gamma(1 + 1 / p) / 2
    return 0.5 + np.sign(x) * np.where(logs < -40, near, half)


@pytest.mark.parametrize("p", [1.0, *FINITE])
def test_variates_follow_the_closed_form(p):
    for g, power in variates(p, 40_000):
        assert stats.kstest(g.double().numpy(), lambda x: gennorm_cdf(x, p)).pvalue > ALPHA
        if p < 50:
            assert torch.allclose(g.double().abs() ** p, power.double(), rtol=1e-4, atol=1e-6)


def test_scipy_agrees_where_it_can():
    for p in (0.5, 1, 2, 5, 10):
        x = np.linspace(-3, 3, 101)
        assert np.allclose(gennorm_cdf(x, p), stats.gennorm.cdf(x, p))


@pytest.mark.parametrize("p", FINITE)
def test_moments(p):
    for g, power in variates(p, 200_000, dtype=torch.float64):
        for q in (1, 2, 4):
            log_mean = math.lgamma((q + 1) / p) - math.lgamma(1 / p)
            log_square = math.lgamma((2 * q + 1) / p) - math.lgamma(1 / p)
            mean = math.exp(log_mean)
            spread = math.sqrt((math.exp(log_square) - mean**2) / len(g))
            assert abs(float((g.abs() ** q).mean()) - mean) < 4.5 * spread
        sums = power.view(-1, 20).sum(1).numpy()
        assert stats.kstest(sums, stats.gamma(20 / p).cdf).pvalue > ALPHA


def test_the_table_of_mean_absolute_values():
    expected = [6, 1, 0.564190, 0.483170, 0.482561, 0.494738, 0.498590]
    for p, mean in zip((0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 200.0), expected, strict=True):
        assert abs(math.gamma(2 / p) / math.gamma(1 / p) - mean) < 1e-6


# 5: the Beta law of an entry, for every p


@DRAWS
@pytest.mark.parametrize("sphere", [False, True])
@pytest.mark.parametrize("p", FINITE)
@pytest.mark.parametrize("d", [2, 300])
def test_beta_law(draw, sphere, p, d):
    n = 20_000 if d < 100 else 2000
    logs = log_entries(draw((n, d), p, sphere=sphere, seed=3))
    cdf = entry_cdf(p, d, sphere)
    # On a sphere of high p an entry is often closer to 1 than any floating-point number.
    edge = math.log(0.999)
    share, below = float(cdf(edge)), logs[logs < edge]
    assert stats.binomtest(len(below), n, share).pvalue > ALPHA
    assert stats.kstest(below, lambda x: cdf(x) / share).pvalue > ALPHA


@DRAWS
def test_an_entry_of_the_cube_is_uniform(draw):
    x = draw((20_000, 8), INF)[:, 3].double().numpy()
    assert stats.kstest(x, stats.uniform(-1, 2).cdf).pvalue > ALPHA


def test_the_float32_gamma_trap_would_fail_the_beta_law():
    p, d = 200.0, 8
    gamma = torch._standard_gamma(torch.full((20_000, d), 1 / p), generator())
    g = gamma.pow(1 / p)
    x = g / norm(g, p)[:, None] * torch.rand(20_000, 1, generator=generator()).pow(1 / d)
    assert stats.kstest(log_entries(x), entry_cdf(p, d, False)).pvalue < 1e-12


def test_archimedes():
    inside = grouped((20_000, 3), 2.0)[:, 0].double().numpy()
    density = lambda t: 0.5 + 0.75 * t - 0.25 * t**3  # noqa: E731
    assert stats.kstest(inside, density).pvalue > ALPHA
    edge = grouped((20_000, 2), 1.0, sphere=True)[:, 0].abs().double().numpy()
    assert stats.kstest(edge, "uniform").pvalue > ALPHA


# 6, 7, 8: signs, volume, independence


@DRAWS
@pytest.mark.parametrize("p", [*FINITE, INF])
def test_signs_are_fair_and_independent_of_magnitudes(draw, p):
    x = draw((400, 100), p, seed=5)
    positive = x > 0
    assert stats.binomtest(int(positive.sum()), x.numel()).pvalue > ALPHA
    size = x.abs()
    assert stats.ks_2samp(size[positive].numpy(), size[~positive].numpy()).pvalue > ALPHA
    assert stats.ttest_1samp(x.flatten().numpy(), 0.0).pvalue > ALPHA


@pytest.mark.parametrize("p", [0.5, 5.0])
@pytest.mark.parametrize("d", [2, 3])
def test_volume_against_points_of_the_cube(p, d):
    cube = torch.empty(60_000 if p > 1 else 400_000, d).uniform_(-1, 1, generator=generator(7))
    accepted = cube[cube.abs().pow(p).sum(1) <= 1]
    x = grouped((len(accepted), d), p, seed=8)
    for entry in range(d):
        found = stats.ks_2samp(x[:, entry].numpy(), accepted[:, entry].numpy())
        assert found.pvalue > ALPHA
    products = [points.abs().log().sum(1).numpy() for points in (x, accepted)]
    assert stats.ks_2samp(*products).pvalue > ALPHA


@pytest.mark.parametrize("p", [*FINITE, INF])
def test_images_of_a_batch_have_independent_noise(p):
    image = torch.full((1, 3, 32, 32), 0.5).expand(2, -1, -1, -1)
    eps = eps_of(p, 0.02, D)
    noise = (lp_noise(image, p, eps, generator=generator()) - image).flatten(1)
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 5 / math.sqrt(D)


def test_a_seed_is_a_noise():
    image = torch.rand(4, 3, 8, 8, generator=generator())
    p = torch.tensor([0.0, 2.0, INF, 5.0])
    first, again, other = (lp_noise(image, p, 0.1, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_row_has_its_own_norm_and_radius():
    p = torch.tensor([*FINITE, INF]).repeat(3)
    eps = torch.linspace(0.1, 5.0, len(p))
    x = ball((len(p), D), p, eps, sphere=True)
    for row, order, radius in zip(x, p.tolist(), eps.tolist(), strict=True):
        assert float(norm(row[None], order)) == pytest.approx(radius, rel=1e-5)
    assert ball((0, 5), torch.empty(0), 1.0).shape == (0, 5)


# 9: impulses


@pytest.mark.parametrize("share", [0.0, 0.005, 0.12, 0.3, 1.0])
def test_impulses_hit_an_exact_count(share):
    chosen, values = impulses((20, D), share, generator=generator())
    assert (chosen.sum(1) == round(share * D)).all()
    assert values.unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_every_choice_has_the_same_chance(count):
    chosen, _ = impulses((6000, 5), count / 5, generator=generator(count))
    assert (chosen.sum(1) == count).all()
    codes = (chosen * 2 ** torch.arange(5)).sum(1)
    found = codes.bincount(minlength=32)[codes.bincount(minlength=32) > 0]
    assert len(found) == math.comb(5, count)
    assert len(found) == 1 or stats.chisquare(found.numpy() * 1.0).pvalue > ALPHA


def test_impulses_of_each_image_have_their_own_count():
    share = torch.tensor([0.0, 0.3, 0.01, 1.0])
    chosen, _ = impulses((4, D), share, generator=generator())
    assert chosen.sum(1).tolist() == [0, 922, 31, D]


def test_impulses_are_uniform_in_place_and_fair_in_value():
    chosen, values = impulses((4000, 50), 0.1, generator=generator())
    # without replacement, and 50/49 for the fixed sum
    assert stats.chisquare(chosen.sum(0).numpy() * 1.0).pvalue > ALPHA
    assert stats.binomtest(int(values[chosen].sum()), int(chosen.sum())).pvalue > ALPHA
    _, values = impulses((4, D), 0.1, generator=generator(), binary=False)
    assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > ALPHA


def test_no_impulses_change_nothing_and_all_change_all():
    image = torch.rand(3, 3, 16, 16, generator=generator())
    assert torch.equal(lp_noise(image, 0.0, 0.0, generator=generator()), image)
    noisy = lp_noise(image, 0.0, 1.0, generator=generator())
    assert torch.equal(noisy, noisy.round())


# 10: range, types, gradients


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.0, 0.5, INF])
def test_types_and_range(dtype, p):
    image = torch.rand(4, 3, 32, 32, generator=generator()).to(dtype)
    image = image.contiguous(memory_format=torch.channels_last)
    eps = 0.1 if p == 0 else eps_of(p, 0.2, D)
    noisy = lp_noise(image, p, eps, generator=generator())
    assert (noisy.dtype, noisy.shape) == (dtype, image.shape)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    change = (noisy.double() - image.double()).flatten(1)
    assert (change != 0).any(1).all()
    if p > 0 and dtype in (torch.float32, torch.float64):
        assert (norm(change, p) <= eps * (1 + 1e-5)).all()


@pytest.mark.parametrize("p", [0.0, 2.0, 200.0])
def test_gradient_is_one_inside_and_zero_where_clipped_or_replaced(p):
    image = torch.rand(2, 3, 16, 16, generator=generator(), requires_grad=True)
    eps = 0.2 if p == 0 else eps_of(p, 0.3, 768)
    noisy = lp_noise(image, p, eps, generator=generator())
    noisy.sum().backward()
    inside = noisy == image if p == 0 else (noisy > 0) & (noisy < 1)
    assert torch.equal(image.grad, inside.to(image.dtype))
    assert 0 < inside.double().mean() < 1


@DRAWS
@pytest.mark.parametrize("sphere", [False, True])
def test_few_entries_and_high_norms_give_no_nan(draw, sphere):
    x = draw((5000, 3), 200.0, sphere=sphere)
    assert torch.isfinite(x).all()
    assert x.abs().max() <= 1 + 1e-5


def test_no_noise_is_the_identity():
    image = torch.rand(3, 3, 8, 8, generator=generator())
    for p in (*FINITE, INF):
        assert torch.equal(lp_noise(image, p, 0.0, generator=generator()), image)
    assert lp_noise(image[:0], 2.0, 1.0, generator=generator()).shape == (0, 3, 8, 8)


def test_noise_keeps_to_its_patch():
    image = torch.full((200, 3, 32, 32), 0.5)
    mask = squares(image, (0.2, 0.7), generator(1))
    p = torch.tensor([0.0, 2.0]).repeat(100)
    eps = torch.tensor([0.5, 5.0]).repeat(100)
    noisy = lp_noise(image, p, eps, generator=generator(), mask=mask)
    changed = noisy != image
    assert not changed[~mask.expand_as(changed)].any()
    assert changed[1::2][mask.expand_as(changed)[1::2]].double().mean() > 0.99
    share = mask.double().mean((1, 2, 3))
    assert share.max() < 0.75  # of the area, up to whole pixels
    assert share.min() >= 0.04  # a quarter remains where the center is in a corner


@pytest.mark.parametrize(
    ("p", "eps", "message"),
    [
        (math.nan, 1.0, "p: got nan, expected 0 or a norm, > 0"),
        (-1.0, 1.0, "p: got -1, expected"),
        (2.0, -0.5, "eps: got -0.5, expected a radius"),
        (2.0, math.nan, "eps: got nan, expected a radius"),
        (0.0, 3.0, r"eps: got 3, expected a share in \[0, 1\], because p is 0"),
    ],
)
def test_bad_input(p, eps, message):
    image = torch.rand(2, 3, 8, 8)
    with pytest.raises(RequestError, match=message):
        lp_noise(image, torch.tensor([2.0, p]), torch.tensor([1.0, eps]), generator=generator())


# the sets


def test_sets_are_the_published_ones():
    assert [len(named(name, CIFAR_SHAPE).rows) for name in ("C1", "C2", "C3", "iCE")] == [
        90,
        30,
        45,
        6,
    ]
    assert {p for p, _ in named("C2", TINY_SHAPE).rows} == {INF, 2.0, 0.0}
    assert (0.5, 12e6) in named("C1", TINY_SHAPE).rows
    low = dict(named("C3", CIFAR_SHAPE).rows)  # the last of each norm
    assert (low[2.0], low[INF], low[0.0]) == (1.5, 0.04, 0.03)
    patched = named("C2_patched", CIFAR_SHAPE)
    assert patched.rows == ((INF, 0.3), (2.0, 10.0), (0.0, 0.24))
    assert patched.scaled
    assert patched.patch == (0.5, 1.0)


def test_sets_of_the_first_version():
    """Four noises, and no noise with 18 others; impulses of both kinds in one set."""
    small, large = (named(f"v1/{name}", CIFAR_SHAPE) for name in ("C1", "C2"))
    assert small.rows == ((INF, 0.02), (2.0, 1.0), (0.0, 0.01), (0.0, 0.03))
    assert small.binary == (False, False, True, False)
    assert len(large.rows) == len(large.binary) == 19
    assert {p for p, _ in large.rows} == {0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0, INF}
    impulses = zip(large.rows[-5:], large.binary[-5:], strict=True)
    assert [(eps, binary) for (_, eps), binary in impulses] == [
        (0.01, True), (0.02, True), (0.02, False), (0.03, False), (0.06, False),
    ]  # fmt: skip
    assert not any(large.binary[:-5])
    scaled = named("v1/C2", (1, 8, 8))
    assert scaled.binary == large.binary
    assert scaled.rows[0] == (INF, 0.0)
    assert rms(*scaled.rows[8], 64) == pytest.approx(rms(*large.rows[8], D))


def test_each_row_has_its_own_kind_of_impulse():
    gray = torch.full((2, 1000), 0.5)
    flags = torch.tensor([True, False])
    noisy = lp_noise(gray, 0.0, 0.3, generator=generator(), binary=flags)
    assert set(noisy[0].unique().tolist()) == {0.0, 0.5, 1.0}
    assert len(noisy[1].unique()) > 200
    mixed = lp_noise(gray, torch.tensor([2.0, 0.0]), 0.3, generator=generator(), binary=~flags)
    assert set(mixed[1].unique().tolist()) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 224, 224)])
def test_scaling_keeps_the_size_of_an_entry(shape):
    own = CIFAR_SHAPE if shape[1] < 32 else TINY_SHAPE
    for (p, eps), (_, old) in zip(named("C1", shape).rows, named("C1", own).rows, strict=True):
        if p == 0:
            assert eps == old
        else:
            expected = rms(p, old, math.prod(own))
            assert rms(p, eps, math.prod(shape)) == pytest.approx(expected, rel=1e-9)


def test_norm_transfer_of_the_authors_experiment():
    same = {0.5: 248_692, 1.0: 156.8, 10.0: 0.2282, 50.0: 0.1371, INF: 0.1250}
    for p, eps in same.items():
        assert eps_of(p, rms(2.0, 4.0, D), D) == pytest.approx(eps, rel=1e-3)


@pytest.mark.parametrize(
    ("p", "ratio"),
    [(0.5, 0.66), (1, 1.0), (2, 1.0), (5, 0.69), (10, 0.47), (50, 0.32), (200, 0.29)],
)
def test_the_first_versions_sampler_is_smaller_than_a_uniform_law_for_most_p(p, ratio):
    """Ratios of the root mean square of an entry for d = 3072, from the specification's table."""
    images, draw = torch.full((40, 3072), 0.5, dtype=torch.float64), torch.Generator()
    eps = eps_of(float(p), 0.02, 3072)
    found = {
        law: (lp_noise(images, p, eps, generator=draw.manual_seed(0), law=law) - 0.5)
        for law in ("laplace", "uniform")
    }
    sizes = {law: float(noise.square().mean().sqrt()) for law, noise in found.items()}
    assert sizes["laplace"] / sizes["uniform"] == pytest.approx(ratio, abs=0.015)
    norms = found["laplace"].abs().pow(p).sum(1).pow(1 / p)
    assert (norms <= eps * (1 + 1e-9)).all()
    assert norms.min() > 0.99 * eps, "in high dimension a ball is its sphere"


def test_the_first_versions_sampler_differs_for_finite_p_alone():
    images = torch.rand(4, 50, generator=torch.Generator().manual_seed(0))
    orders = torch.tensor([0.0, math.inf, 2.0, 1.0])
    radii = torch.tensor([0.2, 0.1, 0.3, 0.4])
    noisy = lp_noise(images, orders, radii, generator=torch.Generator().manual_seed(1),
                     law="laplace", sphere=True)  # fmt: skip
    moved = (noisy - images).abs()
    assert int((moved[0] > 0).sum()) <= 10
    assert moved[1].max() <= 0.1 + 1e-6
    assert float(moved[3].sum()) <= 0.4 + 1e-5

"""Random Lp noise in training: the resulting batches, and errors in the configuration."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raybust.config import compose, from_dict, leaves_of, leaves_of_arguments, read_yaml, to_dict
from raybust.errors import RequestError
from raybust.methods import StepContext, get
from raybust.methods.gaussian import Gaussian
from raybust.methods.lp_noise import LpNoise, jensen_shannon
from raybust.methods.standard import Standard
from raybust.numerics.balls import lp_noise
from raybust.numerics.lp_sets import CIFAR_SHAPE, named, rms

D = 3072


class Seen(nn.Module):
    """Records the images it receives."""

    def __init__(self, classes=10):
        super().__init__()
        self.layer = nn.Linear(1, classes)
        self.images = []

    def forward(self, images):
        self.images.append(images.detach())
        return self.layer(images.mean((1, 2, 3))[:, None])


def context(seed=0):
    return StepContext(torch.Generator().manual_seed(seed))


def gray(count=64):
    return torch.full((count, *CIFAR_SHAPE), 0.5), torch.arange(count) % 10


def composed(*arguments):
    return compose(leaves_of_arguments(["method.name=lp_noise", *arguments]), get).method


def step(method, images, labels, seed=0):
    """Returns the network, which recorded the base's input, and the loss."""
    network, given = Seen(), context(seed)
    given.prepared = method.setup(network, images, labels)
    network.images.clear()
    return network, method.loss(network, images, labels, given)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 200.0, math.inf])
def test_one_norm_has_the_size_that_was_asked_for(p):
    images, _ = gray(200)
    noise = LpNoise(noises="one", p=p, rms=0.02).corrupt(images, context()) - images
    assert float(noise.square().mean().sqrt()) == pytest.approx(0.02, rel=0.03)


def test_impulses_have_the_size_that_was_asked_for():
    images, _ = gray(4)
    noisy = LpNoise(noises="one", p=0.0, rms=0.1).corrupt(images, context())
    assert ((noisy != images).sum((1, 2, 3)) == round(0.04 * D)).all()
    assert set(noisy.unique().tolist()) == {0.0, 0.5, 1.0}
    mixture = LpNoise(noises="rows", rows=((0.0, 0.1),), impulse="uniform")
    assert len(mixture.corrupt(images, context()).unique()) > 100


def test_each_image_draws_its_own_row_with_equal_chances():
    images, _ = gray(3000)
    rows = ((math.inf, 0.01), (math.inf, 0.02), (math.inf, 0.04))
    noise = LpNoise(noises="rows", rows=rows, sphere=True).corrupt(images, context()) - images
    size = noise.abs().amax((1, 2, 3))
    for _, eps in rows:
        share = ((size - eps).abs() < 1e-6).double().mean()
        assert abs(share - 1 / 3) < 4 * math.sqrt(2 / 9 / 3000)
    assert abs(float(torch.corrcoef(noise[:2].flatten(1))[0, 1])) < 5 / math.sqrt(D)


def test_ranks_and_steps_differ_and_seeds_agree():
    images, labels = gray(4)
    network, _ = step(LpNoise(), images, labels, seed=1)
    again, _ = step(LpNoise(), images, labels, seed=1)
    other, _ = step(LpNoise(), images, labels, seed=2)
    assert torch.equal(network.images[0], again.images[0])
    assert not torch.equal(network.images[0], other.images[0])


def test_a_share_of_the_images_stays_clean():
    images, _ = gray(500)
    noisy = LpNoise(noises="one", p=2.0, eps=1.0, clean=0.3).corrupt(images, context())
    share = (noisy == images).flatten(1).all(1).double().mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.21 / 500)
    assert torch.equal(LpNoise(clean=1.0).corrupt(images, context()), images)


def test_patched_sets_scale_eps_and_keep_to_a_square():
    method = LpNoise(noises="C1_patched")
    chosen = method.noise_set(CIFAR_SHAPE)
    assert chosen.scaled
    assert chosen.patch == (0.5, 1.0)
    images, _ = gray(300)
    changed = (method.corrupt(images, context()) != images).any(1).flatten(1).double().mean(1)
    assert changed.min() < 0.5 < changed.max()
    assert LpNoise(patch="small").noise_set(CIFAR_SHAPE).patch == (0.2, 0.7)
    assert LpNoise(noises="C1_patched", patch="none").noise_set(CIFAR_SHAPE).patch is None
    assert LpNoise(scaled=True).noise_set(CIFAR_SHAPE).scaled


def test_sets_follow_the_size_of_the_images():
    assert LpNoise(noises="C3").noise_set((1, 8, 8)) == named("C3", (1, 8, 8))
    p, eps = LpNoise(noises="C1").noise_set((1, 8, 8)).rows[12]
    assert rms(p, eps, 64) == pytest.approx(rms(0.5, 75e3, D))


def test_noise_is_clamped_and_comes_before_the_base():
    images = torch.zeros(8, *CIFAR_SHAPE)
    labels = torch.arange(8)
    plain, _ = step(LpNoise(noises="one", p=math.inf, eps=0.3), images, labels)
    assert plain.images[0].min() == 0
    smoothed, _ = step(
        LpNoise(noises="one", p=math.inf, eps=0.3, base=Gaussian(sigma=0.5)), images, labels
    )
    assert smoothed.images[0].min() < -1  # smoothing noise comes last and is not clamped
    assert LpNoise(base=Gaussian(sigma=0.5)).noise() == 0.5
    assert LpNoise().noise() is None
    assert LpNoise().front() is None


def test_the_base_gets_what_it_prepared():
    class Preparing(Standard):
        def setup(self, network, images, targets):
            return "mine"

        def loss(self, network, images, targets, context):
            assert context.prepared == "mine"
            context.metrics["base"] = 1.0
            return super().loss(network, images, targets, context)

    images, labels = gray(4)
    method, given = LpNoise(base=Preparing()), context()
    given.prepared = method.setup(Seen(), images, labels)
    method.loss(Seen(), images, labels, given)
    assert given.metrics == {"base": 1.0}


def test_images_that_look_normalized_are_pointed_out():
    images, labels = gray(4)
    with pytest.warns(UserWarning, match="look normalized"):
        LpNoise().setup(Seen(), images - 1, labels)


@pytest.mark.parametrize("augment", ["trivial", "rand", "augmix"])
def test_each_image_has_its_own_augmentation(augment):
    image = torch.rand(1, *CIFAR_SHAPE, generator=torch.Generator().manual_seed(0))
    images = image.expand(16, -1, -1, -1)
    method = LpNoise(augment=augment, clean=1.0)
    network, _ = step(method, images, torch.arange(16) % 10)
    seen = network.images[0]
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert len(seen.flatten(1).unique(dim=0)) > 8
    again, _ = step(method, images, torch.arange(16) % 10)
    assert torch.equal(seen, again.images[0])
    before = torch.get_rng_state()  # torchvision's global source of randomness
    method.loss(network, images, torch.arange(16) % 10, context())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mix", ["mixup", "cutmix", "both"])
@pytest.mark.parametrize("soft", [False, True])
def test_mixing_mixes_images_and_targets(mix, soft):
    images = torch.arange(10.0)[:, None, None, None].expand(10, *CIFAR_SHAPE) / 10
    labels = torch.arange(10)
    targets = F.one_hot(labels, 10).float() if soft else labels

    class Targets(Standard):
        def loss(self, network, images, targets, context):
            context.metrics["images"], context.metrics["targets"] = images, targets
            return super().loss(network, images, targets, context)

    method = LpNoise(mix=mix, clean=1.0, mixup_alpha=1.0, base=Targets())
    given, network = context(3), Seen()
    given.prepared = method.setup(network, images, targets)
    assert network.training
    method.loss(network, images, targets, given)
    mixed = given.metrics["targets"]
    assert mixed.shape == (10, 10)
    assert torch.allclose(mixed.sum(1), torch.ones(10))
    expected = mixed @ (torch.arange(10.0) / 10)  # an image's mean is its targets'
    assert torch.allclose(given.metrics["images"].mean((1, 2, 3)), expected, atol=1e-5)
    assert not torch.equal(given.metrics["images"], images)


def test_jensen_shannon_closed_forms():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(jensen_shannon(logits.repeat(3, 1), 3)) == pytest.approx(0.0, abs=1e-9)
    apart = torch.eye(3, dtype=torch.float64)[:, None] * 200  # three views, one image
    assert float(jensen_shannon(apart.view(3, 3), 3)) == pytest.approx(math.log(3))


def test_consistency_keeps_the_base_on_clean_images():
    images, labels = gray(6)
    method = LpNoise(jsd=12.0, noises="one", p=2.0, eps=2.0)
    network, _ = step(method, images, labels)
    views, clean = network.images
    assert torch.equal(clean, images)
    assert torch.equal(views[:6], images)
    assert not torch.equal(views[6:12], views[12:])


def test_rows_survive_yaml_the_command_line_and_json(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "method: {name: lp_noise, noises: rows, rows: [[.inf, 0.02], [0, 0.01]], scaled: true}\n"
    )
    of_file = compose(leaves_of(read_yaml(path), "file"), get)
    of_line = composed(
        "method.noises=rows", "method.rows=[[.inf,0.02],[0,0.01]]", "method.scaled=true"
    )
    assert of_file.method == of_line
    assert of_line.rows == ((math.inf, 0.02), (0.0, 0.01))
    assert of_line.scaled is True  # the authors' flag became the text 'True'
    again = from_dict(json.loads(json.dumps(to_dict(of_file))), get)
    assert again.method.noise_set(CIFAR_SHAPE) == of_line.noise_set(CIFAR_SHAPE)
    assert composed("method.p=.inf", "method.base.name=gaussian").base == Gaussian()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.eps=-1"], "method.eps: got -1.0, expected >= 0"),
        (["method.p=.nan"], "method.p: got nan, expected a number"),
        (["method.p=-2"], "method.p: got -2.0"),
        (
            ["method.noises=one", "method.p=0", "method.eps=3"],
            "method.eps: got 3.0, expected a share in [0, 1], because p is 0",
        ),
        (["method.noises=rows"], "method.rows: got none"),
        (["method.noises=rows", "method.rows=[[2,1],[0,4]]"], "got eps = 4.0 in row 2"),
        (["method.rows=[[.nan,1]]"], "method.rows: got p = nan in row 1"),
        (["method.rows=[[2,.inf]]"], "method.rows: got eps = inf in row 1"),
        (["method.rows=[[2]]"], "method.rows: got [[2]]"),
        (["method.rows=[[0,true]]"], "method.rows: got [[0, True]]"),
        (["method.noises=C4"], "method.noises: got 'C4'"),
        (
            ["method.noises=v1/C1", "method.concurrent=5"],
            "method.concurrent: got 5, expected at most 4, the number of noises in v1/C1",
        ),
        (["method.jsd=12", "method.mix=mixup"], "method.jsd: needs views of the same image"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(RequestError) as refused:
        composed(*arguments)
    assert message in str(refused.value)


def test_concurrent_noises_come_one_after_the_other():
    """Two draws of the same generator in turn; the second sees the first's result, clipped."""
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    rows = ((math.inf, 0.4), (math.inf, 0.4))
    found = LpNoise(noises="rows", rows=rows, concurrent=2).corrupt(images, context(3))
    generator = torch.Generator().manual_seed(3)
    torch.rand(6, 2, generator=generator)  # the order of the noises
    for _ in range(2):
        images = lp_noise(images, math.inf, 0.4, generator=generator)
    assert torch.equal(found, images)


def test_concurrent_noises_differ():
    """As in the first version's code: an image never gets one noise of the set twice."""
    images, _ = gray(300)
    rows = ((math.inf, 0.01), (math.inf, 0.02), (math.inf, 0.04))
    method = LpNoise(noises="rows", rows=rows, sphere=True, concurrent=2)
    size = (method.corrupt(images, context()) - images).abs().amax((1, 2, 3))
    shares = {
        total: float(((size - total).abs() < 1e-6).double().mean()) for total in (0.03, 0.05, 0.06)
    }
    assert sum(shares.values()) == 1
    assert all(abs(share - 1 / 3) < 4 * math.sqrt(2 / 9 / 300) for share in shares.values())


def test_sets_of_the_first_version_mix_impulses_of_both_kinds():
    images, _ = gray(400)
    method = LpNoise(noises="v1/C1", law="laplace")
    noisy = method.corrupt(images, context())
    changed = (noisy != images).sum((1, 2, 3))
    binary, uniform = changed == round(0.01 * D), changed == round(0.03 * D)
    for kind in (binary, uniform):
        assert abs(kind.double().mean() - 0.25) < 4 * math.sqrt(3 / 16 / 400)
    assert set(noisy[binary].unique().tolist()) == {0.0, 0.5, 1.0}
    assert len(noisy[uniform].unique()) > 1000
    forced = dataclasses.replace(method, impulse="uniform").corrupt(images, context())
    assert len(forced[binary].unique()) > 1000

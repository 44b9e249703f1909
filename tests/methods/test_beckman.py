"""The Beckmann barycenter in front of a network: output, visibility to attacks, initial weights.

Numbers in names refer to the tests in the specification (spec/adversarial.md, section 5).
"""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from raybust import methods
from raybust.config import compose, leaves_of_arguments
from raybust.data import load
from raybust.disk import checkpoint
from raybust.errors import RequestError
from raybust.methods import StepContext
from raybust.methods.beckman import Barycentric, Beckman
from raybust.methods.gaussian import Gaussian
from raybust.methods.pgd import Pgd
from raybust.methods.trades import Trades
from raybust.numerics.attacks import pgd
from raybust.numerics.balls import Threat
from raybust.numerics.barycenter import rotations
from raybust.training.fit import fit
from raybust.training.loop import Trainer
from raybust.vision import transforms

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10-subset.npz"
CPU = torch.device("cpu")
SMALL = ("data.limit=200", "train.epochs=1", "train.batch_size=50", "model.width=4",
         "certified_fast.every=0", "certified_fast.examples=2", "certified_fast.n=100")  # fmt: skip


def make(*settings):
    return compose(leaves_of_arguments([*SMALL, *settings]), methods.get)


@pytest.fixture
def images():
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_at_the_published_constants_it_is_the_closed_form(images):
    front = Beckman().front()
    copies = rotations(images, 2, 4.0)
    mean = (copies[0] + copies[1]) / 2
    expected = torch.minimum(mean - 0.1, torch.minimum(*copies)).clamp(0, 1)
    torch.testing.assert_close(front(images), expected, atol=1e-6, rtol=0)


def test_the_released_copies_are_identical():
    """The release overwrites its second copy with the first: what it returns, by its iteration."""
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) ** 2
    copy = rotations(images, 1, 4.0)[0]
    assert (copy != images).any()
    released = Beckman(spread=False).front()(images)
    torch.testing.assert_close(released, (copy - 0.1).clamp(min=0), atol=1e-6, rtol=0)
    torch.testing.assert_close(released, Beckman(views=1, theta=0.05).front()(images))
    torch.testing.assert_close(released, as_released(copy, copy), atol=1e-3, rtol=0)
    two = Beckman().front()(images)
    torch.testing.assert_close(two, as_released(*rotations(images, 2, 4.0)), atol=0.02, rtol=0)
    assert (two - released).abs().mean() > 0.02


@pytest.mark.skipif(not CIFAR.exists(), reason="no CIFAR-10 beside the checkout")
def test_the_released_copies_on_cifar():
    """Mean differences a pixel to the released rule, whose copies torchvision rotates."""
    with np.load(CIFAR) as archive:
        pixels = torch.from_numpy(archive["x_test"][:64].transpose(0, 3, 1, 2) / 255).float()
    copy = transforms().functional.rotate(pixels, 4.0)
    released = as_released(copy, copy)
    same, two = (Beckman(spread=spread).front()(pixels) for spread in (False, True))
    assert float((same - released).abs().mean()) < 5e-4
    assert float((two - released).abs().mean()) == pytest.approx(0.045, abs=0.005)


def as_released(*measures):
    """Returns q after the 200 iterations of the released code, without flow, which stays zero:
    steps 0.1 and 1, rho 0.5, mu 0.1, theta 0.1."""
    p = torch.stack(measures)
    x, source, dual, q = p, torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(p[0])
    violation = x - q - source
    for _ in range(200):
        x = ((0.05 * p + x - 0.1 * dual) / 1.05).clamp(min=0)
        source = F.softshrink(source + 0.1 * dual, 0.01)
        q = F.softshrink(q + 0.1 * dual.sum(0), 0.01).clamp(0, 1)
        new = x - q - source
        dual, violation = dual + 2 * new - violation, new
    return q


def test_16_weight_blends(images):
    whole, half = Beckman().front()(images), Beckman(weight=0.5).front()(images)
    torch.testing.assert_close(half, (images + whole) / 2)
    assert torch.equal(Beckman(weight=0).front()(images), images)


def test_who_sees_the_transform(images):
    front = Beckman().front().eval()
    whole = front(images)
    with front.attacked_by("oblivious"):
        front.eval()
        assert torch.equal(front(images), images)
    with front.attacked_by("bpda"):
        front.eval()
        seen = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(front(seen).sum(), seen)
        assert torch.equal(gradient, torch.ones_like(images))
        torch.testing.assert_close(front(images), whole)
    assert torch.equal(front.eval()(images), whole)


def test_it_starts_from_a_run_and_refuses_others(tmp_path):
    base = make("method.name=pgd", "method.steps=1")
    dataset = load(base.data)
    (end,) = fit(base, dataset, CPU)
    checkpoint.commit(tmp_path / "run", checkpoint.folder_name(1), end.save, 1)
    tuned = make("method.name=beckman", f"train.init={tmp_path / 'run'}")
    trainer = Trainer(tuned, dataset, CPU)
    stored = checkpoint.read_weights(checkpoint.newest(tmp_path / "run"))
    own = trainer.network.state_dict()
    assert any(isinstance(module, Barycentric) for module in trainer.network.modules())
    for key, value in stored.items():
        (match,) = [name for name in own if name == key or name == f"network.{key}"]
        assert torch.equal(own[match], value), key
    (tmp_path / "empty").mkdir()
    for wrong, message in (
        (("model.name=resnet20",), "is a small_cnn, expected a resnet20"),
        (("model.width=8",), "init: .*not the weights of this network.* of another shape"),
        (("train.init=nowhere",), "got 'nowhere'"),
        ((f"train.init={tmp_path / 'empty'}",), "has no checkpoint"),
    ):
        config = make("method.name=beckman", f"train.init={tmp_path / 'run'}", *wrong)
        with pytest.raises(RequestError, match=message):
            Trainer(config, dataset, CPU)


def test_a_price_that_makes_everything_black_is_refused():
    with pytest.raises(RequestError, match="theta"):
        Beckman(theta=0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": 0}, "views: got 0"),
        ({"rho": 0.0}, "rho: got 0"),
        ({"mu": -0.1}, "mu: got -0.1"),
        ({"theta": -0.1}, "theta: got -0.1"),
        ({"weight": 1.1}, "weight: got 1.1"),
        ({"attack": "white"}, "attack: got 'white'"),
    ],
)
def test_bad_settings_name_their_field(settings, message):
    with pytest.raises(RequestError, match=message):
        Beckman(**settings)


def test_an_init_of_other_classes_or_a_wrapper_around_it(tmp_path):
    config = make("method.name=standard")
    dataset = load(config.data)
    (end,) = fit(config, dataset, CPU)
    folder = checkpoint.commit(tmp_path / "run", checkpoint.folder_name(1), end.save, 1)
    fewer = replace(dataset, classes=dataset.classes[:5])
    inside = f"train.init={folder}"
    wrapped = make("method.name=lp_noise", "method.base.name=beckman", inside)
    stored = checkpoint.read_weights(folder)
    for classes in (fewer, replace(dataset, classes=(*dataset.classes[:9], "ten"))):
        inner = Trainer(wrapped, classes, CPU).network.state_dict()
        inner = {key.removeprefix("network."): value for key, value in inner.items()}
        new = [k for k in stored if not torch.equal(inner[k], stored[k])]
        assert len(new) == 2, "weight and bias of the last layer"
        assert inner[new[0]].shape[0] == len(classes.classes)
    network = Trainer(make("method.name=beckman", f"train.init={folder}/model.safetensors"),
                      dataset, CPU).network  # fmt: skip
    stored = checkpoint.read_weights(folder)
    assert all(torch.equal(network.state_dict()[f"network.{k}"], v) for k, v in stored.items())
    behind = Trainer(make("method.name=beckman"), dataset, CPU).network  # front and all
    save_file(
        {key: value.contiguous() for key, value in behind.state_dict().items()},
        tmp_path / "whole.safetensors",
    )
    config = make("method.name=beckman", f"train.init={tmp_path / 'whole.safetensors'}")
    again = Trainer(config, dataset, CPU).network.state_dict()
    assert all(torch.equal(again[key], value) for key, value in behind.state_dict().items())


class Noting(nn.Module):
    """A linear network that records its inputs and whether they come from an attack."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 4)
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(0))
        self.seen = []

    def forward(self, images):
        self.seen.append((images.detach(), not self.training))
        return self.layer(images.flatten(1))


@pytest.mark.parametrize("base", [Pgd(eps=0.05, steps=3, start="center"), Trades(steps=3)])
@pytest.mark.parametrize("train", [True, False])
def test_what_the_attack_of_training_sees(images, base, train):
    """Oblivious: the attack sees unmodified images, the loss the transform; else both see it."""
    for attack in ("oblivious", "adaptive", "bpda"):
        method, probe = Beckman(base=base, attack=attack), Noting()
        network = nn.Sequential(method.front(), probe).train(train)
        context = StepContext(torch.Generator().manual_seed(0), 0.5)
        method.loss(network, images, torch.arange(5) % 4, context).backward()
        assert all(module.training is train for module in network.modules())
        assert network[0].attack == "adaptive"
        first, last = probe.seen[0][0], probe.seen[-1][0]
        expected = images if attack == "oblivious" else method.front()(images)
        torch.testing.assert_close(
            first, expected, atol=2e-3 if base.key == "trades" else 0, rtol=0
        )
        dark = (images - last).mean()
        assert dark > 0.08, "without the transform the loss sees at most eps = 0.05"


def test_the_base_keeps_its_noise():
    assert Beckman(base=Gaussian(sigma=0.5)).noise() == 0.5
    images = torch.full((4, 1, 8, 8), 0.5)
    assert Beckman().front()(3 * images).max() <= 1, "measures are clipped to [0, 1]"


def test_17_the_oblivious_accuracy_is_not_below_the_adaptive_one():
    """Forty steps of full-batch training on digits, behind the transform."""
    dataset = load(make("method.name=standard").data)
    images, labels = dataset.train.fetch(torch.arange(200))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    front = Beckman().front()
    whole = nn.Sequential(OrderedDict(front=front, network=bare))
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.03)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(whole(images), labels).backward()
        optimizer.step()
    whole.eval()

    def correct(network, points):
        return float((network(points).argmax(1) == labels).double().mean())

    def attack(network):
        source, threat = torch.Generator().manual_seed(1), Threat("linf", 0.1)
        return pgd(network, images, labels, threat, source, steps=20).images

    oblivious, adaptive = correct(whole, attack(bare)), correct(whole, attack(whole))
    assert correct(whole, images) > 0.9
    assert oblivious >= adaptive - 0.01
    assert oblivious > adaptive + 0.1, "the two protocols do not differ: nothing was tested"

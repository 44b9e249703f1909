"""The Beckmann barycenter in front of a network: what it computes, who sees it, where it starts."""

import pytest
import torch

from raybust import checkpoint, methods
from raybust.config import compose, leaves_of_arguments
from raybust.data import load
from raybust.errors import RequestError
from raybust.methods.beckman import Barycentric, Beckman
from raybust.numerics.barycenter import rotations
from raybust.train import Trainer, fit

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
    views = rotations(images, 2, 4.0)
    copies = [views[:, 0], views[:, 1]] if views.shape[0] == 5 else [views[0], views[1]]
    mean = (copies[0] + copies[1]) / 2
    expected = torch.minimum(mean - 0.1, torch.minimum(*copies)).clamp(0, 1)
    torch.testing.assert_close(front(images), expected, atol=1e-6, rtol=0)


def test_weight_blends(images):
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
    tuned = make("method.name=beckman", f"method.init={tmp_path / 'run'}")
    trainer = Trainer(tuned, dataset, CPU)
    stored = checkpoint.read_weights(checkpoint.newest(tmp_path / "run"))
    own = trainer.network.state_dict()
    assert any(isinstance(module, Barycentric) for module in trainer.network.modules())
    for key, value in stored.items():
        (match,) = [name for name in own if name == key or name == f"network.{key}"]
        assert torch.equal(own[match], value), key
    for wrong, message in (
        (("model.name=resnet20",), "expected a resnet20"),
        (("method.init=nowhere",), "got 'nowhere'"),
    ):
        config = make("method.name=beckman", f"method.init={tmp_path / 'run'}", *wrong)
        with pytest.raises(RequestError, match=message):
            Trainer(config, dataset, CPU)


def test_a_price_that_makes_everything_black_is_refused():
    with pytest.raises(RequestError, match="theta"):
        Beckman(theta=0.3)

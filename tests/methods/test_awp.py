"""Adversarial weight perturbation by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_pgd import Watcher
from torch import nn

from raybust.errors import RequestError
from raybust.methods import StepContext
from raybust.methods.awp import Awp, perturbation
from raybust.methods.gaussian import Gaussian
from raybust.methods.lp_noise import LpNoise
from raybust.methods.mixup import Mixup
from raybust.methods.pgd import Pgd
from raybust.methods.sabr import Sabr
from raybust.methods.standard import Standard
from raybust.methods.trades import Trades


class Small(nn.Module):
    """Convolution, batch norm, dropout, linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(16, 3)

    def forward(self, images):
        return self.head(self.drop(self.norm(self.conv(images)).relu()).flatten(1))


IMAGES = torch.rand(32, 3, 2, 2, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(32) % 3


def step(method, network=None, progress=0.5):
    """A step; returns the network with its gradients, and the loss."""
    network = Small() if network is None else network
    torch.manual_seed(5)  # dropout
    context = StepContext(torch.Generator().manual_seed(0), progress)
    loss = method.loss(network, IMAGES, LABELS, context)
    loss.backward()
    return network, loss.detach(), context


@pytest.mark.parametrize("base", [Pgd(eps=0.1), Trades(eps=0.1, steps=2), Gaussian(), Standard()])
@pytest.mark.parametrize("settings", [{"gamma": 0.0}, {"after": 0.6}])
def test_without_a_perturbation_it_is_its_base_bit_for_bit(base, settings):
    mine, loss, context = step(Awp(base=base, **settings))
    plain, expected, other = step(base)
    assert torch.equal(loss, expected)
    assert context.metrics == other.metrics
    for (name, p), q in zip(mine.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    assert all(map(torch.equal, mine.buffers(), plain.buffers()))
    assert torch.equal(context.generator.get_state(), other.generator.get_state())


def test_the_perturbation_has_gamma_times_the_norm_of_the_weights():
    network = Small()
    loss = F.cross_entropy(network(IMAGES), LABELS)
    named = dict(network.named_parameters())
    gradients = dict(zip(named, torch.autograd.grad(loss, named.values(), retain_graph=True),
                         strict=True))  # fmt: skip
    found = perturbation(network, loss, 0.01)
    assert set(found) == {"conv.weight", "head.weight"}
    for name, shift in found.items():
        assert float(shift.norm()) == pytest.approx(0.01 * float(named[name].detach().norm()))
        cosine = F.cosine_similarity(shift.flatten(), gradients[name].flatten(), dim=0)
        assert float(cosine) == pytest.approx(1.0, abs=1e-5)


def test_on_a_quadratic_loss_the_rise_is_gamma_times_both_norms_to_first_order():
    layer = nn.Linear(3, 2, bias=False).double()
    inputs = torch.randn(5, 3, dtype=torch.float64)

    def quadratic(weight):
        return (inputs @ weight.T).square().sum()

    loss = quadratic(layer.weight)
    gradient = torch.autograd.grad(loss, layer.weight, retain_graph=True)[0]
    for gamma in (1e-3, 1e-4):
        shift = perturbation(layer, loss_of(layer, quadratic), gamma)["weight"]
        rise = quadratic(layer.weight + shift) - loss
        first = gamma * layer.weight.norm() * gradient.norm()
        assert float((rise / first).detach()) == pytest.approx(1.0, abs=20 * gamma)


def loss_of(layer, function):
    return function(layer.weight)


@pytest.mark.parametrize("base", [Pgd(eps=0.1, steps=3), Trades(eps=0.1, steps=2)])
def test_the_gradient_is_that_at_the_perturbed_weights(base):
    """The authors' way: attack at w, move the weights, take the gradient, put the weights back."""
    mine, loss, _ = step(Awp(base=base, gamma=0.05))
    network = Small()
    torch.manual_seed(5)
    other = StepContext(torch.Generator().manual_seed(0), 0.5)
    found = base.find(network, IMAGES, LABELS, other)
    extra = copy.deepcopy(network)
    state = torch.get_rng_state()
    first = base.loss_at(extra, IMAGES, LABELS, other, found)
    named = {name: p for name, p in extra.named_parameters() if p.ndim > 1}
    gradients = torch.autograd.grad(first, list(named.values()))
    with torch.no_grad():
        for (name, weight), g in zip(named.items(), gradients, strict=True):
            shift = 0.05 * weight.norm() * g / g.norm()
            dict(network.named_parameters())[name].add_(shift)
    torch.set_rng_state(state)
    expected = base.loss_at(network, IMAGES, LABELS, other, found)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-6)
    for (name, p), q in zip(mine.named_parameters(), network.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q[1].grad, rtol=1e-4, atol=1e-6, msg=name)
    for p, q in zip(mine.parameters(), Small().parameters(), strict=True):
        assert torch.equal(p, q)  # the weights are back
    for mine_one, theirs in zip(mine.buffers(), network.buffers(), strict=True):
        torch.testing.assert_close(mine_one, theirs)  # the extra pass moved no statistics


def test_the_loss_rises():
    plain, perturbed = (step(Awp(base=Pgd(eps=0.1), gamma=g), Watcher())[1] for g in (0.0, 0.1))
    assert perturbed > plain


def test_inside_of_other_wrappers_it_is_the_base():
    assert step(Awp(base=Gaussian(sigma=0.1), gamma=0.01))[1].isfinite()
    assert LpNoise(base=Awp()).wrapped.key == "awp"


@pytest.mark.parametrize(
    ("base", "words"), [(Sabr(), "got sabr"), (Mixup(base=Pgd()), "put awp inside of mixup")]
)
def test_an_attack_that_cannot_be_separated_is_refused(base, words):
    with pytest.raises(RequestError, match=words):
        Awp(base=base)

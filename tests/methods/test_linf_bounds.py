"""The methods `ibp`, `crown_ibp`, `mtl_ibp` and `sabr`, and the certificate of each epoch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raybust import methods
from raybust.config import compose, leaves_of_arguments
from raybust.data import load
from raybust.errors import RequestError
from raybust.methods import StepContext
from raybust.methods.crown_ibp import CrownIbp
from raybust.methods.ibp import Ibp, regularizers
from raybust.methods.mtl_ibp import MtlIbp
from raybust.methods.pgd import Pgd
from raybust.methods.sabr import Sabr
from raybust.models import cifar
from raybust.numerics.attacks import ascend, attacked
from raybust.numerics.balls import Threat
from raybust.numerics.relaxation import (
    Setting,
    ball,
    certified_margin,
    enclose,
    margins,
    rectified,
    trace,
)
from raybust.training.fit import fit
from raybust.training.loop import Trainer
from raybust.training.objective import CountedNetwork

CPU = torch.device("cpu")
ALL = (Ibp, CrownIbp, MtlIbp, Sabr)
IMAGES = torch.rand(8, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 4


def network_for(kind="batch norm"):
    torch.manual_seed(0)
    if kind == "batch norm":
        network = cifar.PreActResNet(1, 4, stem=4, widths=(4, 8), blocks=1)
    else:
        network = cifar.small_cnn((1, 8, 8), 4, 2)
    return network.double().train()


def step(method, network, progress=0.5, images=IMAGES):
    counted = CountedNetwork(network)
    prepared = method.setup(network, images, LABELS)
    context = StepContext(torch.Generator().manual_seed(0), progress, prepared)
    return method.loss(counted, images, LABELS, context), counted, context


def value(*arguments):
    return float(step(*arguments)[0].detach())


@pytest.mark.parametrize("kind", ["batch norm", "plain"])
@pytest.mark.parametrize("cls", ALL)
def test_without_a_radius_it_is_cross_entropy(cls, kind):
    """At the start of training, and batch norm moves as in a plain step."""
    network, other = network_for(kind), network_for(kind)
    loss = step(cls(regularizer=0.0), network, progress=0.0)[0]
    expected = F.cross_entropy(other(IMAGES), LABELS)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for a, b in zip(network.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    ours = torch.autograd.grad(loss, list(network.parameters()))
    theirs = torch.autograd.grad(expected, list(other.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_mtl_ibp_without_bounds_is_pgd():
    given = {"eps": 0.1, "steps": 3, "warmup": 0.4}
    for progress in (0.1, 0.9):
        ours = step(MtlIbp(alpha=0.0, **given), network_for(), progress)
        context = StepContext(torch.Generator().manual_seed(0), progress, None)
        counted = CountedNetwork(network_for())
        theirs = Pgd(**given).loss(counted, IMAGES, LABELS, context)
        assert ours[0] == theirs
        assert ours[1].forward_passes == counted.forward_passes


def test_mtl_ibp_is_a_mixture():
    """Linear in alpha between the attack's loss and that of the bounds, and the bounds' is never
    the smaller: the attack stays in the ball."""
    values = [
        value(MtlIbp(alpha=a, eps=0.02, regularizer=0.0), network_for(), 0.8)
        for a in (0.0, 0.3, 1.0)
    ]
    assert values[1] == pytest.approx(0.7 * values[0] + 0.3 * values[2], rel=1e-12)
    assert values[0] < values[2]
    alone = value(Ibp(eps=0.02, regularizer=0.0), network_for("plain"), 0.8)
    whole = value(MtlIbp(alpha=1.0, eps=0.02, regularizer=0.0), network_for("plain"), 0.8)
    assert whole == pytest.approx(alone, rel=1e-12)


def test_radius_of_the_attack():
    method = MtlIbp(eps=0.1, attack_scale=2.0, warmup=0.5, steps=4)
    threat, steps, size = method.plan(IMAGES, 0.25)
    assert (threat.eps, steps, size) == (0.1, 4, pytest.approx(2.5 * 0.1 / 4))
    assert Sabr(eps=0.1, share=0.4).plan(IMAGES, 0.9)[0].eps == pytest.approx(0.06)


def test_ends_of_sabr():
    """The whole ball is `ibp`; no box is `pgd`."""
    network, eps = network_for("plain"), 0.05
    whole = step(Sabr(share=1.0, eps=eps), network, 0.3)[0]
    assert whole == step(Ibp(eps=eps), network, 0.3)[0]
    small = value(Sabr(share=1e-10, eps=eps, regularizer=0.0, steps=3), network, 0.7)
    context = StepContext(torch.Generator().manual_seed(0), 0.7, None)
    attack = Pgd(eps=eps, steps=3).loss(CountedNetwork(network), IMAGES, LABELS, context)
    assert small == pytest.approx(float(attack.detach()), rel=1e-6)
    between = value(Sabr(share=0.4, eps=eps, regularizer=0.0), network, 0.7)
    assert small < between < value(Ibp(eps=eps, regularizer=0.0), network, 0.7)


def test_ends_of_crown_ibp():
    network, eps = network_for("plain"), 0.03
    late = step(CrownIbp(eps=eps), network, 0.9)
    assert late[0] == step(Ibp(eps=eps), network, 0.9)[0]
    assert late[1].forward_passes == 3 * 8
    found, counted, _ = step(CrownIbp(eps=eps, beta=1.0, regularizer=0.0), network, 0.9)
    graph = trace(network)
    box = enclose(graph, network, ball(IMAGES, eps, Setting(widen=False)))
    low = margins(box, LABELS, "crown")
    torch.testing.assert_close(found, F.cross_entropy(-low, LABELS), rtol=1e-12, atol=0)
    assert counted.forward_passes == (3 + 4) * 8
    assert CrownIbp(warmup=0.5).mixture(0.25) == 0.5


def test_passes():
    loss, counted, context = step(Ibp(), network_for())
    loss.backward()
    assert (counted.forward_passes, counted.backward_passes) == (24, 16)
    assert 0 <= context.metrics["train/certified_accuracy"] <= 1


@pytest.mark.parametrize(
    "method",
    [
        Ibp(eps=0.05),
        CrownIbp(eps=0.05, beta=0.7),
        MtlIbp(eps=0.05, start="center"),
        Sabr(eps=0.05, start="center"),
    ],
    ids=lambda method: method.key,
)
def test_gradient_against_finite_differences(method):
    """Of the last bias, which no attack's direction depends on; without one, of a kernel."""
    network = network_for("plain")
    kernel = isinstance(method, (CrownIbp, Ibp)) and not isinstance(method, (MtlIbp, Sabr))
    for moved in (network[-1].bias, network[0].weight)[: 1 + kernel]:
        gradient = torch.autograd.grad(step(method, network, 0.3)[0], moved)[0].flatten()
        start = moved.detach().clone()
        for at in (0, 3):
            sides = []
            for size in (1e-6, -1e-6):
                with torch.no_grad():
                    moved.view(-1)[at] += size
                sides.append(value(method, network, 0.3))
                with torch.no_grad():
                    moved.copy_(start)
            difference = (sides[0] - sides[1]) / 2e-6
            assert float(gradient[at]) == pytest.approx(difference, rel=1e-3, abs=1e-6)


def test_regularizers_by_hand():
    """Three ReLUs; the formulas of Shi et al. (section 3.3), written out."""
    network = network_for("plain")[2:]
    images = torch.rand(5, 2, 8, 8, dtype=torch.float64)
    box = enclose(trace(network), network, ball(images, 0.05, Setting(widen=False)))
    start = box
    while start.sources:
        (start,) = start.sources
    total = 0.0
    inputs = rectified(box)
    assert len(inputs) == 3
    for one in inputs:
        lower, upper = one.ends
        c = (lower + upper) / 2
        total += max(0, 0.5 - float(start.radius.mean() / one.radius.mean()))
        on, off = c[lower > 0], c[upper < 0]
        ratios = (
            float(on.sum() / -off.sum()),
            float(((on - c.mean()) ** 2).sum() / ((off - c.mean()) ** 2).sum()),
        )
        total += sum(max(0, 0.5 - min(r, 1 / r)) for r in ratios)
    assert total > 0
    assert float(regularizers(box).detach()) == pytest.approx(total / 0.5 / 3, rel=1e-6)


def test_regularizers_by_default_with_batch_norm_alone():
    for kind, weight in (("plain", 0.0), ("batch norm", 0.5)):
        default = value(Ibp(eps=0.05), network_for(kind), 0.25)
        assert default == value(Ibp(eps=0.05, regularizer=weight), network_for(kind), 0.25)
        assert default != value(Ibp(eps=0.05, regularizer=0.7), network_for(kind), 0.25)


def test_regularizers_without_active_units_are_finite():
    network = network_for("plain")
    with torch.no_grad():
        network[0].bias.fill_(-100)
    loss = step(Ibp(eps=0.1, regularizer=0.5), network, 0.3)[0]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def make(*settings):
    given = ["method.name=ibp", "train.batch_size=100", "certified_fast.every=0"]
    return compose(leaves_of_arguments([*given, *settings]), methods.get)


def test_certificates_of_each_epoch():
    """All validation images count, the share is that of the bounds, never above the accuracy under
    an attack, image by image, and training raises it."""
    digits = load(make().data)
    config = make(
        "method.eps=0.1", "train.epochs=6", "model.width=4", "certified_linf_fast.every=2",
        "certified_linf_fast.eps=[0,0.02,0.05]", "certified_linf_fast.bound=best",
    )  # fmt: skip
    states = list(fit(config, digits, CPU))
    key = "certified_linf_fast/accuracy_0.05"
    assert [key in state.metrics for state in states] == [False, True, False, True, False, True]
    last, network = states[-1].metrics, states[-1].save.__self__.average
    images, labels = digits.validation.fetch(range(len(digits.validation)))
    assert last["certified_linf_fast/accuracy_0"] <= last["validation/accuracy"]
    assert last[key] <= last["certified_linf_fast/accuracy_0.02"]
    low = [certified_margin(trace(network), network, images, labels, eps=0.05, bound=bound)
           for bound in ("ibp", "crown")]  # fmt: skip
    proven = (low[0] > 0) | (low[1] > 0)
    assert last[key] >= float(proven.double().mean())
    assert proven.any()
    with attacked(network):
        found = ascend(
            network, images, Threat("linf", 0.05),
            lambda logits: F.cross_entropy(logits, labels, reduction="sum"),
            start=torch.zeros_like(images), steps=50, step=0.005,
        )  # fmt: skip
    assert (network(found).argmax(1) == labels)[proven].all()


def test_metrics_that_a_sweep_may_use():
    metric = "tune.metric=certified_linf_fast/accuracy_0.1"
    make(metric, "certified_linf_fast.every=1", "certified_linf_fast.eps=0.1")
    with pytest.raises(RequestError, match=r"certified_linf_fast.every=0\.05 measures it"):
        make(metric)
    with pytest.raises(RequestError, match="names differ"):
        make("certified_linf_fast.eps=[0.1,0.1000000001]")


def test_networks_without_bounds_are_refused_by_name():
    digits = load(make().data)
    config = make("method.name=standard", "certified_linf_fast.every=1", "train.epochs=1")
    trainer = Trainer(config, digits, CPU)
    trainer.average = nn.Sequential(trainer.network, nn.Softmax(1))
    with pytest.raises(RequestError, match=r"certified_linf_fast: layer '1' \(Softmax\)"):
        trainer.validate()


def test_the_method_draws_the_initial_weights(tmp_path):
    digits = load(make().data)
    weight = Trainer(make(), digits, CPU).network.network[4].weight
    assert float(weight.std()) == pytest.approx(math.sqrt(2 * math.pi) / (64 * 9), rel=0.05)
    own = Trainer(make("method.init=network"), digits, CPU).network.network[4].weight
    assert float(own.std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)


def test_initial_weights():
    network, fresh = (cifar.small_cnn((1, 8, 8), 10, 32) for _ in range(2))
    Ibp().initialize(network)
    weight = network[4].weight
    assert float(weight.std()) == pytest.approx(math.sqrt(2 * math.pi) / (64 * 9), rel=0.03)
    before = [p.clone() for p in fresh.parameters()]
    Ibp(init="network").initialize(fresh)
    assert all(torch.equal(a, b) for a, b in zip(before, fresh.parameters(), strict=True))


@pytest.mark.parametrize("cls", ALL)
def test_networks_that_do_not_fit_are_refused_before_training(cls):
    network = nn.Sequential(nn.Flatten(), nn.SiLU(), nn.Linear(64, 4)).double()
    with pytest.raises(RequestError, match=rf"method {cls.key}: layer '1' \(SiLU\) has no rule"):
        cls().setup(network, IMAGES, LABELS)

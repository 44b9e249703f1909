"""Several norms: the rules against each other and against `pgd`, on linear networks and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_pgd import Watcher
from test_pgd import step as seeded

from raybust.errors import RequestError
from raybust.methods import StepContext
from raybust.methods.multi_norm import MultiNorm
from raybust.methods.pgd import Pgd
from raybust.numerics.balls import Threat

ALL = {"linf": 0.1, "l2": 0.3, "l1": 0.6}


def step(method):
    torch.manual_seed(0)  # of the network's bias
    return seeded(method)


def only(norm, **more):
    return MultiNorm(**{**dict.fromkeys(ALL), norm: ALL[norm]}, **more)


@pytest.mark.parametrize("rule", ["sampled", "max", "avg", "msd"])
@pytest.mark.parametrize("norm", ALL)
@pytest.mark.parametrize("start", ["uniform", "center"])
def test_one_norm_is_pgd(rule, norm, start):
    """The same images bit for bit; the mean of the losses is summed in another order."""
    network, *_, mine, context = step(only(norm, rule=rule, steps=5, start=start))
    watched, *_, theirs, other = step(Pgd(norm=norm, eps=ALL[norm], steps=5, start=start))
    assert torch.equal(network.seen[-1][0], watched.seen[-1][0])
    assert float(mine.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    assert context.metrics["train/attacked_accuracy"] == other.metrics["train/attacked_accuracy"]


def linear(rule, **radii):
    """Two classes on a linear network, attacked from the image."""
    images = torch.rand(16, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    images = 0.4 + 0.2 * images  # away from the bounds of [0, 1]
    labels = torch.arange(16) % 2
    network = Watcher(classes=2).double()
    method = MultiNorm(**{**dict.fromkeys(ALL), **radii}, rule=rule, start="center", steps=20)
    context = StepContext(torch.Generator().manual_seed(0), 0.5)
    loss = method.loss(network, images, labels, context)
    weight = network.linear.weight.detach()
    signs = (2 * labels - 1).double()
    clean = signs * (images.flatten(1) @ (weight[1] - weight[0]) + network.linear.bias.diff())
    return float(loss.detach()), clean.detach(), weight[1] - weight[0], context


def by_hand(clean, slope, norm, eps):
    """The optimum: the margin falls by eps times the dual norm of the slope."""
    dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    return F.softplus(-(clean - eps * torch.linalg.vector_norm(slope, dual)))


@pytest.mark.parametrize("rule", ["max", "msd"])
def test_the_union_is_linf_where_its_ball_holds_the_l2_ball(rule):
    loss, clean, slope, _ = linear(rule, linf=0.1, l2=0.1)
    assert loss == pytest.approx(float(by_hand(clean, slope, "linf", 0.1).mean()), rel=1e-6)


@pytest.mark.parametrize("eps", [0.05, 0.4])
def test_max_and_avg_are_those_of_the_optima(eps):
    """With radius 0.4 in L2 the worst ball is L2's, with 0.05 it is Linf's."""
    radii = {"linf": 0.05, "l2": eps}
    for rule in ("max", "avg"):
        loss, clean, slope, _ = linear(rule, **radii)
        each = torch.stack([by_hand(clean, slope, *item) for item in radii.items()])
        expected = each.amax(0).mean() if rule == "max" else each.mean()
        assert loss == pytest.approx(float(expected), rel=1e-4)


def test_msd_is_as_strong_as_the_strongest_norm():
    loss, clean, slope, _ = linear("msd", linf=0.05, l2=0.4)
    worst = float(by_hand(clean, slope, "l2", 0.4).mean())
    assert loss == pytest.approx(worst, rel=0.01)


def test_the_union_accuracy_is_at_most_that_of_each_norm():
    *_, context = step(MultiNorm(**ALL, rule="max", steps=5))
    found = context.metrics
    each = [found[f"multi_norm/{norm}_accuracy"] for norm in ALL]
    assert found["multi_norm/union_accuracy"] <= min(each)
    assert found["train/attacked_accuracy"] == found["multi_norm/union_accuracy"]


@pytest.mark.parametrize("rule", ["sampled", "max", "avg", "msd"])
def test_every_image_is_in_one_of_the_balls(rule):
    network, images, *_ = step(MultiNorm(**ALL, rule=rule, steps=3))
    final = network.seen[-1][0].unflatten(0, (-1, len(images)))
    for points in final:
        inside = [Threat(norm, eps).size(points - images) <= eps * 1.0001
                  for norm, eps in ALL.items()]  # fmt: skip
        assert torch.stack(inside).any(0).all()
        assert points.min() >= 0
        assert points.max() <= 1


def test_a_batch_is_attacked_in_linf_or_l1_by_the_accuracies_so_far():
    """Both are drawn alike at first; then with weights 1 - hits / batches, as in E-AT."""
    method = MultiNorm(**ALL, steps=2)
    shares = {}
    for name, rates in (("even", None), ("uneven", {"linf": 0.2, "l1": 0.8})):
        drawn = []
        for seed in range(300):
            images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
            network = Watcher()
            memory = {}
            for norm, rate in (rates or {}).items():
                memory[f"{norm}/hits"] = torch.tensor(10 * rate, dtype=torch.float64)
                memory[f"{norm}/batches"] = torch.tensor(10.0, dtype=torch.float64)
            context = StepContext(torch.Generator().manual_seed(seed), 0.5, memory=memory)
            method.loss(network, images, torch.arange(4) % 3, context)
            before = 10.0 if rates else 0.0
            drawn.append(float(context.memory["linf/batches"]) - before)
            delta = network.seen[-1][0] - images
            assert (delta.abs().amax((1, 2, 3)) <= 0.1001).all() or not drawn[-1]
            assert "l2/batches" not in context.memory
        shares[name] = sum(drawn) / len(drawn)
    assert shares["even"] == pytest.approx(0.5, abs=0.09)  # three standard errors
    assert shares["uneven"] == pytest.approx(0.8, abs=0.07)


def test_the_accuracy_under_the_drawn_norm_is_remembered():
    method, memory, hits = MultiNorm(**ALL, steps=1), {}, {"linf": [], "l1": []}
    for seed in range(20):
        network = Watcher()
        images = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
        context = StepContext(torch.Generator().manual_seed(seed), 0.5, memory=memory)
        before = float(memory.get("linf/batches", 0.0))
        method.loss(network, images, torch.arange(8) % 3, context)
        norm = "linf" if float(memory["linf/batches"]) > before else "l1"
        hits[norm].append(float(context.metrics["train/attacked_accuracy"]))
    for norm, found in hits.items():
        assert float(memory[f"{norm}/batches"]) == len(found) > 0
        assert float(memory[f"{norm}/hits"]) == pytest.approx(sum(found))


def test_pairing_is_the_divergence_of_the_two_predictions_where_linf_is_withstood():
    method = MultiNorm(**ALL, rule="max", steps=3)
    network, images, labels, plain, _ = step(method)
    *_, paired, _ = step(MultiNorm(**ALL, rule="max", steps=3, pairing=5.0))
    points = network.seen[-1][0].unflatten(0, (3, len(images)))
    p, q = (network(one).softmax(1) for one in (points[0], points[2]))
    right = p.argmax(1) == labels
    assert right.any()
    assert not right.all()
    divergence = (p * (p.log() - q.log())).sum(1)[right].mean()
    gain, expected = float((paired - plain).detach()), 5 * float(divergence.detach())
    assert gain == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "settings", [{"pairing": 1.0}, {"pairing": 1.0, "rule": "max", "l1": None}, dict.fromkeys(ALL)]
)
def test_settings_that_do_not_go_together(settings):
    with pytest.raises(RequestError, match=r"(pairing|linf): got"):
        MultiNorm(**settings)

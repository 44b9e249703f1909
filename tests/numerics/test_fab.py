"""FAB on linear networks, where the nearest image of another class is known, and beyond."""

import pytest
import torch
from torch import nn

from raybust.errors import RequestError
from raybust.numerics.attacks import fab_targeted
from raybust.numerics.balls import Threat
from raybust.numerics.balls.hyperplane import to_hyperplane

NORMS = ("linf", "l2", "l1")
SHAPE = (1, 4, 4)


class Linear(nn.Module):
    """Logits W x."""

    def __init__(self, classes=4, seed=0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        weight = torch.randn(classes, 16, generator=draw, dtype=torch.float64)
        self.register_buffer("weight", weight)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


def problem(classes=4, count=12):
    network = Linear(classes)
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(count, *SHAPE, generator=draw, dtype=torch.float64)
    return network, images, network(images).argmax(1)


def nearest_boundary(network, images, labels, norm):
    """The distance to the nearest hyperplane between the label and another class."""
    logits, found = network(images), []
    for target in range(logits.shape[1]):
        normal = (network.weight[target] - network.weight[labels]).view_as(images)
        gap = logits[:, target] - logits.gather(1, labels[:, None])[:, 0]
        step = to_hyperplane(images, normal, gap, norm)
        reached = (normal * (images + step)).flatten(1).sum(1)
        size = Threat(norm, 0.0).size(step)
        on = (reached - (normal * images).flatten(1).sum(1) + gap).abs() < 1e-9
        found.append(torch.where(on & (labels != target), size, torch.inf))
    return torch.stack(found).amin(0)


def sources(count):
    return [torch.Generator().manual_seed(at) for at in range(count)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_on_a_linear_network_it_finds_the_nearest_boundary(norm, classes):
    network, images, labels = problem(classes)
    found = fab_targeted(network, images, labels, Threat(norm, 0.0), sources(len(images)), steps=60)
    exact = nearest_boundary(network, images, labels, norm)
    reachable = exact.isfinite()
    assert reachable.sum() > 4
    assert torch.equal(found.distance.isfinite(), reachable)
    assert (found.distance >= exact - 1e-9)[reachable].all()
    assert (found.distance <= 1.02 * exact + 1e-9)[reachable].all()
    fooled = network(found.images).argmax(1) != labels
    assert torch.equal(fooled, reachable)
    sizes = Threat(norm, 0.0).size(found.images - images)
    assert torch.allclose(sizes[reachable], found.distance[reachable])


@pytest.mark.parametrize("norm", NORMS)
def test_one_search_serves_every_radius(norm):
    network, images, labels = problem()
    found = fab_targeted(network, images, labels, Threat(norm, 0.0), sources(len(images)), steps=30)
    radii = found.distance[found.distance.isfinite()].sort().values
    for number, eps in enumerate(radii.tolist(), start=1):
        threat = Threat(norm, eps)
        outcome = found.within(threat, images)
        assert int(outcome.fooled.sum()) == number
        assert (threat.size(outcome.images - images) <= eps + 1e-9).all()
        assert ((outcome.step >= 1) == outcome.fooled).all()


def test_an_example_that_lies_in_the_ball_is_done_early():
    network, images, labels = problem()
    calls = []
    network.register_forward_hook(lambda module, inputs, logits: calls.append(len(logits)))
    fab_targeted(network, images, labels, Threat("l2", 100.0), sources(len(images)), steps=50)
    assert len(calls) < 10


def test_an_example_does_not_depend_on_the_others():
    network, images, labels = problem()
    for random_start in (False, True):
        whole = fab_targeted(network, images, labels, Threat("l2", 0.3), sources(12), steps=20,
                             random_start=random_start)  # fmt: skip
        alone = fab_targeted(network, images[5:6], labels[5:6], Threat("l2", 0.3), sources(12)[5:6],
                             steps=20, random_start=random_start)  # fmt: skip
        assert torch.allclose(whole.images[5:6], alone.images)


def test_logits_of_any_scale_are_attacked_alike():
    """Cross entropy is flat at such logits, so gradient ascent stalls."""
    network, images, labels = problem()
    plain = fab_targeted(network, images, labels, Threat("linf", 0.0), sources(12), steps=20)
    loud = fab_targeted(lambda x: 1e8 * network(x), images, labels, Threat("linf", 0.0),
                        sources(12), steps=20)  # fmt: skip
    assert torch.allclose(plain.distance, loud.distance)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"targets": 0}])
def test_wrong_numbers(wrong):
    network, images, labels = problem()
    with pytest.raises(RequestError, match="expected >= 1"):
        fab_targeted(network, images, labels, Threat("l2", 1.0), sources(12), **wrong)

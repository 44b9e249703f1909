"""Runs toward several classes side by side are the runs one after the other, in fewer passes."""

import pytest
import torch
from torch import nn

from raybust.numerics.attacks import abreast, apgd_targeted, fab_targeted
from raybust.numerics.balls import Threat

COUNT, CLASSES = 10, 6
EPS = {"linf": 0.09, "l2": 0.5, "l1": 1.8}


@pytest.fixture(scope="module")
def problem():
    """A network with flat places, images and their classes, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, CLASSES)
        ).double()
        images = torch.rand(COUNT, 1, 4, 4, dtype=torch.float64)
    network.requires_grad_(False)
    return network, images, network(images).argmax(1)


def generators():
    return [torch.Generator().manual_seed(at) for at in range(COUNT)]


def found(problem, attack, threat, **settings):
    """What the attack finds, and the number of calls of the network."""
    network, images, labels = problem
    calls = []

    def counted(points):
        calls.append(len(points))
        return network(points)

    return attack(counted, images, labels, threat, generators(), **settings), len(calls)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        (apgd_targeted, {"restarts": 2}),
        (fab_targeted, {}),
        (fab_targeted, {"random_start": True}),
    ],
)
@pytest.mark.parametrize(("images", "share"), [(30, 0.8), (256, 0.4)])
def test_the_search_is_that_of_one_run_at_a_time(
    problem, attack, settings, norm, images, share, monkeypatch
):
    threat = Threat(norm, EPS[norm])
    monkeypatch.setattr(abreast, "_IMAGES", 1)
    single, calls = found(problem, attack, threat, steps=25, **settings)
    monkeypatch.setattr(abreast, "_IMAGES", images)
    together, fewer = found(problem, attack, threat, steps=25, **settings)
    done = single.fooled if attack is apgd_targeted else single.distance <= threat.eps
    assert 0 < done.sum() < COUNT
    assert fewer < share * calls
    assert torch.equal(single.step, together.step)
    torch.testing.assert_close(single.images, together.images, rtol=0, atol=1e-3)


def test_a_batch_has_room_for_its_examples():
    small, large = torch.zeros(300, 1, 2, 2), torch.zeros(2, 3, 1024, 1024)
    assert abreast.room(small) == 300
    assert abreast.room(small[:3]) == 256
    assert abreast.room(large) == 2


def test_an_earlier_success_ends_later_runs():
    success = torch.tensor([0, 1, 0, 0, 0, 0, 1, 0, 0]).bool()
    assert abreast.ended(success, 3).tolist() == [0, 1, 1, 0, 0, 0, 1, 1, 1]

"""Certificates, attacks, corruptions and numerics on a device that is not the CPU."""

import copy
import dataclasses

import nets
import networks
import pretend
import pytest
import torch

from raybust import data
from raybust.certification import certify_examples, make_protocol
from raybust.config.assess import Certify, Corruptions
from raybust.config.inputs import Data
from raybust.corruptions import evaluate_corruptions
from raybust.errors import WorkError
from raybust.evaluate import attack_examples
from raybust.identity import Sent
from raybust.numerics.balls import lp_noise
from raybust.numerics.barycenter import Prices, barycenter
from raybust.numerics.lp_sets import named
from raybust.numerics.moments import moment_acr
from raybust.numerics.transport import assignments, squared_distances

CPU, DEVICE = torch.device("cpu"), torch.device("pretend")
COUNT = 12
NOISES = {
    "gaussian": {},
    "gaussian linf": {"norm": "linf"},
    "uniform": {"noise": "uniform"},
    "ablation": {"noise": "ablation", "keep": 10},
    "radii": {"intent": "radii", "n": 3000},
}
RADII = {"linf": (0.01, 0.03), "l2": (0.05, 0.15), "l1": (0.1, 0.4)}


def both(function):
    return function(CPU), function(DEVICE)


@pytest.mark.parametrize("changes", NOISES.values(), ids=list(NOISES))
def test_certificates_are_those_of_the_cpu(changes):
    """The same rows, and one read per look."""
    config = dataclasses.replace(Certify(), **{"n": 1000, "batch": 300, **changes})
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(COUNT, 1, 5, 5, generator=generator), torch.arange(COUNT) % 4
    network, counts = networks.convolutional(), pretend.Counts()

    def rows(device):
        protocol = make_protocol(
            config, sigma=0.5, shape=(1, 5, 5), device=device.type, dataset="made"
        )
        batch = copy.deepcopy(network).to(device), images.to(device), labels.to(device)
        with pretend.counted() as found:
            made = list(certify_examples(*batch, range(COUNT), protocol))
        counts.reads, counts.writes = found.reads, found.writes
        return {row.idx: dataclasses.replace(row, time=0.0) for row in made}

    here, there = both(rows)
    assert here == there
    looks = sum(row.draws > 0 for row in there.values()) * (4 if config.intent == "radii" else 1)
    assert counts.reads <= looks + 10  # checks of images and outputs before the first batch
    assert counts.writes == 0


@pytest.mark.parametrize("norm", RADII)
def test_attacks_break_what_they_break_on_the_cpu(norm):
    """The whole ensemble, with one read for each step of PGD, APGD and Square."""
    network, every = nets.Small(), []
    images, labels, indices = nets.examples(network, 20)
    plan = nets.protocol(norm=norm, eps=RADII[norm], every=True)

    def rows(device):
        batch = copy.deepcopy(network).to(device), images.to(device), labels.to(device)
        with pretend.counted() as counts:
            found = attack_examples(*batch, indices, plan)
        every.append(counts.reads)
        return found

    here, there = both(rows)
    assert here == there
    assert every[-1] < {"linf": 1000, "l2": 1400, "l1": 3300}[norm]


def test_corruptions_are_counted_on_the_device():
    part = data.load(Data()).test
    config = dataclasses.replace(Corruptions(), sets=("iCE", "C1"), examples=60)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 10, generator=generator)

    def counts(device):
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10, bias=False))
        network[1].weight.data = weight.T.clone()
        return evaluate_corruptions(network.to(device).eval(), part, config, device).metrics()

    here, there = both(counts)
    assert there == pytest.approx(here)


@pytest.mark.parametrize("name", ["C1", "C2", "C1_patched"])
@pytest.mark.parametrize("sphere", [False, True])
def test_lp_noise_is_in_its_ball(name, sphere):
    """Drawn for all rows at once, so other values than on the CPU, of the same law."""
    chosen = named(name, (1, 8, 8))
    table = torch.tensor(chosen.rows, dtype=torch.float64)
    p, eps = table[torch.arange(400) % len(table)].unbind(1)
    images = torch.full((400, 1, 8, 8), 0.5)

    def change(device):
        draw = torch.Generator(device).manual_seed(3)
        noisy = lp_noise(
            images.to(device), p.to(device), eps.to(device), generator=draw, sphere=sphere
        )
        return (noisy.cpu() - images).flatten(1).double()

    here, there = both(change)
    for order in table[:, 0].unique().tolist():
        which = p == order
        means = [part[which].square().mean().sqrt().item() for part in (here, there)]
        assert means[1] == pytest.approx(means[0], rel=0.25), order
        if order >= 1:
            size = there[which].norm(order, dim=1)
            assert (size <= eps[which] * (1 + 1e-5) + 1e-6).all()


def test_numerics_follow_their_inputs():
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(8, 1, 5, 5, generator=generator)
    labels, network = torch.arange(8) % 4, networks.convolutional()

    def acr(device):
        there = copy.deepcopy(network).to(device)
        return moment_acr(there, images.to(device), labels.to(device), 0.25)

    here, there = both(acr)
    assert there == pytest.approx(here, rel=1e-4)

    def mean(device):
        return barycenter(images[:4, 0].to(device), Prices(1.0, 0.1, 0.0)).cpu()

    here, there = both(mean)
    torch.testing.assert_close(there, here)

    def pairs(device):
        cost = squared_distances(images[:4].to(device), images[4:].to(device))
        return assignments([cost])[0]

    here, there = both(pairs)
    assert torch.equal(here, there)


class Restless(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.scale * torch.rand(len(images), 4, device=images.device)


def test_a_random_network_may_be_sent_to_a_device():
    """It draws other numbers there; a network that is not random must compute the same."""
    sent = Sent.of(Restless().eval(), (1, 5, 5))
    assert sent.on(DEVICE).scale.device.type == "pretend"
    sure = Sent.of(networks.convolutional(), (1, 5, 5))
    sure.on(DEVICE)
    wrong = dataclasses.replace(sure, outputs=tuple(value + 1 for value in sure.outputs))
    with pytest.raises(WorkError, match="another function"):
        wrong.on(DEVICE)

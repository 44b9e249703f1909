"""Stored rounds of geodesic augmentation: pairs drawn apart from the batches, the on-line method as
the oracle, passes, resuming, ranks.
"""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raybust import data, testing
from raybust.config import compose, leaves_of_arguments
from raybust.errors import RequestError
from raybust.methods import StepContext, get
from raybust.methods.gaussian import Gaussian
from raybust.methods.geodesic import Geodesic, Prepared
from raybust.methods.geodesic.rounds import stored
from raybust.methods.mixup import Mixup
from raybust.methods.pgd import Pgd
from raybust.methods.standard import Standard
from raybust.numerics.autoencoder import train_autoencoder
from raybust.numerics.transport import class_cycle, opposite
from raybust.training.fit import fit
from raybust.training.loop import Trainer
from raybust.training.objective import CountedNetwork

CPU = torch.device("cpu")
EVERY = {"refresh": 1, "penalty": 0.0, "warmup": 0.0}
SMALL = (
    "method.name=geodesic", "method.base.name=gaussian", "method.synthetic=base",
    "method.warmup=0", "method.ramp=0", "method.pair_images=40", "method.refresh=2",
    "train.epochs=3", "train.batch_size=50", "data.limit=200", "model.width=4",
    "certified_fast.every=0",
)  # fmt: skip


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def context(seed=0, classes=3, coder=None):
    return StepContext(draws(seed), 0.5, Prepared(classes, None, coder))


def batch(*counts, seed=0):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=draws(seed + 1))]
    noise = torch.rand(len(labels), 1, 4, 4, generator=draws(seed), dtype=torch.float64)
    means = torch.rand(len(counts), 1, 4, 4, generator=draws(seed + 2), dtype=torch.float64)
    return 0.5 * noise + 0.5 * means[labels], labels


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        weight = torch.randn(8, 16, generator=draws(3), dtype=torch.float64)
        head = torch.randn(3, 8, generator=draws(4), dtype=torch.float64)
        self.first, self.head = nn.Parameter(weight), nn.Parameter(head)

    def forward(self, images):
        return torch.tanh(images.flatten(1) @ self.first.T) @ self.head.T


def make(*settings):
    return compose(leaves_of_arguments([*SMALL, *settings]), get)


# Who is paired


@pytest.mark.parametrize("copies", [1, 3])
def test_every_image_is_a_source_as_often_as_there_are_copies(copies):
    _, labels = batch(30, 17, 5)
    groups = opposite(labels, 8, copies, draws())
    sources = torch.cat([a for a, _ in groups])
    assert sources.bincount().tolist() == [copies] * 52
    met = set()
    for a, b in groups:
        assert len(a) == len(b) <= 8
        (own,), (other,) = labels[a].unique(), labels[b].unique()
        assert own != other
        met.add((int(own), int(other)))
        repeats = b.bincount()[b].max()
        assert repeats == -(-len(b) // int((labels == other).sum()))
    assert len(met) >= 4
    again = opposite(labels, 8, copies, draws())
    assert all(torch.equal(x, y) for one, two in zip(groups, again, strict=True)
               for x, y in zip(one, two, strict=True))  # fmt: skip


def test_a_class_alone_is_paired_with_itself():
    groups = opposite(torch.zeros(5, dtype=torch.int64), 8, 1, draws())
    assert [len(a) for a, _ in groups] == [5]
    assert groups[0][1].sort().values.tolist() == [0, 1, 2, 3, 4]


def test_k_mixup_is_blind_to_the_classes():
    images, labels = batch(12, 12, 12)
    method = Geodesic(**EVERY, pairing="kmixup", location="fixed")
    kept = method.store(Small(), images, labels, context()).stored
    assert (kept.labels.max(1).values == 1).any(), "some pairs have one class"
    other = Geodesic(**EVERY, location="fixed")
    kept = other.store(Small(), images, labels, context()).stored
    assert kept.labels.max(1).values.tolist() == [0.5] * 36


def test_two_points_by_hand():
    """One image a class, at 0 and 1, under logits a (1 - 2 x) and 0: the soft loss at t is
    log(1 + exp(-a u)) + a t u with u = 1 - 2 t, and the stored image is t."""
    images = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)

    class Gap(nn.Module):
        def forward(self, x):
            gap = 8 * (1 - 2 * x.flatten(1))
            return torch.cat([gap, torch.zeros_like(gap)], 1)

    method = Geodesic(**EVERY, points=7)
    found, kept = method.store(Gap(), images, torch.tensor([0, 1]), context(classes=2))
    grid = [(k + 0.5) / 7 for k in range(7)]

    def loss(t):
        return math.log1p(math.exp(-8 * (1 - 2 * t))) + 8 * t * (1 - 2 * t)

    best = max(loss(t) for t in grid)
    assert len(found) == 2
    for t, image, label, start in zip(found, kept.images, kept.labels, (0, 1), strict=True):
        assert loss(float(t)) == pytest.approx(best)
        here = float(t) if start == 0 else 1 - float(t)
        assert float(image) == pytest.approx(here)
        assert label.tolist() == pytest.approx([1 - here, here])


# The on-line method


@pytest.mark.parametrize(
    ("settings", "sinkhorn"),
    [
        ({}, False),
        ({"pairing": "random"}, False),
        ({"pairing": "sinkhorn", "entropy": 0.05}, True),
        ({"location": "ascent", "label": "nearest"}, False),
        ({"location": "random"}, False),
        ({"base": Gaussian(sigma=0.5), "synthetic": "base"}, False),
        ({"base": Pgd(steps=2), "synthetic": "base"}, False),
        ({"space": "latent", "synthetic": "base", "base": Gaussian(sigma=0.5)}, False),
    ],
)  # fmt: skip
def test_a_round_in_each_step_is_the_online_method_bit_for_bit(settings, sinkhorn):
    """With the problems of the step's own batch, over three steps of training."""
    images, labels = batch(8, 6, 7)
    coder = train_autoencoder(images, size=4, epochs=1, seed=0)
    rounds = Geodesic(**EVERY, **settings)
    online = dataclasses.replace(rounds, refresh=0)
    networks = Small(), Small()
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in networks]
    for step in range(3):
        one, two = (context(step, coder=coder) for _ in range(2))
        first = online.loss(networks[0], images, labels, one)
        groups, rest = class_cycle(labels, two.generator, equal=not sinkhorn)
        assert not len(rest)
        begun = stored(rounds, networks[1], (images, labels), groups, context=two)
        two.stored = begun.stored
        second = rounds.loss(networks[1], images, labels, two)
        assert torch.equal(first, second)
        assert torch.equal(one.generator.get_state(), two.generator.get_state())
        for loss, optimizer in zip((first, second), optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert torch.equal(networks[0].first, networks[1].first)
    assert not torch.equal(networks[0].first, Small().first)


# What a step takes


def test_a_step_draws_as_many_as_it_has_images_and_none_twice():
    images, labels = batch(12, 12, 12)
    kept = Geodesic(**EVERY).store(Small(), images, labels, context()).stored
    some, _ = kept.drawn(10, draws(5))
    assert len(some) == len(some.flatten(1).unique(dim=0)) == 10
    assert torch.equal(kept.drawn(36, draws(5))[0], kept.images)
    assert torch.equal(kept.drawn(99, draws(5))[0], kept.images)


def test_each_copy_weighs_like_the_images_themselves():
    images, labels = batch(12, 12, 12)
    method = Geodesic(**EVERY, copies=3, weight=0.5)
    kept = method.store(Small(), images, labels, context()).stored
    assert len(kept.images) == 3 * 36
    given = dataclasses.replace(context(), stored=kept)
    loss = method.loss(Small(), images, labels, given)
    network = Small()
    expected = F.cross_entropy(network(images), labels)
    # Three times as many images as the batch: all of the round.
    expected = expected + 3 * 0.5 * F.cross_entropy(network(kept.images), kept.labels)
    torch.testing.assert_close(loss, expected)


def test_the_penalty_is_on_whole_geodesics():
    images, labels = batch(12, 12, 12)
    method = Geodesic(**{**EVERY, "penalty": 0.3}, pair_images=8, ramp=0.0)
    kept = method.store(Small(), images, labels, context()).stored
    assert kept.counts == (4,) * 9
    curves = kept.whole(9, draws(2))
    assert (curves.pairs, curves.pair.tolist()) == (2, [0] * 4 + [1] * 4)
    starts = kept.curves.start.flatten(1)
    for pair in range(2):
        mine = curves.start[curves.pair == pair].flatten(1)
        at = [int((starts == row).all(1).nonzero()) for row in mine]
        assert at == list(range(at[0], at[0] + 4))
        assert at[0] % 4 == 0
    given = dataclasses.replace(context(), stored=kept)
    loss = method.loss(Small(), images, labels, given)
    alone = dataclasses.replace(method, penalty=0.0)
    without = dataclasses.replace(context(), stored=kept)
    reduced = alone.loss(Small(), images, labels, without)
    torch.testing.assert_close(loss - reduced, 0.3 * given.metrics["geodesic/variation"])


def test_the_search_can_take_few_images_of_each_geodesic():
    images, labels = batch(12, 12, 12)

    def passes(searched):
        network = CountedNetwork(Small())
        method = Geodesic(**EVERY, searched=searched, pair_images=24)
        found = method.store(network, images, labels, context()).found
        return network.forward_passes, found

    (whole, one), (few, _), (enough, same) = (passes(count) for count in (None, 3, 12))
    assert (whole, few, enough) == (5 * 36, 5 * 9, 5 * 36)
    assert torch.equal(one, same)


@pytest.mark.parametrize(
    "method",
    [
        Geodesic(refresh=2, least=2),
        Geodesic(refresh=1, copies=2, base=Gaussian(), synthetic="base", estimate="printed"),
        Geodesic(refresh=1, space="latent", latent=3, latent_epochs=1, beta=1.0),
        Mixup(base=Geodesic(refresh=1)),
        Geodesic(base=Geodesic(refresh=1), least=2),
    ],
    ids=["pixel", "base", "latent", "wrapped by mixup", "wrapped by itself"],
)
def test_rounds_in_the_conformance_suite(method):
    testing.check_step(method)


# Whole runs


def test_the_passes_of_a_run():
    """Two passes for each image, real or synthetic, and five locations on a quarter of the
    synthetic ones every five epochs."""
    config = make("method.refresh=5", "method.searched=5", "train.epochs=5", "method.penalty=0")
    ends = list(fit(config, data.load(config.data), CPU))
    trained = 2 * 200 * 5
    spent = ends[-1].metrics["passes/forward"] + ends[-1].metrics["passes/backward"]
    assert spent / trained == pytest.approx(2.125, abs=0.02)
    assert ["geodesic/location" in end.metrics for end in ends] == [True] + [False] * 4


@pytest.mark.parametrize(
    "settings", [(), ("method.space=latent", "method.latent_epochs=1", "train.ema=0.9")]
)
def test_a_run_resumed_within_a_round_is_the_same_run(settings, tmp_path):
    config = make(*settings)
    dataset = data.load(config.data)
    for progress in fit(config, dataset, CPU):
        folder = tmp_path / str(progress.epoch)
        folder.mkdir()
        progress.save(folder)
    whole = progress.save.__self__
    for epoch in (1, 2):
        *_, end = fit(config, dataset, CPU, tmp_path / str(epoch))
        again = end.save.__self__
        for one, two in ((whole.network, again.network), (whole.average, again.average)):
            for key, value in one.state_dict().items():
                assert torch.equal(value, two.state_dict()[key])
        for key, value in progress.metrics.items():
            assert end.metrics[key] == value or "second" in key, key
    state = torch.load(tmp_path / "1" / "state.pt", weights_only=True)
    assert sum(part.numel() for part in state["found"]) < 30, "locations, not images"


def _on_ranks(rank, folder):
    config = make()
    dataset = data.load(config.data)
    whole = Trainer(config, dataset, CPU)
    for epoch in range(2):
        whole.train_epoch()
        if epoch == 0:
            whole.validate()
            if rank == 0:
                (folder / "1").mkdir()
                whole.save(folder / "1")
            torch.distributed.barrier()
    again = Trainer(config, dataset, CPU, folder / "1")
    again.train_epoch()
    pairs = zip(whole.network.parameters(), again.network.parameters(), strict=True)
    found = {
        "same": all(torch.equal(one, two) for one, two in pairs),
        "passes": [whole.metrics["passes/forward"], again.metrics["passes/forward"]],
        "images": whole.objective.stored.images.flatten(1).tolist(),
        "found": [len(part) for part in whole._found],
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_ranks_share_a_round_and_resume_it(tmp_path):
    testing.run_ranks(_on_ranks, tmp_path, tmp_path, seconds=120)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["same"]
    assert two["same"]
    assert one["passes"][0] == one["passes"][1] == two["passes"][0]
    assert len(one["images"]) + len(two["images"]) == 200, "each image once, on one rank"
    assert not set(map(tuple, one["images"])) & set(map(tuple, two["images"]))
    assert one["found"] == two["found"]
    # Two epochs of 200 images and as many synthetic ones; five locations on all of them, once;
    # the penalty's five points on the paths of each step.
    assert one["passes"][0] >= 2 * 400 + 5 * 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refresh": -1}, "refresh: got -1, expected >= 0"),
        ({"refresh": 5, "weight": 0.0}, "refresh: got 5, expected 0 where weight is 0"),
        ({"refresh": 5, "space": "feature_cost"}, "expected 0 for feature_cost without an"),
        (
            {"refresh": 5, "base": Geodesic(refresh=2)},
            "expected 0 on a base with rounds of its own",
        ),
        ({"copies": 0}, "copies: got 0"),
        ({"pair_images": 1}, "pair_images: got 1"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(RequestError, match=message):
        Geodesic(**settings)


def test_standard_has_no_rounds():
    assert Standard().round_epochs() == Geodesic().round_epochs() == 0
    assert Mixup(base=Geodesic(refresh=3)).round_epochs() == 3

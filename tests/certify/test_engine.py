"""Rows do not depend on sharding, order or neighbors; invalid requests are rejected."""

import dataclasses

import pytest
import torch
from networks import SHAPE, Linear, convolutional, protocol, two_class
from torch import nn

from raybust.certification import certify_examples, draws, make_protocol, sigma_warning
from raybust.certification.engine import make_forward
from raybust.config.assess import Certify
from raybust.errors import RequestError, WorkError

torch.manual_seed(1)
IMAGES = torch.rand(12, 1, 5, 5)
LABELS = torch.arange(12) % 4
INDICES = [10 * i for i in range(12)]
SCHEDULES = [
    {"schedule": "fixed", "n": 1000},
    {"schedule": "looks", "n": 3000, "targets": (0.0, 0.1, 0.3)},
    {"schedule": "sequence", "n": 3000, "targets": (0.2,)},
    {"schedule": "looks", "n": 1050, "targets": (0.0, 0.3), "n0": 130},
]


def run(which, network=None, **changes):
    which = list(which)
    shape = {"shape": (1, 5, 5), "sigma": 0.5}
    found = certify_examples(
        network or convolutional(),
        IMAGES[which],
        LABELS[which],
        [INDICES[i] for i in which],
        protocol(**(shape | changes)),
    )
    return {row.idx: row for row in found}


def lines(rows):
    return [dataclasses.replace(row, time=0.0).line() for _, row in sorted(rows.items())]


@pytest.mark.parametrize("changes", SCHEDULES)
@pytest.mark.parametrize("batch", [100, 400, 700])
def test_rows_are_the_same_for_any_sharding_and_order(changes, batch):
    whole = lines(run(range(12), batch=batch, **changes))
    for shards in ([range(12)[::-1]], [[0, 5], [3]], [[i] for i in range(12)]):
        parts = {}
        for shard in shards:
            parts |= run(shard, batch=batch, **changes)
        chosen = [line for line in whole if int(line.split("\t")[0]) in parts]
        assert lines(parts) == chosen


def test_every_draw_meets_the_network_at_the_same_place():
    """By construction, not thanks to the kernels: the key determines the position in the batch."""

    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.places = {}
            self.eval()

        def forward(self, x):
            if len(x) == 400:
                for place, image in enumerate(x):
                    self.places.setdefault(image.numpy().tobytes(), set()).add(place)
            return x.flatten(1)[:, :4]

    network = Places()
    for which in (range(12), [3], [7, 3], [3, 5, 7, 9]):
        run(which, network, batch=400, n=500)
    law = protocol(shape=(1, 5, 5), sigma=0.5).smoothing
    for block in range(5):
        for image in draws(law, 0, IMAGES[3], (30, "estimate", block)):
            assert len(network.places[image.contiguous().numpy().tobytes()]) == 1


def test_other_batch_shapes_give_the_same_noise_and_nearly_the_same_counts():
    small, large = (run(range(12), batch=batch, n=10_000) for batch in (100, 1100))
    moved = sum(abs(small[i].count - large[i].count) for i in small)
    assert moved <= 12 * 10_000 * 1e-4


def test_counts_are_those_of_the_draws_that_an_audit_sees():
    network, chosen = convolutional(), protocol(shape=(1, 5, 5), sigma=0.5, n=250, n0=70)
    (row,) = run([4], network, n=250, n0=70).values()
    forward = make_forward(network, chosen)

    def count(stream, n):
        noisy = [draws(chosen.smoothing, 0, IMAGES[4], (40, stream, b)) for b in range(3)]
        return forward(torch.cat(noisy)[:n]).argmax(1).bincount(minlength=4)

    assert row.counts == tuple((c, int(v)) for c, v in enumerate(count("estimate", 250)) if v)
    assert row.n0_count == int(count("pilot", 70).max())
    assert row.top == int(count("pilot", 70).argmax())
    assert sum(v for _, v in row.counts) == row.draws == row.n == 250


def test_the_batch_shape_is_fixed():
    network = Linear([[0.0] * 25, [1.0] * 25], [0.0, 0.0])
    run(range(3), network, batch=300, n=700)
    assert {shape[0] for shape in network.shapes} == {
        1,
        100,
        300,
    }  # probes of the guards, and batches


def test_early_stopping_saves_draws_and_keeps_the_radius():
    sure = Linear([[0.0] * 4, [0.5, -0.5, 0.5, -0.5]], [0.0, 1.0])
    image = torch.full((1, *SHAPE), 0.5)
    for schedule in ("looks", "sequence"):
        chosen = protocol(n=100_000, schedule=schedule, targets=(0.25,))
        (row,) = certify_examples(sure, image, torch.ones(1), [0], chosen)
        assert row.draws <= 300
        assert 0.25 <= row.radius <= 1.0
        assert row.correct


def test_abstention():
    even = Linear([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]], [-0.5, 0.5])
    image = torch.full((1, *SHAPE), 0.5)
    (row,) = certify_examples(even, image, torch.zeros(1), [0], protocol())
    assert (row.predict, row.radius, row.correct) == (-1, 0.0, False)


def test_no_examples():
    assert run([]) == {}


def test_bf16_and_float64_images():
    assert len(run(range(2), precision="bf16")) == 2
    network = two_class()
    image = torch.full((1, *SHAPE), 0.5)
    single, double = (
        next(iter(certify_examples(network, x, torch.ones(1), [0], protocol())))
        for x in (image, image.double())
    )
    assert single.same(double)


def test_train_mode_is_refused():
    network = convolutional()
    network[1].train()
    with pytest.raises(RequestError, match="module '1' is in train mode"):
        run([0], network)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4, torch.tensor([0.0, 0.0, 0.0, -1e9])])
def test_outputs_that_depend_on_the_batch_are_refused(shift):
    class BatchStatistics(nn.Module):
        def forward(self, x):
            x = x.flatten(1)[:, :4]
            return x - x.mean(0) + shift

    with pytest.raises(RequestError, match=r"change by .* with the rest of its batch"):
        run([0], BatchStatistics().eval())


def test_chance_is_refused():
    class Chance(nn.Module):
        def forward(self, x):
            return torch.nn.functional.dropout(x.flatten(1)[:, :4])

    with pytest.raises(RequestError, match="need a deterministic network"):
        run([0], Chance().eval())


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_images_outside_the_unit_interval_are_refused(value):
    images = torch.full((1, *SHAPE), value)
    with pytest.raises(RequestError, match=r"images: got values from .* expected \[0, 1\]"):
        certify_examples(two_class(), images, torch.ones(1), [0], protocol())


def test_images_of_another_shape_are_refused():
    with pytest.raises(RequestError, match=r"images: got shape \(1, 1, 3, 3\)"):
        certify_examples(two_class(), torch.zeros(1, 1, 3, 3), torch.ones(1), [0], protocol())


def test_nan_outputs_are_refused():
    broken = Linear([[0.0] * 4, [float("nan")] * 4], [0.0, 0.0])
    with pytest.raises(RequestError, match="outputs are NaN"):
        certify_examples(broken, torch.zeros(1, *SHAPE), torch.ones(1), [0], protocol())


def test_nan_outputs_of_a_few_draws_stop_the_work():
    class Rarely(nn.Module):
        def forward(self, x):
            x = x.flatten(1)
            return torch.where(x[:, :1] > 1.2, float("nan"), x[:, :2])

    images = torch.zeros(2, *SHAPE)
    images[1] += 0.5
    found = certify_examples(
        Rarely().eval(), images, torch.ones(2), [3, 4], protocol(batch=100, n=2000)
    )
    with pytest.raises(WorkError, match="example 4: the network's outputs are NaN for"):
        list(found)


def test_output_of_another_shape_is_refused():
    with pytest.raises(RequestError, match="got outputs of shape"):
        certify_examples(
            nn.Identity().eval(), torch.zeros(1, *SHAPE), torch.ones(1), [0], protocol()
        )


def test_another_type_of_device_is_refused():
    with pytest.raises(RequestError, match="got cpu, but the protocol is for cuda"):
        certify_examples(
            two_class(), torch.zeros(1, *SHAPE), torch.ones(1), [0], protocol(device="cuda")
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 9}, "certifies nothing at alpha = 0.001"),
        ({"batch": 150}, "expected a multiple of 100"),
        ({"n0": 0}, "certify.n0"),
        ({"norm": "l1"}, "certifies l2 and linf, not l1"),
    ],
)
def test_protocols_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(RequestError, match=message):
        protocol(**changes)


def made(**changes):
    given = {"sigma": 0.5, "shape": SHAPE, "device": "cpu", "dataset": "d"}
    return make_protocol(Certify(**changes), **given)


def test_intents_choose_the_schedule():
    assert (made().schedule, made().targets) == ("fixed", ())
    assert (made(radius=0.5).schedule, made(radius=0.5).targets) == ("looks", (0.5,))
    assert made(intent="radii", radii=(0.0, 0.5)).targets == (0.0, 0.5)
    assert made(radius=0.5, schedule="sequence").schedule == "sequence"
    assert made(radius=0.5, schedule="fixed").targets == ()
    assert made(sigma=0.25).sigma == 0.25
    assert made(noise="uniform").norm == "l1"
    for changes in ({"schedule": "looks"}, {"schedule": "sequence"}, {"batch": 150}):
        with pytest.raises(RequestError):
            made(**changes)


def test_examples_are_chosen_by_skip():
    assert made(skip=20, examples=3).select(500) == [0, 20, 40]
    assert made(skip=20).select(50) == [0, 20, 40]


def test_sigma_warning_names_both():
    assert sigma_warning(0.25, 0.25) is None
    assert "sigma 0.5" in sigma_warning(0.5, 0.25)
    assert "0.25" in sigma_warning(0.5, 0.25)
    assert "without noise" in sigma_warning(0.5, None)

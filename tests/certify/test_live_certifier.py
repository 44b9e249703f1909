"""Images certified as they come: exact whatever a client chooses, batches shared, nothing lost."""

import random
import threading
import time

import pytest
import torch
from scipy.stats import binom
from torch import nn

from raybust.certification import Protocol
from raybust.certification.live import Ask, Live, OverloadedError, protocol_for, replay
from raybust.certification.prediction import classify
from raybust.errors import RequestError, WorkError


class Halves(nn.Module):
    """The sign of the first pixel minus 1/2, whose smoothed classifier is known."""

    def forward(self, images):
        value = images[:, 0, 0, 0] - 0.5
        return torch.stack([-value, value], 1)


class Slow(Halves):
    def forward(self, images):
        time.sleep(0.005)
        return super().forward(images)


PROTOCOL = Protocol(sigma=0.5, shape=(1, 2, 2), n=2000, schedule="sequence")


@pytest.fixture
def live():
    opened = Live(Halves().eval(), PROTOCOL, 4000)
    yield opened
    opened.close()


def at(distance, count=1):
    """Images at a distance from the plane between the classes."""
    return torch.full((count, 1, 2, 2), 0.5 + distance)


def results(futures):
    return [future.result(timeout=120) for future in futures]


def test_false_radii_under_chosen_inputs_and_deadlines_are_at_most_alpha(live):
    """The client asks just beyond the true radius, in every way that there is, and ends answers
    when it likes."""
    alpha, distance, count = 0.02, 0.1, 1500
    draw, futures = random.Random(0), []
    for number in range(count):
        due = time.monotonic() + draw.expovariate(2.0) if number % 2 else None
        radius = draw.choice([None, distance + 1e-3, 2 * distance, distance / 2])
        n = draw.choice([300, 1000, 2000])
        futures += live.submit(at(distance), Ask(radius=radius, n=n, alpha=alpha, deadline=due))
    rows = [found.row for found in results(futures)]
    assert sum(row is None for row in rows) < count / 2
    false = sum(row is not None and row.radius > distance for row in rows)
    wrong = sum(row is not None and row.predict == 0 for row in rows)
    assert false + wrong <= binom.ppf(0.9999, count, alpha)
    assert sum(row is not None and row.radius > 0 for row in rows) > count / 10


def test_what_is_decided_early_answers_early(live):
    near, far = live.submit(at(0.4), Ask(radius=0.1, n=2000)), live.submit(at(0.4), Ask(n=2000))
    (early,), (full,) = results(near), results(far)
    assert early.row.draws < full.row.draws == 2000
    assert early.row.radius >= 0.1


def test_a_deadline_gives_what_is_proven_so_far():
    """A batch takes at least 5 ms, so that 50,000 draws take seconds on any machine."""
    live = Live(Slow().eval(), PROTOCOL, 10)
    try:
        (cut,) = results(live.submit(at(0.4), Ask(n=50_000, deadline=time.monotonic() + 0.8)))
        (none,) = results(live.submit(at(0.4), Ask(deadline=time.monotonic() - 1)))
    finally:
        live.close()
    assert none.row is None
    assert 0 < cut.row.draws < 50_000
    assert 0 < cut.row.radius < 0.42


def test_a_key_is_drawn_for_each_image_and_repeats_its_votes(live):
    found = results(live.submit(at(0.2, 20), Ask(n=500)))
    assert len({one.row.idx for one in found}) == 20
    assert len({one.row.count for one in found}) > 1, "equal images have noise of their own"
    for one in found[:5]:
        row = one.row
        top, pilot, counts = replay(Halves().eval(), at(0.2)[0], one.protocol, row.idx, row.n)
        assert (top, pilot, counts[top]) == (row.top, row.n0_count, row.count)
        _, _, counts = replay(Halves().eval(), at(0.2)[0], one.protocol, row.idx, row.draws)
        assert tuple((c, votes) for c, votes in enumerate(counts) if votes) == row.counts
    assert found[0].protocol == protocol_for(PROTOCOL, None, 500, 0.001)


def test_a_full_queue_refuses_and_takes_nothing():
    live = Live(Slow().eval(), PROTOCOL, 8)
    try:
        first = live.submit(at(0.3, 6), Ask(n=2000))
        with pytest.raises(OverloadedError) as refused:
            live.submit(at(0.3, 3), Ask(n=2000))
        assert refused.value.seconds >= 1
        assert live.load == 6
        assert len(results(first + live.submit(at(0.3, 2), Ask(n=300)))) == 8
    finally:
        live.close()


def test_many_threads_each_get_their_own_answers(live):
    found = {}

    def ask(number):
        distance = 0.15 * number
        found[number] = results(live.submit(at(distance, 3), Ask(n=1000)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    means = [sum(a.row.count / a.row.n for a in found[number]) for number in sorted(found)]
    assert means == sorted(means), "the votes grow with the distance"


def test_outputs_that_are_nan_have_no_class():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    assert [number for number, _ in classify(network, at(0.1, 3))] == [
        int(network(at(0.1)).argmax())
    ] * 3
    network[1].weight.data.fill_(torch.nan)
    with pytest.raises(WorkError, match="NaN"):
        classify(network, at(0.1))


class Breaks(nn.Module):
    """NaN for images that are bright."""

    def forward(self, images):
        value = images.mean((1, 2, 3)) - 0.5
        bad = torch.where(value > 5, torch.nan, value)
        return torch.stack([-bad, bad], 1)


def test_an_answer_that_fails_ends_with_its_reason_and_the_next_is_answered():
    protocol = Protocol(sigma=0.5, shape=(1, 2, 2), n=500, schedule="sequence")
    live = Live(Breaks().eval(), protocol, 10)
    try:
        live._engine.forward = lambda images: torch.full((len(images), 2), torch.nan)
        (bad,) = live.submit(at(0.1), Ask(n=500))
        with pytest.raises(Exception, match="NaN"):
            bad.result(timeout=60)
        (good,) = results(live.submit(at(0.1), Ask(n=500)))
        assert good.row.draws == 500
        assert live.is_alive
    finally:
        live.close()


@pytest.mark.parametrize(
    ("images", "ask", "said"),
    [
        (torch.zeros(1, 1, 3, 3), Ask(), "images: got shape"),
        (torch.full((1, 1, 2, 2), 1.5), Ask(), "expected \\[0, 1\\]"),
        (torch.full((1, 1, 2, 2), torch.nan), Ask(), "expected \\[0, 1\\]"),
        (at(0.1), Ask(n=2), "certifies nothing"),
    ],
)
def test_bad_input_is_refused(live, images, ask, said):
    with pytest.raises(RequestError, match=said):
        live.submit(images, ask)

"""The probability of a false certificate, computed exactly at the worst p, for every schedule."""

import numpy as np
import pytest
from crossing import crossing_probability

from raybust.certification import Schedule
from raybust.certification.schedule import FUTILITY
from raybust.errors import RequestError


def false_certificate(schedule, p):
    """The exact probability that the best bound reaches p, the truth, if no look is skipped: no
    stopping rule errs more often."""
    least = [schedule.least(j, p) for j in range(len(schedule.times))]
    return crossing_probability(schedule.times, least, p)


def worst(schedule):
    """The largest false-certificate probability over a grid of p and over the p at which each
    look's own bound is tight."""
    tight = [
        schedule.lower(int(share * n), n, j)
        for j, n in enumerate(schedule.times)
        for share in (0.55, 0.9, 0.99, 0.999, 1.0)
    ]
    grid = [*np.linspace(0.5, 0.99, 9), 0.999, *tight]
    return max(false_certificate(schedule, p) for p in grid if 0.5 <= p < 1)


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize(("name", "n"), [("fixed", 1000), ("looks", 3000), ("sequence", 2000)])
def test_false_certificates_at_the_worst_probability(name, n, alpha):
    found = worst(Schedule(name=name, n=n, alpha=alpha, targets=(0.7,)))
    assert found <= alpha * (1 + 1e-6)
    if name == "fixed":
        assert found == pytest.approx(alpha, rel=1e-6)  # Clopper-Pearson is tight there


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fixed", "looks", "sequence"])
def test_false_certificates_at_the_published_budget(name):
    assert worst(Schedule(name=name, n=100_000, alpha=0.001, targets=(0.9,))) <= 0.001 * (1 + 1e-6)


def test_stopping_rule_cannot_add_errors():
    """Simulates the rule: stopping early never reports the bound of a later look."""
    schedule = Schedule(name="looks", n=1000, alpha=0.2, targets=(0.5, 0.8))
    generator, p, wrong = np.random.default_rng(0), 0.8, 0
    for _ in range(3000):
        votes = generator.random(1000) < p
        counts = []
        for n in schedule.times:
            counts.append(int(votes[:n].sum()))
            if schedule.stops(counts):
                break
        wrong += schedule.best(counts)[0] > p
    assert wrong <= 3000 * 0.2


def test_looks_stop_when_every_target_is_settled():
    schedule = Schedule(name="looks", n=100_000, alpha=0.001, targets=(0.5, 0.9))
    assert not schedule.stops([70])  # below 0.9, 0.5 is open
    assert schedule.stops([75])  # above 0.5, below 0.9
    assert schedule.stops([5])  # neither can be reached
    assert not schedule.stops([97])
    assert schedule.stops([97, 298])
    assert schedule.stops([int(0.902 * n) for n in schedule.times])  # no draws left
    assert not schedule.stops([int(0.902 * n) for n in schedule.times[:-1]])


def test_best_look_is_kept():
    schedule = Schedule(name="looks", n=1000, alpha=0.05, targets=(0.5,))
    bound, look = schedule.best([100, 250])
    assert look == 0
    assert bound == pytest.approx((0.05 * 0.1 / 4) ** (1 / 100))


def test_fixed_never_stops_early():
    schedule = Schedule(name="fixed", n=1000, alpha=0.001)
    assert schedule.times == (1000,)
    assert schedule.levels == (0.001,)


@pytest.mark.parametrize("name", ["fixed", "looks", "sequence"])
def test_too_few_draws_are_refused(name):
    with pytest.raises(RequestError, match=r"certify\.n: got 9, which certifies nothing"):
        Schedule(name=name, n=9, alpha=0.001, targets=(0.7,))


def test_what_no_count_can_prove_is_given_up_at_once():
    schedule = Schedule(name="looks", n=1000, alpha=0.001, targets=(0.5, 0.9999))
    assert schedule.stops([100])


@pytest.mark.parametrize("name", ["looks", "sequence"])
def test_futility_costs_no_more_power_than_it_may(name):
    schedule = Schedule(name=name, n=10_000, alpha=0.001, targets=(0.8,))
    p = 0.83  # surely proved by the last look
    given_up = [n - k for n, (k,) in zip(schedule.times, schedule.futile, strict=False)]
    lost = crossing_probability(schedule.times[:-1], given_up, 1 - p)
    assert lost <= FUTILITY

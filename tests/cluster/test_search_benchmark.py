"""Sweeps without Ray (benchmarks/search.py): what counts within a budget."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from raybust import config as configuration
from raybust import methods

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from search import SLOTS, TASKS, Sweep

GAUSSIAN = TASKS[0]
METRIC = "certified_fast/acr"


@dataclass
class Line:
    """A trial of three measurements that reaches a value in a straight line."""

    value: float
    budget: float
    failure: str = ""

    @property
    def done(self):
        return not self.failure

    @property
    def curve(self):
        shares = (1 / 3,) if self.failure else (1 / 3, 2 / 3, 1)
        return [{"passes/per_image": self.budget * s, METRIC: self.value * s} for s in shares]

    def after(self, epoch):
        return self.curve[epoch - 1] if epoch <= len(self.curve) else None


@pytest.fixture
def swept(tmp_path):
    """Runs a sweep in which trial N has the value 1 - N / 100; some fail."""

    def swept(scheduler, end, failing=()):
        leaves = GAUSSIAN.leaves("tune.sampler=random", f"tune.scheduler={scheduler}")
        config, space, begun = configuration.compose(leaves, methods.get), GAUSSIAN.space(), []

        def begin(point):
            why = "it broke" if len(begun) in failing else ""
            begun.append(Line(1 - len(begun) / 100, config.train.budget[1], why))
            return begun[-1]

        sweep = Sweep(config, space, space.first_points(leaves, methods.get), begin, tmp_path)
        sweep.run(end)
        return sweep

    return swept


def test_without_early_stopping_the_budget_is_that_many_whole_trials(swept):
    times = [end for end, _ in swept("none", 3.0).ended]
    assert times == pytest.approx(sorted([1.0, 2.0, 3.0] * SLOTS))


def test_asha_stops_what_the_first_third_shows_to_be_worse(swept):
    sweep = swept("asha", 4.0)
    states = [one.state for one in sweep.study.records()]
    assert 0 < states.count("COMPLETE") < 4 * SLOTS
    assert states.count("PRUNED") > 4
    assert max(trial.value for _, trial in sweep.ended) == 1.0


def test_a_failed_trial_ends_without_a_value(swept):
    sweep = swept("none", 2.0, failing=(1, 2))
    reasons = [one.reason for one in sweep.study.records() if one.state == "FAIL"]
    assert reasons == ["it broke"] * 2
    assert {trial.failure for _, trial in sweep.ended} == {""}

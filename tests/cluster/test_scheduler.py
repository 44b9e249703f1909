"""Early stopping in the unit of the budget, and what a resumed sweep remembers. No cluster."""

import math
from dataclasses import replace

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from test_study import SPACE, study_of

from raybust import config as configuration
from raybust import methods
from raybust.cluster.scheduler import NUMBER, SPARED, make_scheduler
from raybust.config.tune import Tune
from raybust.search import study as study_module
from raybust.search.space import Space

METRIC = "certified_fast/acr"
GO, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


class Trial:
    """A trial as the scheduler sees it."""

    def __init__(self, name, spared=False, number=99):
        self.trial_id, self.config = name, {SPARED: spared, NUMBER: number}


def config_of(train, **tune):
    config = configuration.compose(
        [configuration.Leaf(*leaf, "test") for leaf in train], methods.get
    )
    return replace(config, tune=replace(Tune(), **tune))


def scheduler_of(folder, train, space=SPACE, **tune):
    scheduler = make_scheduler(config_of(train, **tune), study_of(folder, space=space))
    if tune.get("scheduler") != "none":
        assert scheduler.set_search_properties(METRIC, "max")
    return scheduler


def race(scheduler, unit, curves, spared=()):
    """Runs trials one after another; returns where each was stopped (budget spent), or None."""
    ends = []
    for number, curve in enumerate(curves):
        trial, end = Trial(f"t{number}", number in spared), None
        scheduler.on_trial_add(None, trial)
        for spent, value in curve:
            if scheduler.on_trial_result(None, trial, {unit: spent, METRIC: value}) == STOP:
                end = spent
                break
        ends.append(end)
    return ends


@pytest.mark.parametrize(
    ("train", "unit", "scale"),
    [
        ([("train.epochs", 30)], "epoch", 1),
        ([("train.passes", 60.0)], "passes/per_image", 2),
        ([("train.seconds", 15.0)], "train/seconds", 0.5),
    ],
)
def test_asha_stops_at_shares_of_the_budget_in_its_unit(tmp_path, train, unit, scale):
    """grace 0.1 of 30 with reduction 3: rungs at 3, 9, 27; the worse two thirds end there."""
    good = [(scale * epoch, epoch / 30) for epoch in range(1, 31)]
    bad = [(spent, value / 2) for spent, value in good]
    late = [(spent, value if spent <= 10 * scale else 0.0) for spent, value in good]
    scheduler = scheduler_of(tmp_path / "sweep", train)
    assert race(scheduler, unit, [good, bad, late]) == [None, 3 * scale, 27 * scale]


def test_a_trial_that_reports_rarely_meets_the_rungs_that_it_passed(tmp_path):
    """A method with many passes per step reports twice while another reports thirty times."""
    scheduler = scheduler_of(tmp_path / "sweep", [("train.passes", 60.0)])
    good = [(2 * epoch, 1.0) for epoch in range(1, 31)]
    assert race(scheduler, "passes/per_image", [good, [(22.0, 0.1), (44.0, 0.2)]]) == [None, 22.0]


METHODS = {"method.name": {"choice": ["standard", "gaussian"]}}


@pytest.mark.parametrize(
    ("block", "first"),
    [
        ({"train.epochs": {"int": [10, 90], "default": 30}}, 9),
        ({"train.epochs": {"int": [2, 10]}}, 1),
        ({"train.epochs": {"choice": [3, 2]}}, 1),
        # A standard trial has the schema's 30 epochs.
        (METHODS | {"train.epochs": {"int": [2, 10], "when": {"method.name": "gaussian"}}}, 3),
    ],
)
def test_the_longest_trial_of_the_space_is_the_budget(tmp_path, block, first):
    scheduler = scheduler_of(tmp_path / "sweep", [], space=Space.parse(block))
    good = [(epoch, 1.0) for epoch in range(1, 91)]
    weak = [(epoch, 0.1) for epoch in range(1, 91)]
    assert race(scheduler, "epoch", [good, weak]) == [None, first]


def test_no_scheduler_stops_nothing(tmp_path):
    assert type(scheduler_of(tmp_path / "sweep", [], scheduler="none")) is FIFOScheduler


def test_hyperband_has_three_brackets_of_rising_grace(tmp_path):
    scheduler = scheduler_of(tmp_path / "sweep", [("train.epochs", 30)], scheduler="hyperband")
    firsts = [min(milestone for milestone, _ in b._rungs) for b in scheduler._brackets]
    assert firsts == pytest.approx([3, 9, 27])


def test_the_median_rule_stops_what_is_below_the_median(tmp_path):
    curves = [[(epoch, level) for epoch in range(1, 11)] for level in (0.5, 0.6, 0.7, 0.55, 0.65)]
    options = {"train": [("train.epochs", 10)], "scheduler": "median", "grace": 0.3}
    scheduler = scheduler_of(tmp_path / "sweep", **options)
    # The first three have too few competitors; after that the median is 0.6.
    assert race(scheduler, "epoch", curves) == [None, None, None, 3, None]


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_trial_that_fails_in_its_first_epoch_disturbs_no_other(tmp_path, name):
    """Its one result has neither passes nor a number for the metric."""
    scheduler = scheduler_of(tmp_path / "sweep", [("train.passes", 60.0)], scheduler=name)
    failed = Trial("failed")
    scheduler.on_trial_add(None, failed)
    scheduler.on_trial_complete(None, failed, {"epoch": 0, METRIC: math.nan})
    curves = [[(2 * epoch, level) for epoch in range(1, 31)] for level in (0.5, 0.6, 0.7, 0.1)]
    assert race(scheduler, "passes/per_image", curves) == [None, None, None, 6]


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_resumed_sweep_stops_as_hard_as_one_that_was_never_killed(tmp_path, name):
    options = {"train": [("train.epochs", 10)], "scheduler": name, "grace": 0.3}
    levels = (0.5, 0.9, 0.7, 0.6)
    study = study_of(tmp_path / "sweep")
    for level in levels:
        number, _ = study.ask()
        for epoch in range(1, 11):
            study.report(number, epoch, level, {METRIC: level})
        study.complete(number)
    weak = [[(epoch, 0.4) for epoch in range(1, 11)]]
    assert race(scheduler_of(tmp_path / "sweep", **options), "epoch", weak) == [3]
    assert race(scheduler_of(tmp_path / "other", **options), "epoch", weak) == [None]


@pytest.mark.parametrize(("name", "level", "end"), [("asha", 0.4, None), ("median", 0.2, 3)])
def test_an_interrupted_trial_stands_where_it_stood(tmp_path, monkeypatch, name, level, end):
    """Resumed at epoch 8, where it has 0.9, it still counts with 0.3 at epoch 3."""
    monkeypatch.setattr(study_module, "_WRITE_S", 0)
    options = {"train": [("train.epochs", 10)], "scheduler": name, "grace": 0.3}
    study = study_of(tmp_path / "sweep")
    numbers = [study.ask()[0] for _ in range(3)]
    for number in numbers:
        for epoch in range(1, 8):
            study.report(number, epoch, 0.3, {METRIC: 0.3})
    scheduler = scheduler_of(tmp_path / "sweep", **options)
    for number in numbers:
        trial = Trial(f"again{number}", number=number)
        scheduler.on_trial_add(None, trial)
        assert scheduler.on_trial_result(None, trial, {"epoch": 8, METRIC: 0.9}) == GO
    assert race(scheduler, "epoch", [[(epoch, level) for epoch in range(1, 11)]]) == [end]


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_spared_trial_is_never_stopped_and_counts_for_the_others(tmp_path, name):
    options = {"train": [("train.epochs", 10)], "scheduler": name, "grace": 0.3}
    levels = (0.9, 0.8, 0.7, 0.1, 0.75, 0.2)
    curves = [[(epoch, level) for epoch in range(1, 11)] for level in levels]
    free = race(scheduler_of(tmp_path / "free", **options), "epoch", curves)
    assert free[3] is not None
    ends = race(scheduler_of(tmp_path / "spared", **options), "epoch", curves, spared=[3])
    assert ends[3] is None
    assert ends[5] is not None

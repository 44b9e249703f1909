"""What gp learns from stopped trials: an estimate of what they would have reached."""

import statistics
from dataclasses import replace

import optuna
import pytest

from raybust import config as configuration
from raybust import methods
from raybust.config.tune import Tune
from raybust.search.space import Space
from raybust.search.stopped import estimates
from raybust.search.study import Study

ACR, ACCURACY = "certified_fast/acr", "validation/accuracy"
SPACE = Space.parse({"train.lr": {"float": [0.0, 1.0]}})


def study_of(folder, **changes):
    config = configuration.compose([], methods.get)
    tune = replace(Tune(), **{"sampler": "gp", "startup": 6, **changes})
    return Study(replace(config, tune=tune), SPACE, folder, "mine")


def trial(study, curve, *, stopped, every=1):
    """Runs a trial that reports a value after every few epochs; returns its number and point."""
    number, point = study.ask()
    for epoch, value in enumerate(curve(point["train.lr"]) if callable(curve) else curve, 1):
        metrics = {ACR: value, ACCURACY: value / 2}
        study.report(number, epoch * every, value, metrics)
    (study.prune if stopped else study.complete)(number)
    return number, point["train.lr"]


def test_a_stopped_trial_grows_as_whole_ones_did_from_its_budget_on(tmp_path):
    study = study_of(tmp_path)
    for last in (0.5, 0.6, 0.9):
        trial(study, [0.1, 0.3, last], stopped=False)
    early, _ = trial(study, [0.05], stopped=True)
    late, _ = trial(study, [0.05, 0.2], stopped=True)
    found = estimates(study.records(), ACR, [ACR])
    assert found.keys() == {early, late}
    assert found[early][ACR] == pytest.approx(0.05 + 0.5)
    assert found[late][ACR] == pytest.approx(0.2 + 0.3)
    assert found[late][ACCURACY] == 0.1


def test_whole_trials_that_were_measured_later_alone_are_no_guide(tmp_path):
    study = study_of(tmp_path)
    trial(study, [0.3, 0.9], stopped=False, every=4)
    number, _ = trial(study, [0.05], stopped=True)
    assert estimates(study.records(), ACR, [ACR])[number][ACR] == 0.05


def test_a_stopped_trial_without_a_goal_has_no_estimate(tmp_path):
    study = study_of(tmp_path)
    number, _ = study.ask()
    study.prune(number)
    assert estimates(study.records(), ACR, [ACR]) == {}
    trial(study, [0.5], stopped=True)
    assert estimates(study.records(), ACR, [ACR, "certified_fast/moment_acr"]) == {}


def test_gp_learns_from_a_sweep_that_stopped_most_trials(tmp_path):
    """Best at a rate of 0.9; only two of twelve trials end, fewer than the start-up asks for."""

    def curve(rate):
        return [0.5 - abs(rate - 0.9) / 2]

    study = study_of(tmp_path)
    for turn in range(12):
        trial(study, curve, stopped=turn not in (1, 4))
    rates = [trial(study, curve, stopped=True)[1] for _ in range(5)]
    assert statistics.median(abs(rate - 0.9) for rate in rates) < 0.05


def test_ranks_and_importances_see_no_estimate(tmp_path):
    study = study_of(tmp_path)
    trial(study, [0.5], stopped=False)
    trial(study, [0.4], stopped=True)
    states = [t.state for t in study.with_means().get_trials()]
    assert states == [optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED]
    assert [record.state for record in study.records()] == ["COMPLETE", "PRUNED"]

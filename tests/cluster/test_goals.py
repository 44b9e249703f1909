"""Checks that trials report the metrics a sweep optimizes; test_bad_input has more cases."""

import kit
import pytest

from raybust.errors import RequestError
from raybust.stages.checks import check_sweep

LR = {"train.lr": {"float": [0.01, 0.2]}}
WRAPPED = {
    "method.name": {"choice": ["geodesic", "macer"]},
    "method.base.name": {"choice": ["covariance", "pgd"], "when": {"method.name": "geodesic"}},
}


def check(tmp_path, block, *settings):
    leaves = [leaf for leaf in kit.leaves(tmp_path, *settings) if leaf.key not in block]
    if "method.name" in block:
        leaves = [leaf for leaf in leaves if not leaf.key.startswith("method.")]
    return check_sweep(leaves, block)


def metric(name):
    return f"tune.metric={name}", "tune.scheduler=none"


@pytest.mark.parametrize("name", ["gaussian/any", "certified_fast/acr", "train/seconds"])
def test_metrics_of_the_loop_and_of_the_method(tmp_path, name):
    config, _ = check(tmp_path, LR, *metric(name))
    assert config.tune.metric == name


@pytest.mark.parametrize("name", ["geodesic/distance", "covariance/radius", "pgd/any", "macer/any"])
def test_metrics_of_every_method_and_base_that_is_searched(tmp_path, name):
    config, _ = check(tmp_path, WRAPPED, *metric(name))
    assert config.tune.metric == name


def test_metrics_of_a_base_that_a_searched_method_has_by_default(tmp_path):
    block = {"method.name": {"choice": ["beckman", "macer"]}}
    config, _ = check(tmp_path, block, *metric("pgd/any"))
    assert config.tune.metric == "pgd/any"


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (metric("pgd/any"), "tune.metric"),
        (metric("certified/acr"), "tune.metric"),
        (("tune.objectives=[max certified_fast/acr,min nobody/any]",), "tune.objectives"),
        (("tune.constraints=[nobody/any >= 0]",), "tune.constraints"),
    ],
)
def test_metrics_of_nobody_are_refused(tmp_path, asked, field):
    with pytest.raises(RequestError, match=rf"^{field}: unknown metric .*gaussian/\*"):
        check(tmp_path, LR, *asked)


EVERY_30 = ("train.epochs=30", "certified_fast.every=30")
LATE = ("certified_fast.every=0.9",)
MANY = {"train.epochs": {"choice": [10, 100], "default": 10}}


@pytest.mark.parametrize(
    ("block", "settings"),
    [
        (LR, (*EVERY_30, "tune.scheduler=none")),
        (LR, (*EVERY_30, "tune.metric=validation/accuracy")),
        (LR, ("train.epochs=30", "certified_fast.every=15")),
        (LR, ("train.epochs=1", "certified_fast.every=1")),
        (LR, (*EVERY_30, "train.passes=500")),
        (MANY, EVERY_30),
        (LR, (*LATE, "tune.grace=0.9")),
        (LR, ("certified_fast.every=0.5",)),
    ],
)
def test_a_measurement_that_early_stopping_sees_in_time(tmp_path, block, settings):
    check(tmp_path, block, *settings)


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
@pytest.mark.parametrize(
    ("block", "settings"),
    [(LR, EVERY_30), (LR, LATE), (MANY, ("certified_fast.every=60",))],
)
def test_a_measurement_that_early_stopping_sees_too_late(tmp_path, block, settings, scheduler):
    words = rf"certified_fast\.every: .* early stopping by {scheduler}.*at most 50 %"
    with pytest.raises(RequestError, match=words):
        check(tmp_path, block, *settings, f"tune.scheduler={scheduler}")


@pytest.mark.parametrize("key", ["certify.split", "evaluate.split"])
def test_finalists_are_for_the_test_set(tmp_path, key):
    check(tmp_path, LR, f"{key}=validation", "tune.finalists=0")
    with pytest.raises(RequestError, match=rf"{key}: got 'validation'.*tune\.finalists=0"):
        check(tmp_path, LR, f"{key}=validation")

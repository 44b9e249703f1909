"""`raybust compare SWEEP1 SWEEP2`: best so far at equal passes, over seeds of the search."""

import json
from dataclasses import replace

import kit
import numpy as np
import pytest
from scipy import stats

from raybust import config as configuration
from raybust import methods
from raybust.disk import runs
from raybust.search.board import SEARCH
from raybust.search.space import Space
from raybust.search.study import Study

BLOCK = {"train.lr": {"float": [0.01, 0.2], "log": True, "default": 0.05}}


def sweep(out, name, values, passes=10.0, data="d", **settings):
    """A sweep's folder with trials of those values; None is one that was stopped early."""
    config = kit.config(
        out, f"name={name}", *[f"{k.replace('__', '.')}={v}" for k, v in settings.items()]
    )
    plain = configuration.to_dict(config) | {SEARCH: BLOCK}
    folder = out / name
    identity = runs.identify(folder, "sweep", plain, True, data)
    study = Study(config, Space.parse(BLOCK), folder, identity.uid)
    for value in values:
        number, _ = study.ask()
        trial = folder / runs.TRIALS / f"{number:04d}"
        runs.identify(trial, "trial", configuration.to_dict(kit.config(out)))
        told = 0.0 if value is None else value
        metrics = dict.fromkeys(("certified_fast/acr", "validation/accuracy", "train/loss"), told)
        metrics["passes/forward"] = passes
        study.report(number, 1, told, metrics)
        if value is None:
            study.prune(number)
        else:
            study.complete(number)
    return folder


def asked(cli, out, *words):
    done = cli("compare", *words, "--out", out, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    rows = {
        row["column"].partition(" at ")[2].partition("%")[0]: row for row in found["comparisons"]
    }
    return found, rows


def test_the_best_so_far_is_compared_at_equal_passes(tmp_path, cli):
    """The first search spends 40 passes, the second, of twice the passes a trial, 160."""
    sweep(tmp_path, "a", [0.1, None, 0.3, 0.2])
    sweep(tmp_path, "b", [0.2, 0.1, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9], passes=20.0)
    found, rows = asked(cli, tmp_path, "a", "b")
    assert {key: (row["value_a"], row["value_b"]) for key, row in rows.items()} == {
        "50": (0.1, 0.2), "100": (0.3, 0.2)
    }  # fmt: skip
    assert {row["verdict"] for row in rows.values()} == {"cannot say"}
    assert rows["100"]["interval"] == [None, None]
    assert any("One search on a side" in note for note in found["notes"])
    assert any("100 % are 40 image passes" in note for note in found["notes"])
    assert (tmp_path / "compare" / "searches.png").stat().st_size


def test_groups_of_searches_are_compared_by_welchs_t(tmp_path, cli):
    source = np.random.default_rng(0)
    values = {side: [source.normal(mean, 0.02, 4).clip(0.01) for _ in range(4)]
              for side, mean in (("a", 0.5), ("b", 0.3))}  # fmt: skip
    for side, group in values.items():
        for number, trials in enumerate(group):
            sweep(tmp_path, f"{side}{number}", [float(value) for value in trials])
    groups = [",".join(f"{side}{number}" for number in range(4)) for side in "ab"]
    found, rows = asked(cli, tmp_path, *groups)
    best = [[max(trials) for trials in values[side]] for side in "ab"]
    assert rows["100"]["p"] == pytest.approx(stats.ttest_ind(*best, equal_var=False).pvalue)
    first = [[trials[0] for trials in values[side]] for side in "ab"]
    assert rows["25"]["difference"] == pytest.approx(np.mean(first[0]) - np.mean(first[1]))
    assert {row["verdict"] for row in rows.values()} == {"better"}
    assert rows["100"]["seeds"] == [4, 4]
    assert "a0 and 3 more against b0 and 3 more: better in" in found["summary"]


def test_less_is_better_where_the_sweep_minimizes(tmp_path, cli):
    how = {"tune.metric": "train/loss", "tune.mode": "min"}
    for number in range(3):
        sweep(tmp_path, f"a{number}", [0.30 + number / 1000, 0.2 + number / 1000], **how)
        sweep(tmp_path, f"b{number}", [0.90 + number / 1000, 0.8 + number / 1000], **how)
    _, rows = asked(cli, tmp_path, "a0,a1,a2", "b0,b1,b2")
    assert rows["100"]["value_a"] == pytest.approx(0.201)
    assert {row["verdict"] for row in rows.values()} == {"better"}


def test_searches_that_found_the_same_are_not_called_equivalent(tmp_path, cli):
    """Every search begins with the default point."""
    for name in ("a0", "a1", "b0", "b1"):
        sweep(tmp_path, name, [0.2, 0.1])
    _, rows = asked(cli, tmp_path, "a0,a1", "b0,b1")
    assert {row["verdict"] for row in rows.values()} == {"cannot say"}


def test_mistakes(tmp_path, cli):
    sweep(tmp_path, "a", [0.1])
    sweep(tmp_path, "stopped", [None, None])
    sweep(tmp_path, "other", [0.1], data="e")
    sweep(tmp_path, "loss", [0.1], **{"tune.metric": "train/loss", "tune.mode": "min"})
    for words, said in (
        (("a", "a/0"), "a is a sweep and a/0 is not; compare a/best or a trial of it"),
        (("a", "stopped"), "no trial of stopped finished within the constraints"),
        (("a", "other"), "a and other are of different data"),
        (("a", "loss"), "the sweeps have other metrics: a certified_fast/acr (max) and loss"),
    ):
        done = cli("compare", *words, "--out", tmp_path)
        assert (done.code, said in done.err) == (2, True), done.err


def test_values_that_were_measured_differently_are_not_compared(tmp_path, cli):
    sweep(tmp_path, "few", [0.1, 0.2], certified_fast__n=30)
    sweep(tmp_path, "many", [0.3, 0.4], certified_fast__n=3000)
    done = cli("compare", "few", "many", "--out", tmp_path)
    assert done.code == 2
    assert "certified_fast.n: 30 -> 3000" in done.err
    sweep(tmp_path, "rarely", [0.3, 0.4], certified_fast__n=30, certified_fast__every=0.5)
    assert cli("compare", "few", "rarely", "--out", tmp_path).code == 0


def test_sweeps_of_several_seeds_are_not_compared_as_searches(tmp_path, cli):
    one = sweep(tmp_path, "one", [0.3, 0.4])
    sweep(tmp_path, "raced", [0.3, 0.4])
    plain = runs.read_identity(tmp_path / "raced").config
    config = configuration.from_dict({k: v for k, v in plain.items() if k != SEARCH}, methods.get)
    config = replace(config, tune=replace(config.tune, seeds=3))
    uid = runs.read_identity(tmp_path / "raced").uid
    study = Study(config, Space.parse(BLOCK), tmp_path / "raced", uid)
    study.seeds.end(0, 1, {"certified_fast/acr": 0.35, "validation/accuracy": 0.5})
    done = cli("compare", one.name, "raced", "--out", tmp_path)
    assert done.code == 2
    assert "compare: raced has trials of several seeds" in done.err
    assert "raced/0,raced/0.1" in done.err

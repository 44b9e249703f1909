"""The record of a sweep: states, resumed trials, unusable storages."""

import fcntl
import math
import re
import sqlite3
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import kit
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from raybust import config as configuration
from raybust import methods
from raybust.cluster.sweep import Sweep, recall
from raybust.config.tune import Tune
from raybust.disk import runs
from raybust.errors import RequestError
from raybust.search import study as study_module
from raybust.search.sampler import sampler_name
from raybust.search.space import Space
from raybust.search.study import Study
from raybust.stages import tuning
from raybust.track import Journal

SPACE = Space.parse(
    {
        "method.name": {"choice": ["standard", "gaussian"], "default": "gaussian"},
        "method.sigma": {
            "float": [0.1, 1.0], "log": True, "default": 0.5, "when": {"method.name": "gaussian"},
        },
        "train.lr": {"float": [0.01, 1.0], "log": True, "default": 0.1},
    }
)  # fmt: skip
DEFAULTS = {"method.name": "gaussian", "method.sigma": 0.5, "train.lr": 0.1}


METRIC = "certified_fast/acr"


def study_of(
    folder,
    *,
    space=SPACE,
    seed=0,
    uid="mine",
    points=(),
    first=None,
    reading=False,
    train=(),
    **changes,
):
    folder.mkdir(exist_ok=True)
    config = configuration.compose(configuration.leaves_of_arguments(train), methods.get)
    config = replace(config, tune=replace(Tune(), **changes), seed=seed)
    first = [DEFAULTS if space is SPACE else {}] if first is None else first
    return Study(config, space, folder, uid, [*first, *points], reading=reading)


@pytest.fixture
def open_study(tmp_path):
    def open_study(**given):
        return study_of(tmp_path / "sweep", **given)

    return open_study


@pytest.fixture
def bare(tmp_path):
    """Opens the same study with Optuna alone."""

    def bare(name="sweep"):
        url = f"sqlite:///{tmp_path / name / 'study.db'}"
        return optuna.load_study(study_name=name, storage=url)

    return bare


def storage_of(place):
    """A storage in the form that Optuna's own functions accept."""
    if not place.startswith("journal:"):
        return place
    file = JournalFileBackend(place.removeprefix("journal:"))
    return optuna.storages.JournalStorage(file)


def ask(study, count):
    return [study.ask() for _ in range(count)]


def test_the_defaults_come_first_then_the_points_that_the_user_gave(open_study):
    points = (
        {"method.name": "standard", "train.lr": 0.02},
        {"method.name": "gaussian", "method.sigma": 0.25, "train.lr": 0.3},
    )
    study = open_study(points=points)
    assert ask(study, 3) == [(0, DEFAULTS), (1, points[0]), (2, points[1])]
    number, point = study.ask()
    assert number == 3
    assert point not in (DEFAULTS, *points)


def test_part_of_a_point_is_enough(open_study):
    study = open_study(points=({"train.lr": 0.02},))
    (_, first), (_, second) = ask(study, 2)
    assert first == DEFAULTS
    assert second["train.lr"] == 0.02
    assert second["method.name"] in ("standard", "gaussian")


def test_inactive_keys_are_absent(open_study):
    study = open_study(sampler="random")
    points = [point for _, point in ask(study, 20)]
    assert {point["method.name"] for point in points} == {"standard", "gaussian"}
    for point in points:
        assert ("method.sigma" in point) == (point["method.name"] == "gaussian")
        assert 0.01 <= point["train.lr"] <= 1


def test_every_state_is_what_it_was(open_study, monkeypatch):
    monkeypatch.setattr(study_module, "_WRITE_S", 0)
    study = open_study()
    ask(study, 6)
    for number in range(5):
        study.report(number, 1, 0.1 * number, {METRIC: 0.1 * number})
    study.report(0, 2, 0.7, {METRIC: 0.7})
    study.complete(0)
    study.prune(1)
    study.fail(2, "it broke")
    study.report(3, 2, math.nan, {METRIC: math.nan})
    study.complete(3)
    study.report(4, 2, math.nan, {METRIC: math.nan, "a/b": 3.0})
    for found in (study, open_study()):
        records = found.records()
        assert [r.number for r in records] == list(range(6))
        assert [r.state for r in records] == [
            "COMPLETE", "PRUNED", "FAIL", "FAIL", "RUNNING", "RUNNING",
        ]  # fmt: skip
        assert [r.reason for r in records] == [
            None,
            None,
            "it broke",
            f"its {METRIC} is nan",
            None,
            None,
        ]
        assert [r.epoch for r in records] == [2, 1, 1, 1, 1, 0]
        assert [r.value for r in records] == [0.7, 0.1, 0.2, pytest.approx(0.3), 0.4, None]
        assert records[0].metrics == {METRIC: 0.7}
        assert records[4].metrics["a/b"] == 3.0
        assert records[5].metrics == {}
        assert records[0].point == DEFAULTS
        assert found.finished() == 4


def test_what_is_measured_now_and_then_stays_until_it_is_measured_again(open_study):
    study = open_study()
    ask(study, 1)
    for epoch, value in enumerate([math.nan, 0.3, math.nan, 0.4, math.nan], 1):
        measured = {} if math.isnan(value) else {METRIC: value}
        study.report(0, epoch, value, measured | {"train/loss": epoch / 10})
    (record,) = study.records()
    assert record.history == {2: 0.3, 4: 0.4}
    assert record.metrics == {METRIC: 0.4, "train/loss": 0.5}
    study.prune(0)
    assert study.records()[0].value == 0.4


def test_what_was_running_is_handed_out_again_and_nothing_else(open_study):
    study = open_study()
    asked = ask(study, 4)
    study.report(2, 1, 0.5, {METRIC: 0.5})
    study.report(0, 1, 0.9, {METRIC: 0.9})
    study.complete(0)
    study.prune(1)
    del study
    again = open_study()
    assert again.interrupted() == asked[2:]
    again.report(2, 1, 0.5, {METRIC: 0.5})  # an epoch repeated after a resume is no error
    again.report(2, 2, 0.6, {METRIC: 0.6})
    again.complete(2)
    again.fail(3, "no")
    assert [r.state for r in again.records()] == ["COMPLETE", "PRUNED", "COMPLETE", "FAIL"]
    assert again.interrupted() == []
    assert again.ask()[0] == 4


def test_a_trial_that_died_before_it_had_its_point_gets_it_and_keeps_its_number(open_study, bare):
    points = ({"method.name": "standard", "train.lr": 0.02},)
    open_study(points=points)
    plain = bare()
    plain.ask()  # killed before anything was drawn
    half = plain.ask()  # killed when one key was
    half.suggest_categorical("method.name", ["standard", "gaussian"])
    plain.ask()
    again = open_study(points=points)
    found = again.interrupted()
    assert found[:2] == [(0, DEFAULTS), (1, points[0])]
    assert found[2][0] == 2
    assert again.ask()[0] == 3
    assert [r.state for r in again.records()] == ["RUNNING"] * 4
    again.report(0, 1, 0.5, {METRIC: 0.5})
    again.complete(0)
    assert again.finished() == 1


def test_an_earlier_start_enqueues_its_points_once(open_study):
    open_study(points=({"train.lr": 0.02},))
    study = open_study(points=({"train.lr": 0.02},))
    points = [point for _, point in ask(study, 6)]
    assert points.count(DEFAULTS) == 1
    assert [point["train.lr"] for point in points].count(0.02) == 1


def test_a_second_start_draws_other_points_than_the_first(tmp_path):
    def draw(name, starts):
        found = []
        for _ in range(starts):
            study = study_of(tmp_path / name, sampler="random")
            found += [point["train.lr"] for _, point in ask(study, 6 // starts)]
        return found

    whole, parts = draw("whole", 1), draw("parts", 2)
    assert len(set(parts)) == 6
    assert draw("again", 1) == whole
    assert study_of(tmp_path / "other", seed=1).ask()[1] == DEFAULTS


def test_the_direction_is_as_configured(open_study, bare):
    open_study(mode="min")
    assert bare().direction.name == "MINIMIZE"


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("sqlite:////nowhere/at/all/study.db", "unable to open"),
        ("sqlite:///{folder}", "unable to open"),
        ("sqlite:///{folder}/text.db", "not a database"),
        ("foo://bar", "foo"),
        ("nonsense", "URL"),
        ("mysql+pymysql://somebody:secret@nowhere/study", "pymysql"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line(open_study, tmp_path, storage, expected):
    (tmp_path / "text.db").write_text("no database at all\n" * 100)
    with pytest.raises(RequestError) as found:
        open_study(storage=storage.format(folder=tmp_path))
    text = str(found.value)
    assert text.startswith("tune.storage: the study cannot be opened: ")
    assert expected in text
    assert "\n" not in text
    assert "secret" not in text


def test_a_storage_elsewhere_is_used(open_study, tmp_path):
    file = tmp_path / "elsewhere.db"
    open_study(storage=f"sqlite:///{file}").ask()
    assert file.exists()
    assert not (tmp_path / "sweep" / "study.db").exists()


def test_a_journal_file_is_a_storage_too(open_study, tmp_path):
    study = open_study(storage=f"journal:{tmp_path / 'log'}")
    run(study, 3)
    assert (tmp_path / "log").exists()
    again = open_study(storage=f"journal:{tmp_path / 'log'}")
    assert [r.state for r in again.records()] == ["COMPLETE"] * 3


def test_a_storage_that_is_read_only_is_one_line(open_study, tmp_path):
    run(open_study(), 1)
    file = tmp_path / "sweep" / "study.db"
    with pytest.raises(RequestError, match=r"tune.storage: .*readonly"):
        open_study(storage=f"sqlite:///file:{file}?mode=ro&uri=true")


def test_a_storage_that_another_holds_is_one_line(open_study, tmp_path, monkeypatch):
    monkeypatch.setattr("raybust.search.database._LOCKED_S", 0.1)
    run(open_study(), 1)
    with sqlite3.connect(tmp_path / "sweep" / "study.db") as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RequestError, match=r"tune.storage: .*locked"):
            open_study()
        holder.rollback()


def test_a_database_of_mlflow_is_told_from_one_of_another_optuna(open_study, tmp_path):
    run(open_study(), 1)
    with sqlite3.connect(tmp_path / "sweep" / "study.db") as connection:
        connection.execute("update alembic_version set version_num = 'v3.0.0.d'")
        connection.execute("update version_info set library_version = '3.6.1'")
    with pytest.raises(RequestError, match=r"tune.storage: .* 3.6.1.*optuna storage upgrade"):
        open_study()
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("create table alembic_version (version_num varchar(32))")
        connection.execute("insert into alembic_version values ('e5f6')")
    for _ in range(2):  # also after Optuna has added its own tables
        with pytest.raises(RequestError, match="contains other tables"):
            open_study(storage=f"sqlite:///{foreign}")


def test_sweeps_of_one_name_share_a_storage_and_no_study(open_study, tmp_path):
    """As after --no-resume, or from two folders; the study's readable name is the sweep's."""
    shared = f"sqlite:///{tmp_path / 'shared.db'}"
    run(open_study(storage=shared), 1)
    assert open_study(storage=shared, uid="theirs").finished() == 0
    assert open_study(storage=shared).finished() == 1
    assert sorted(optuna.get_all_study_names(shared)) == ["sweep-mine", "sweep-theirs"]


@pytest.mark.parametrize("place", ["sqlite:///{}", "journal:{}"])
def test_a_sweep_that_was_moved_has_its_study_in_a_shared_storage(tmp_path, place):
    storage = place.format(tmp_path / "shared")
    run(study_of(tmp_path / "sweep", storage=storage), 2)
    run(study_of(tmp_path / "other", storage=storage, uid="theirs"), 1)
    moved = (tmp_path / "sweep").rename(tmp_path / "sweep.1")
    assert study_of(moved, storage=storage).finished() == 2
    assert study_of(moved, storage=storage, reading=True).finished() == 2
    assert len(optuna.get_all_study_names(storage_of(storage))) == 2


@pytest.mark.parametrize("place", [None, "sqlite:///{}", "journal:{}"])
def test_who_only_reads_makes_nothing(tmp_path, place):
    storage = place.format(tmp_path / "shared") if place else None
    (tmp_path / "sweep").mkdir()

    def refused():
        with pytest.raises(RequestError) as told:
            study_of(tmp_path / "sweep", storage=storage, first=[], reading=True)
        assert re.fullmatch(r"tune\.storage: .* has no study of sweep sweep .*", str(told.value))

    refused()
    assert [path.name for path in tmp_path.rglob("*")] == ["sweep"]
    study_of(tmp_path / "other", storage=storage, uid="theirs")
    refused()


def test_reading_needs_no_right_to_write(open_study, tmp_path):
    run(open_study(storage=f"sqlite:///{tmp_path / 'shared.db'}"), 1)
    only = f"sqlite:///file:{tmp_path / 'shared.db'}?mode=ro&uri=true"
    assert open_study(storage=only, first=[], reading=True).finished() == 1


def test_a_study_of_another_space_is_refused_with_the_difference(open_study):
    run(open_study(), 1)
    other = {
        "method.name": {"choice": ["standard", "gaussian"], "default": "gaussian"},
        "train.lr": {"float": [0.01, 2.0], "log": True, "default": 0.1},
    }
    with pytest.raises(RequestError) as found:
        open_study(space=Space.parse(other))
    assert "its study has a different search space, in method.sigma, train.lr" in str(found.value)


# How tpe ranks stopped trials

PASSES = ("train.passes=200",)


def spend(study, *curve):
    """A trial that reports (epoch, passes, value) and is stopped."""
    number, _ = study.ask()
    for epoch, passes, value in curve:
        study.report(number, epoch, value, {METRIC: value, "passes/per_image": passes})
    study.prune(number)
    return number


def steps(study):
    return [trial.intermediate_values for trial in study.study.get_trials()]


def test_a_stopped_trial_stands_at_the_share_of_its_budget(open_study):
    """Ten epochs of 2 passes are less than two of 32; 20 and 22 passes ended at the same rung."""
    study = open_study(train=PASSES)
    spend(study, *((epoch, 2.0 * epoch, 0.1) for epoch in range(1, 11)))
    spend(study, (1, 32.0, 0.4), (2, 64.0, 0.5))
    spend(study, (1, 11.0, 0.2), (2, 22.0, 0.3))
    assert [max(of_trial.items()) for of_trial in steps(study)] == [(2, 0.1), (6, 0.5), (2, 0.3)]


def test_epochs_are_written_once_a_second_and_read_at_once(open_study, bare, monkeypatch):
    study = open_study()
    number, _ = study.ask()
    writes, storage = [], study.study._storage
    write = storage.set_trial_user_attr
    monkeypatch.setattr(storage, "set_trial_user_attr", lambda *a: (writes.append(a), write(*a)))
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for epoch in range(1, 51):
        study.report(number, epoch, epoch / 100, {METRIC: epoch / 100, "a/b": 1.0})
        assert study.record(number).epoch == epoch
        now[0] += 0.02
    assert len(writes) == 2
    assert list(bare().trials[number].user_attrs["history"]) == ["1"]
    now[0] += 1
    study.report(number, 51, 0.51, {METRIC: 0.51})
    assert len(bare().trials[number].user_attrs["history"]) == 51
    study.report(number, 52, 0.52, {METRIC: 0.52})
    study.complete(number)
    assert bare().trials[number].user_attrs["history"]["52"] == [52, 0.52]
    assert bare().trials[number].user_attrs["metrics"] == {METRIC: 0.52, "a/b": 1.0}
    assert bare().trials[number].value == 0.52


def test_epochs_that_a_kill_kept_from_the_study_come_from_the_journal(open_study, tmp_path):
    number, _ = open_study().ask()
    folder = tmp_path / "sweep" / runs.TRIALS / f"{number:04d}"
    with Journal(folder / runs.JOURNAL) as journal:
        journal.start("key", "experiment", "name")
        for epoch in (1, 2, 3):
            journal.metrics({METRIC: epoch / 10, "train/loss": math.nan}, epoch)
    again = open_study()
    again.interrupted()
    again.report(number, 1, 0.1, {METRIC: 0.1})
    config = configuration.compose([], methods.get)
    config = replace(config, tune=replace(config.tune, metric=METRIC))
    recall(Sweep(config, [], again, tmp_path / "sweep", None), number)
    found = again.record(number)
    assert (found.history, found.value) == ({1: 0.1, 2: 0.2, 3: 0.3}, 0.3)
    assert math.isnan(found.metrics["train/loss"])
    again.prune(number)
    assert again.record(number).history == {1: 0.1, 2: 0.2, 3: 0.3}


def test_epochs_are_steps_themselves_and_one_may_be_repeated(open_study):
    for train, expected in (((), {2: 0.2}), (PASSES, {10: 0.2})):
        study = open_study(train=train, seed=len(train))
        number = spend(study, (1, 50.0, 0.1), (1, 50.0, 0.1), (2, 100.0, 0.2))
        assert steps(study)[number] == expected
        assert study.records()[number].spent == {1: 50.0 if train else 1, 2: 100.0 if train else 2}


# Several objectives, constraints

BOTH = {"objectives": (f"max {METRIC}", "max validation/accuracy")}


def run(study, count, value=lambda point: point["train.lr"], **others):
    """Asks for trials and completes them."""
    for _ in range(count):
        number, point = study.ask()
        metrics = {METRIC: value(point), **{k: f(point) for k, f in others.items()}}
        study.report(number, 1, metrics[METRIC], metrics)
        study.complete(number)
    return study.records()


@pytest.mark.parametrize(("mode", "best"), [("max", [0, 1, 3, 5]), ("min", [3, 5])])
def test_the_pareto_set_is_what_nothing_dominates(open_study, mode, best):
    study = open_study(objectives=(f"max {METRIC}", f"{mode} validation/accuracy"))
    values = [(1, 5), (2, 4), (2, 3), (3, 1), (0, 5), (3, 1)]
    for first, second in values:
        number, _ = study.ask()
        study.report(number, 1, first, {METRIC: first, "validation/accuracy": second})
        study.complete(number)
    assert study.pareto() == best
    assert [t.number for t in study.study.best_trials] == best
    assert [r.value for r in study.records()] == [first for first, _ in values]


def test_a_stopped_trial_of_several_objectives_keeps_its_history(open_study):
    study = open_study(**BOTH)
    number, _ = study.ask()
    study.report(number, 1, 0.2, {METRIC: 0.2, "validation/accuracy": 0.4})
    study.report(number, 2, 0.3, {METRIC: 0.3, "validation/accuracy": 0.5})
    study.prune(number)
    (record,) = study.records()
    assert (record.state, record.history, record.value) == ("PRUNED", {1: 0.2, 2: 0.3}, 0.3)
    assert study.ask() is not None


def test_an_objective_that_is_not_finite_fails_the_trial(open_study):
    study = open_study(**BOTH)
    number, _ = study.ask()
    study.report(number, 1, 0.2, {METRIC: 0.2, "validation/accuracy": math.nan})
    study.complete(number)
    assert study.records()[0].reason == "its validation/accuracy is nan"


def test_trials_know_whether_they_meet_the_constraints(open_study):
    study = open_study(constraints=("validation/accuracy >= 0.8", "train/loss <= 1"))
    for accuracy, loss in ((0.9, 0.5), (0.8, 1.0), (0.79, 0.5), (0.9, 1.1), (math.nan, 0.5)):
        number, _ = study.ask()
        metrics = {METRIC: 0.5, "validation/accuracy": accuracy, "train/loss": loss}
        study.report(number, 1, 0.5, metrics)
        study.complete(number)
    assert [r.feasible for r in study.records()] == [True, True, False, False, False]
    number, _ = study.ask()
    assert study.records()[-1].feasible is None


@pytest.mark.parametrize(("sampler", "least"), [("tpe", 0.6), ("gp", 0.98)])
def test_the_sampler_avoids_what_breaks_a_constraint(tmp_path, sampler, least):
    """The metric rises with the rate, and the constraint forbids the rate's upper half."""
    space = Space.parse({"train.lr": {"float": [0.0, 1.0]}})

    def share(constraints):
        study = study_of(
            tmp_path / str(len(constraints)), space=space, startup=5, constraints=constraints,
            sampler=sampler,
        )  # fmt: skip
        records = run(study, 40, **{"validation/accuracy": lambda point: 1 - point["train.lr"]})
        late = [record.point["train.lr"] for record in records[20:]]
        return sum(rate <= 0.501 for rate in late) / len(late)

    assert share(("validation/accuracy >= 0.5",)) >= least
    assert share(()) <= 0.4


# Samplers


@pytest.mark.parametrize("sampler", ["auto", "tpe", "gp", "cmaes", "nsga2", "qmc", "random"])
def test_every_sampler_searches_a_conditional_space_and_goes_on_after_a_kill(open_study, sampler):
    options = {"sampler": sampler, "startup": 2, "population": 3}
    run(open_study(**options), 4)
    records = run(open_study(**options), 4)
    assert [record.state for record in records] == ["COMPLETE"] * 8
    assert records[0].point == DEFAULTS
    points = [tuple(record.point.items()) for record in records]
    assert len(set(points)) >= 7
    assert all(SPACE.contains(record.point) for record in records)


@pytest.mark.parametrize(
    ("space", "changes", "expected"),
    [
        ({"train.lr": {"float": [0.0, 1.0]}}, {}, "gp"),
        ({"train.lr": {"float": [0.0, 1.0]}}, {"trials": 300}, "gp"),
        ({"train.lr": {"float": [0.0, 1.0]}}, {"trials": 301}, "tpe"),
        ({"train.lr": {"float": [0.0, 1.0]}}, {"sampler": "random"}, "random"),
        (
            {"train.lr": {"float": [0.0, 1.0]}},
            {"objectives": (f"max {METRIC}", "max validation/accuracy")},
            "tpe",
        ),
        ({"method.name": {"choice": ["standard", "gaussian"]}}, {}, "tpe"),
        ({"method.name": {"choice": ["standard", "gaussian"]}}, {"sampler": "gp"}, "gp"),
    ],
)
def test_auto_is_gp_where_every_trial_has_the_same_method(space, changes, expected):
    config = configuration.compose([], methods.get)
    config = replace(config, tune=replace(Tune(), **changes))
    assert sampler_name(config, Space.parse(space)) == expected


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_samplers_that_model_beat_the_random_one(tmp_path, sampler):
    space = Space.parse({"train.lr": {"float": [0.0, 1.0]}, "train.ema": {"float": [0.0, 0.9]}})

    def value(point):
        return -((point["train.lr"] - 0.123) ** 2) - (point["train.ema"] - 0.456) ** 2

    def late(name):
        study = study_of(tmp_path / name, space=space, startup=5, sampler=name)
        return statistics.median(record.value for record in run(study, 30, value)[15:])

    assert late(sampler) > late("random") / 2


def test_a_grid_is_walked_once_and_then_exhausted(open_study):
    space = Space.parse(
        {
            "train.epochs": {"int": [2, 6], "step": 2},
            "train.optimizer": {"choice": ["sgd", "adamw"]},
        }
    )
    options = {"space": space, "sampler": "grid", "first": []}
    run(open_study(**options), 4, lambda point: 1.0)
    study = open_study(**options)
    records = run(study, 2, lambda point: 1.0)
    assert {tuple(r.point.values()) for r in records} == {
        (epochs, name) for epochs in (2, 4, 6) for name in ("sgd", "adamw")
    }
    assert study.ask() is None


def test_a_grid_hands_out_no_point_that_is_running(open_study):
    space = Space.parse(
        {"train.ema": {"choice": [0.0, 0.9]}, "train.optimizer": {"choice": ["sgd", "adamw"]}}
    )
    options = {"space": space, "sampler": "grid", "first": []}
    study = open_study(**options)
    asked = ask(study, 3)
    study.fail(0, "no")
    asked += ask(open_study(**options), 5)
    points = [tuple(found[1].values()) for found in asked if found is not None]
    assert len(set(points)) == len(points) == 4
    assert asked[4:] == [None] * 4


# Warm start


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_what_an_earlier_sweep_found_is_where_the_next_one_begins(tmp_path, sampler):
    space = Space.parse({"train.lr": {"float": [0.0, 1.0]}})

    def value(point):
        return -abs(point["train.lr"] - 0.9)

    earlier = study_of(
        tmp_path / "earlier", space=space, first=[], startup=5, sampler=sampler, seed=1
    )
    run(earlier, 20, value)
    study = study_of(tmp_path / "sweep", space=space, first=[], startup=5, sampler=sampler, seed=1)
    assert study.warm_start(earlier, "earlier") == 20
    assert (study.finished(), study.records()) == (0, [])
    records = run(study, 6, value)
    assert records[0].number == 20
    near = statistics.median(-value(record.point) for record in records)
    cold = study_of(tmp_path / "cold", space=space, first=[], startup=5, sampler=sampler, seed=1)
    assert near < 0.1 < statistics.median(-value(record.point) for record in run(cold, 5, value))


def test_only_trials_that_lie_in_the_space_are_learned_from(tmp_path):
    earlier = study_of(tmp_path / "earlier", sampler="random")
    run(earlier, 12)
    number, _ = earlier.ask()
    earlier.fail(number, "no")
    fitting = [r for r in earlier.records() if r.point["train.lr"] <= 0.1 and r.state == "COMPLETE"]
    narrow = Space.parse(
        {
            "method.name": {"choice": ["standard", "gaussian"]},
            "method.sigma": {"float": [0.1, 1.0], "log": True, "when": {"method.name": "gaussian"}},
            "train.lr": {"float": [0.01, 0.1], "log": True},
        }
    )
    study = study_of(tmp_path / "sweep", space=narrow)
    assert 0 < study.warm_start(earlier, "earlier") == len(fitting) < 12


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_what_was_learned_is_held_against_the_constraints_of_this_sweep(tmp_path, sampler):
    """The metric rises with the rate, and only the later sweep forbids the rate's upper half."""
    space = Space.parse({"train.lr": {"float": [0.0, 1.0]}})
    others = {"validation/accuracy": lambda point: 1 - point["train.lr"]}
    earlier = study_of(tmp_path / "earlier", space=space, first=[], startup=5, sampler=sampler)
    run(earlier, 20, **others)
    bound = "validation/accuracy >= 0.5"
    study = study_of(
        tmp_path / "sweep", space=space, first=[], startup=5, sampler=sampler, constraints=(bound,)
    )
    study.warm_start(earlier, "earlier")
    for trial in study.study.get_trials():
        assert trial.constraints == {bound: pytest.approx(trial.params["train.lr"] - 0.5)}
    late = [record.point["train.lr"] for record in run(study, 15, **others)]
    assert sum(rate <= 0.501 for rate in late) >= 8


def test_stopped_trials_of_another_budget_are_learned_from_at_this_one_s_steps(tmp_path):
    earlier = study_of(tmp_path / "earlier")
    spend(earlier, *((epoch, 4.0 * epoch, epoch / 10) for epoch in range(1, 6)))
    number, _ = earlier.ask()
    earlier.prune(number)
    study = study_of(tmp_path / "sweep", train=PASSES)
    assert study.warm_start(earlier, "earlier") == 2
    assert steps(study)[-2:] == [{2: 0.5}, {}]


def test_a_sweep_of_the_same_objectives_in_another_order_is_no_warm_start(tmp_path):
    accuracy = "validation/accuracy"
    both = f"tune.objectives=[max {METRIC},max {accuracy}]"
    earlier = kit.config(tmp_path, both, "name=earlier")
    runs.identify(tmp_path / "earlier", "sweep", configuration.to_dict(earlier))
    turned = kit.config(tmp_path, both, f"tune.metric={accuracy}", "tune.warm_start=earlier")
    with pytest.raises(RequestError, match=r"tune.warm_start: earlier optimizes .*in that order"):
        tuning._earlier_study(turned, SPACE, tmp_path)


def test_two_commands_never_share_a_sweep(out, tmp_path):
    """The second one fails with exit code 2 before it changes anything."""
    (out / ".taken.lock").touch()
    with (out / ".taken.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "raybust", "tune", "search_spaces/gaussian.yaml"]
        command += [f"out={out}", "name=taken", "tune.trials=1"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.splitlines()[-1].startswith("raybust: taken: another command is running it")
    assert len(found.stderr.splitlines()) == 1
    assert not (out / "taken").exists()
    assert kit.uri(out)


def test_the_first_points_are_known_from_the_sampler_s_also_after_a_kill(open_study):
    study = open_study(points=({"train.lr": 0.02},))
    ask(study, 3)
    assert [study.is_enqueued(number) for number in range(3)] == [True, True, False]
    again = open_study(points=({"train.lr": 0.02},))
    assert [again.is_enqueued(number) for number, _ in again.interrupted()] == [True, True, False]


@pytest.mark.parametrize("storage", [None, "journal:{}/shared.log"])
@pytest.mark.parametrize("named", [True, False])  # False: a study that an earlier version began
def test_the_objectives_of_a_resumed_study_have_names(tmp_path, monkeypatch, storage, named):
    changes = {
        "storage": storage and storage.format(tmp_path),
        "objectives": (f"max {METRIC}", "max validation/accuracy"),
    }
    with monkeypatch.context() as patch:
        if not named:
            patch.setattr(optuna.Study, "set_metric_names", lambda *_: None)
        begun = study_of(tmp_path / "mine", **changes).study
    begun.ask()
    assert (begun.metric_names is not None) == named
    resumed = study_of(tmp_path / "mine", **changes).study
    assert resumed.metric_names == [METRIC, "validation/accuracy"]
    assert len(resumed.trials) == len(begun.trials)

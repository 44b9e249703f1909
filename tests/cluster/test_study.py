"""The record of a sweep: states, what is handed out again, and storages that are not there."""

import fcntl
import math
import subprocess
import sys
from dataclasses import replace

import kit
import optuna
import pytest

from raybust.cluster.space import Space
from raybust.cluster.study import Study
from raybust.config.schema import Tune
from raybust.errors import RequestError

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


@pytest.fixture
def open_study(tmp_path):
    def open_study(seed=0, **changes):
        return Study(replace(Tune(), **changes), SPACE, tmp_path, "sweep", seed)

    return open_study


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


def test_every_state_is_what_it_was(open_study):
    study = open_study()
    ask(study, 6)
    for number in range(5):
        study.report(number, 1, 0.1 * number, {"a/b": 1.0})
    study.report(0, 2, 0.7, {"a/b": 2.0})
    study.complete(0, 0.7)
    study.prune(1)
    study.fail(2, "it broke")
    study.complete(3, math.nan)
    study.report(4, 2, math.nan, {"a/b": 3.0})
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
            "its value is nan",
            None,
            None,
        ]
        assert [r.epoch for r in records] == [2, 1, 1, 1, 1, 0]
        assert [r.value for r in records] == [0.7, 0.1, 0.2, pytest.approx(0.3), 0.4, None]
        assert records[0].metrics == {"a/b": 2.0}
        assert records[4].metrics == {"a/b": 3.0}
        assert records[5].metrics == {}
        assert records[0].point == DEFAULTS
        assert found.finished() == 4


def test_what_was_running_is_handed_out_again_and_nothing_else(open_study):
    study = open_study()
    asked = ask(study, 4)
    study.report(2, 1, 0.5, {})
    study.complete(0, 0.9)
    study.prune(1)
    del study
    again = open_study()
    assert again.interrupted() == asked[2:]
    again.report(2, 1, 0.5, {})  # an epoch repeated after a resume is no error
    again.report(2, 2, 0.6, {})
    again.complete(2, 0.6)
    again.fail(3, "no")
    assert [r.state for r in again.records()] == ["COMPLETE", "PRUNED", "COMPLETE", "FAIL"]
    assert again.interrupted() == []
    assert again.ask()[0] == 4


def test_a_trial_that_died_before_it_had_its_point_gets_it_and_keeps_its_number(
    open_study, tmp_path
):
    points = ({"method.name": "standard", "train.lr": 0.02},)
    open_study(points=points)
    bare = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 'study.db'}")
    bare.ask()  # killed before anything was drawn
    half = bare.ask()  # killed when one key was
    half.suggest_categorical("method.name", ["standard", "gaussian"])
    bare.ask()
    again = open_study(points=points)
    found = again.interrupted()
    assert found[:2] == [(0, DEFAULTS), (1, points[0])]
    assert found[2][0] == 2
    assert again.ask()[0] == 3
    assert [r.state for r in again.records()] == ["RUNNING"] * 4
    again.complete(0, 0.5)
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
            study = Study(Tune(sampler="random"), SPACE, tmp_path, name, 0)
            found += [point["train.lr"] for _, point in ask(study, 6 // starts)]
        return found

    whole, parts = draw("whole", 1), draw("parts", 2)
    assert len(set(parts)) == 6
    assert draw("again", 1) == whole
    assert Study(Tune(), SPACE, tmp_path, "other", 1).ask()[1] == DEFAULTS


def test_the_direction_is_as_configured(open_study, tmp_path):
    open_study(mode="min")
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert study.direction.name == "MINIMIZE"


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("sqlite:////nowhere/at/all/study.db", "unable to open"),
        ("sqlite:///{folder}", "unable to open"),
        ("sqlite:///{folder}/text.db", "not a database"),
        ("foo://bar", "foo"),
        ("nonsense", "URL"),
        ("mysql+pymysql://somebody:secret@nowhere/study", "Failed to import"),
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
    assert not (tmp_path / "study.db").exists()


def test_two_commands_never_share_a_sweep(out, tmp_path):
    """The second one is told so, with exit code 2, before it touches anything."""
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

"""`raybust report SWEEP` from the study on disk: running, killed, failed, done; no measurement."""

import json
import os
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import kit
import pytest
import torch

from raybust import config as configuration
from raybust import data, methods
from raybust.certification import Protocol
from raybust.config import leaves_of_arguments
from raybust.disk import checkpoint, runs
from raybust.errors import RequestError, WorkError
from raybust.reporting import leaderboard
from raybust.request import find
from raybust.search.board import SEARCH, board_of, importances, make_board, write_space
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord
from raybust.search.space import Space
from raybust.search.study import Study
from raybust.stages import finalists
from raybust.stages import tuning as run_sweep
from raybust.stages.checks import check_sweep
from raybust.stages.tuning import _earlier_study, _leaderboard
from raybust.training.fit import fit

BLOCK = {"train.lr": {"float": [0.01, 0.2], "log": True, "default": 0.05}}
FINAL = {"accuracy": 0.875, "certified": {"certified/acr": 0.4321}, "log": None, "attacked": None}


@pytest.fixture
def sweep(tmp_path):
    """Creates a sweep's folder in `tmp_path/out` and its study, as `raybust tune` does."""

    def make(*settings, block=BLOCK):
        config = kit.config(tmp_path / "out", "name=search", *settings)
        folder = tmp_path / "out" / "search"
        plain = configuration.to_dict(config) | {SEARCH: block}
        identity = runs.identify(folder, "sweep", plain)
        return Study(config, Space.parse(block), folder, identity.uid), folder

    return make


def tell(study, folder, value, state="COMPLETE", epochs=3):
    """Records one trial from start to end; RUNNING has no end."""
    number, _ = study.ask()
    config = kit.config(folder.parent)
    trial = folder / runs.TRIALS / f"{number:04d}"
    runs.identify(trial, "trial", configuration.to_dict(config))
    for epoch in range(1, epochs + 1):
        metrics = {"certified_fast/acr": value, "validation/accuracy": 0.9, "passes/forward": 10.0}
        study.report(number, epoch, value, metrics)
    if state == "COMPLETE":
        study.complete(number)
    elif state == "PRUNED":
        study.prune(number)
    elif state == "FAIL":
        study.fail(number, "the loss became nan")


def report(cli, folder, *more):
    result = cli("report", "search", *more, "--out", folder.parent)
    assert result.code == 0, result.err
    return result


def test_a_killed_sweep_has_a_page_from_its_study(sweep, cli):
    study, folder = sweep()
    tell(study, folder, 0.25)
    tell(study, folder, 0.5)
    tell(study, folder, 0.1, "PRUNED", 1)
    tell(study, folder, 0.1, "FAIL", 0)
    tell(study, folder, 0.3, "RUNNING", 2)
    assert not (folder / "leaderboard.json").exists()
    result = report(cli, folder)
    assert "5 trials: 2 trained to the end, 1 stopped early, 1 failed, 1 unfinished" in result.out
    files = [Path(line) for line in result.out.splitlines() if line.startswith(str(folder))]
    assert {path.name for path in files} >= {"report.html", "history.png", "leaderboard.json"}
    assert all(path.is_file() for path in files)
    page = (folder / "report.html").read_text()
    assert page.index("0.5000") < page.index("0.2500")
    assert "the loss became nan" in page
    assert "train.lr" in page
    assert re.search(r"certificate of \d+ images with n = 100", page)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (None, "No trial was started"),
        ("RUNNING", "is running or was interrupted"),
        ("FAIL", "the loss became nan"),
        ("PRUNED", "all were stopped early"),
    ],
)
def test_no_finished_trial_is_a_page_and_a_line_that_say_why(sweep, cli, state, why):
    study, folder = sweep()
    if state:
        tell(study, folder, 0.1, state, 1)
    result = report(cli, folder)
    assert why in result.out
    assert why in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("state", "why"),
    [("PRUNED", "all were stopped early"), ("FAIL", "the loss became nan")],
)
def test_a_sweep_without_a_finished_trial_fails_with_the_same_words(sweep, state, why):
    study, folder = sweep()
    tell(study, folder, 0.1, state, 1)
    with pytest.raises(WorkError) as error:
        _leaderboard(kit.config(folder.parent, "name=search"), study, folder, print)
    assert str(error.value) == f"search: no trial trained to the end: {why}"


def planted(folder):
    """The content of a leaderboard into which a test plants results: without its digest."""
    plain = json.loads((folder / "leaderboard.json").read_text())
    del plain["digest"]
    return plain


def test_what_finalists_reached_is_kept_and_not_measured_again(sweep, cli):
    study, folder = sweep()
    tell(study, folder, 0.5)
    tell(study, folder, 0.25)
    report(cli, folder)
    plain = planted(folder)
    plain["entries"][0] |= FINAL
    (folder / "leaderboard.json").write_text(json.dumps(plain))
    for _ in range(2):
        result = report(cli, folder)
        assert "0.8750" in result.out
        assert "0.4321" in (folder / "report.html").read_text()
    assert [entry.final for entry in board_of(folder).entries] == [True, False]
    plain["protocol"] = "as the last start measured them"
    (folder / "leaderboard.json").write_text(json.dumps(plain))
    assert board_of(folder).protocol == "as the last start measured them"


def test_the_best_of_an_extended_sweep_is_not_that_of_the_earlier_finalists(sweep, cli):
    study, folder = sweep()
    tell(study, folder, 0.5)
    report(cli, folder)
    plain = planted(folder)
    plain["entries"][0] |= FINAL
    (folder / "leaderboard.json").write_text(json.dumps(plain))
    place = leaves_of_arguments([f"out={folder.parent}"])
    assert find("search/best", place).name == "0000"
    tell(study, folder, 0.75)
    assert find("search/best", place).name == "0001"


def test_an_average_of_early_stops_is_a_bound(sweep, cli):
    study, folder = sweep()
    tell(study, folder, 0.5)
    report(cli, folder)
    plain = planted(folder)
    reached = {"certified/acr": 0.1578, "certified/acr_low": 0.1, "certified/acr_high": 0.2}
    reached["certified/acr_understated"] = 1.0
    plain["entries"][0] |= FINAL | {"certified": reached}
    (folder / "leaderboard.json").write_text(json.dumps(plain))
    assert "≥ 0.1578 [0.1000, 0.2000]" in report(cli, folder).out
    assert "≥ 0.1578 [0.1000, 0.2000]" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("settings", "block", "words"),
    [
        ((), BLOCK, "3 epochs per trial, with early stopping by asha"),
        (("tune.scheduler=none",), BLOCK, "3 epochs per trial, without early stopping"),
        (
            ("train.seconds=40", "tune.scheduler=median"),
            BLOCK,
            "40 seconds of training per trial, with early stopping by median",
        ),
        (
            (),
            {"train.epochs": {"int": [2, 10]}},
            "2 to 10 epochs (searched) per trial, with early stopping by asha",
        ),
    ],
)
def test_the_budget_in_words(sweep, settings, block, words):
    _, folder = sweep(*settings, block=block)
    assert board_of(folder).budget == words


def test_data_set_and_networks_in_words(sweep):
    """The size of the images and the number of classes are read from a trial's checkpoint."""
    study, folder = sweep("data.limit=40")
    tell(study, folder, 0.5)
    assert (board_of(folder).dataset, board_of(folder).network) == ("digits", "small_cnn")
    config = kit.config(folder.parent, "data.limit=40", "train.epochs=1")
    trial = folder / runs.TRIALS / "0000"
    for progress in fit(config, data.load(config.data), torch.device("cpu")):
        checkpoint.commit(trial, checkpoint.folder_name(progress.epoch), progress.save, keep=1)
    assert board_of(folder).dataset == "digits; 1 x 8 x 8 pixels, 10 classes"


def test_networks_that_are_searched_are_named(sweep):
    networks = {"model.name": {"choice": ["small_cnn", "resnet20"]}}
    _, folder = sweep("data.name=npz", "data.path=set.npz", block=BLOCK | networks)
    board = board_of(folder)
    assert (board.dataset, board.network) == ("npz set.npz", "small_cnn, resnet20 (searched)")


def test_what_a_trial_spent_stands_in_its_entry(sweep):
    study, folder = sweep("train.passes=40")
    number, _ = study.ask()
    metrics = {"certified_fast/acr": 0.5, "passes/per_image": 8.0}
    study.report(number, 1, 0.5, metrics)
    study.complete(number)
    board = board_of(folder)
    assert (board.unit, board.entries[0].spent) == ("passes/per_image", {1: 8.0})
    leaderboard.write(board)
    assert Leaderboard.read(folder).entries[0].spent == {1: 8.0}


def test_how_many_examples_the_finalists_were_measured_on(sweep):
    """Clean accuracy and attacks use the first `evaluate.examples`, certificates other examples."""
    study, folder = sweep("evaluate.examples=20", "evaluate.attacks=[pgd]", "certify.examples=9")
    tell(study, folder, 0.5)
    log = folder / "log.tsv"
    rows = [f"{idx}\t1\t1\t0.25\t1\t3\n" for idx in range(7)]
    log.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n" + "".join(rows))
    entry = TrialRecord(0, "gaussian", "COMPLETE", {}, 0.5, {}, accuracy=0.9, examples=20, log=log)
    config = kit.config(
        folder.parent, "evaluate.examples=20", "evaluate.attacks=[pgd]", "certify.examples=9"
    )
    made = make_board(config, study, folder, {0: entry}, finalists.protocol(config, [entry]))
    assert made.entries[0].examples == 20
    assert "clean accuracy of the first 20 test examples" in made.protocol
    assert "certificates of 7 test examples" in made.protocol
    assert "attacks on the first 20 test examples" in made.protocol
    config = kit.config(folder.parent, "evaluate.attacks=[]")
    text = finalists.protocol(config, [replace(entry, examples=359, reason="it failed")])
    assert "clean accuracy of all 359 test examples" in text
    assert "attacks" not in text
    assert finalists.protocol(config, [replace(entry, accuracy=None)]) == ""
    made = Protocol(sigma=0.5, shape=(1, 8, 8), n=200, noise="uniform", norm="l1",
                    schedule="looks", targets=(0.1, 0.5))  # fmt: skip
    log.write_text(f"# {made.to_json()}\n" + log.read_text().splitlines(keepends=True)[0])
    text = finalists.protocol(config, [entry])
    assert "with uniform noise, l1 radii, drawn only to decide 0.1, 0.5, n0 =" in text


def test_a_folder_that_was_moved_keeps_its_trials(sweep):
    study, folder = sweep()
    tell(study, folder, 0.5)
    tell(study, folder, 0.25)
    kept = board_of(folder.rename(folder.with_name("search.1")))
    assert [entry.value for entry in kept.entries] == [0.5, 0.25]
    again, _ = sweep()
    assert again.records() == []


@pytest.mark.parametrize("place", ["sqlite:///{}", "journal:{}"])
def test_a_moved_sweep_of_a_shared_storage_keeps_its_leaderboard(sweep, cli, tmp_path, place):
    storage = f"tune.storage={place.format(tmp_path / 'shared')}"
    study, folder = sweep(storage)
    tell(study, folder, 0.5)
    report(cli, folder)
    moved = folder.rename(folder.with_name("search.1"))
    assert "0.5000" in cli("report", "search.1", "--out", folder.parent).out
    again, folder = sweep(storage)  # as after --no-resume
    assert again.records() == []
    tell(again, folder, 0.25)
    assert [entry.value for entry in board_of(moved).entries] == [0.5]
    assert [entry.value for entry in board_of(folder).entries] == [0.25]
    config = kit.config(folder.parent, f"tune.warm_start={moved.name}", storage)
    (lesson,) = _earlier_study(config, Space.parse(BLOCK), folder.parent).study.get_trials()
    assert lesson.value == 0.5


def test_a_sweep_whose_study_is_gone_keeps_its_leaderboard(sweep, cli, tmp_path):
    study, folder = sweep(f"tune.storage=sqlite:///{tmp_path / 'shared'}")
    tell(study, folder, 0.5)
    report(cli, folder)
    kept = (folder / "leaderboard.json").read_bytes()
    (tmp_path / "shared").unlink()
    result = cli("report", "search", "--out", folder.parent)
    assert result.code == 2
    assert "tune.storage: " in result.err
    assert "has no study of sweep search" in result.err
    assert len(result.err.splitlines()) == 1
    assert (folder / "leaderboard.json").read_bytes() == kept
    assert not (tmp_path / "shared").exists()


def test_a_storage_that_cannot_be_used_is_refused_before_a_sweep_is_put_aside(
    sweep, tmp_path, monkeypatch
):
    _, folder = sweep()
    before = sorted(path.name for path in folder.parent.iterdir())
    monkeypatch.setattr(run_sweep, "session", lambda *_, **__: pytest.fail("Ray was started"))
    (tmp_path / "text.db").write_text("no database at all\n" * 100)
    empty = sqlite3.connect(tmp_path / "shared.db")
    empty.execute("create table alembic_version (version_num varchar(32))")
    empty.commit()
    for storage in (f"{tmp_path / 'text.db'}", f"file:{tmp_path / 'shared.db'}?mode=ro&uri=true"):
        given = kit.leaves(
            folder.parent, "name=search", "train.epochs=4", f"tune.storage=sqlite:///{storage}"
        )
        leaves = [leaf for leaf in given if leaf.key not in BLOCK]
        config = configuration.compose(leaves, methods.get)
        with pytest.raises(RequestError, match=r"^tune\.storage: "):
            run_sweep.tune(
                config, leaves, BLOCK, address=None, resume=False, verbose=False, echo=print
            )
    assert sorted(path.name for path in folder.parent.iterdir()) == before


def test_a_folder_that_was_moved_keeps_its_finalists_certificates(sweep, cli):
    study, folder = sweep()
    tell(study, folder, 0.5)
    report(cli, folder)
    path = folder / "leaderboard.json"
    plain = planted(folder)
    plain["entries"][0] |= FINAL | {"log": "trials/0000/certified/test.tsv"}
    path.write_text(json.dumps(plain))
    moved = folder.rename(folder.with_name("moved"))
    board = Leaderboard.read(moved)
    assert board.entries[0].log == moved / "trials/0000/certified/test.tsv"
    assert board.plain()["entries"][0]["log"] == "trials/0000/certified/test.tsv"


def test_json(sweep, cli):
    study, folder = sweep()
    tell(study, folder, 0.5)
    plain = json.loads(report(cli, folder, "--json").out)
    assert plain["sweeps"][0]["entries"][0]["value"] == 0.5
    assert str(folder / "report.html") in plain["files"]


def test_a_sweep_beside_a_log(sweep, cli, tmp_path):
    study, folder = sweep()
    tell(study, folder, 0.5)
    log = tmp_path / "other.tsv"
    log.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.25\t1\t3\n")
    result = report(cli, folder, log)
    assert "0.5000" in result.out
    assert "| other |" in result.out
    assert (folder.parent / "report" / "certified.md").exists()


def test_a_run_without_certificates_beside_a_sweep_is_still_refused(sweep, cli):
    study, folder = sweep()
    tell(study, folder, 0.5)
    runs.identify(folder.parent / "fresh", "train", configuration.to_dict(kit.config(folder)))
    result = cli("report", "search", "fresh", "--out", folder.parent)
    assert result.code == 2
    assert "fresh: has no certificates" in result.err


def test_the_study_is_left_as_it_was(sweep, cli):
    study, folder = sweep()
    tell(study, folder, 0.5)
    tell(study, folder, 0.3, "RUNNING", 2)
    before = [(r.number, r.state, r.value) for r in study.records()]
    report(cli, folder)
    assert [(r.number, r.state, r.value) for r in study.records()] == before


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(sweep, cli):
    _, folder = sweep()
    folder.chmod(0o500)
    result = cli("report", "search", "--out", folder.parent)
    folder.chmod(0o700)
    assert result.code == 2
    assert "cannot be written" in result.err


def test_the_methods_are_those_of_the_trials(sweep):
    study, folder = sweep()
    tell(study, folder, 0.5)
    assert [entry.method for entry in board_of(folder).entries] == ["gaussian"]


def test_the_file_of_a_sweep_is_that_sweep(tmp_path):
    """Configuration and space with includes resolved: the same experiment, key by key."""
    path = Path(__file__).parents[2] / "search_spaces" / "all_methods.yaml"
    tree = configuration.read_yaml(path)
    block = configuration.expand(tree.pop("search"), path)
    given = configuration.leaves_of(tree, "test")
    config = configuration.compose(given, methods.get)
    plain = configuration.to_dict(config) | {"search": block}
    write_space(tmp_path, plain)
    again = configuration.read_yaml(tmp_path / "space.yaml")
    assert again.pop("search") == block
    leaves = configuration.leaves_of(again, "again")
    found, space = check_sweep(leaves, block)
    both = configuration.to_dict(found), configuration.to_dict(config)
    assert list(configuration.difference(*both)) == []
    assert len(space.domains) == len(block)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_importances_are_of_what_makes_a_trial_good(sweep, mode, recwarn):
    """Only sigma separates the good trials from the others, only the weight decay the worst."""
    block = {key: {"float": [0.0, 1.0]} for key in ("train.weight_decay", "method.sigma")}
    study, _ = sweep("tune.sampler=random", f"tune.mode={mode}", "tune.trials=60", block=block)
    for _ in range(60):
        number, point = study.ask()
        good, bad = point["method.sigma"] > 0.85, point["train.weight_decay"] > 0.5
        value = (1.0 if good else 0.2 if bad else 0.5) + point["method.sigma"] / 100
        value = value if mode == "max" else -value
        study.report(number, 1, value, {"certified_fast/acr": value, "passes/forward": 1.0})
        study.complete(number)
    found = importances(study)
    assert found["method.sigma"] > 20 * found["train.weight_decay"]
    assert sum(found.values()) == pytest.approx(1)
    assert not [warning for warning in recwarn if "optuna" in warning.filename]


def test_trials_of_a_warm_start_give_no_importances(sweep, tmp_path):
    study, folder = sweep("tune.sampler=random", "tune.trials=9")
    for value in (0.1, 0.4, 0.3, 0.2, 0.5, 0.6):
        tell(study, folder, value)
    assert importances(study)
    config = kit.config(tmp_path / "out", "name=later", "tune.sampler=random")
    place = tmp_path / "out" / "later"
    place.mkdir()
    second = Study(config, Space.parse(BLOCK), place, "another sweep")
    assert second.warm_start(study, "search") == 6
    assert importances(second) == {}


def test_a_leaderboard_that_was_edited_is_refused(sweep, cli):
    study, folder = sweep()
    tell(study, folder, 0.5)
    report(cli, folder)
    path = folder / "leaderboard.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    done = cli("report", folder.name, "--out", folder.parent)
    assert done.code == 2
    assert "its entries were changed after they were written" in done.err
    path.unlink()
    assert cli("report", folder.name, "--out", folder.parent).code == 0

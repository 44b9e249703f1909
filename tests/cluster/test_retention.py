"""What stays on disk of a sweep's trials."""

import shutil
from collections import namedtuple
from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml
from test_study import METRIC, study_of

from raybust import config as configuration
from raybust import methods
from raybust.cluster.retention import WEIGHTS, Retention, bytes_of_trial, keepers
from raybust.config.tune import Tune
from raybust.disk import checkpoint, runs
from raybust.disk.strip import AGAIN, strip
from raybust.errors import RequestError, WorkError
from raybust.search.records import TrialRecord
from raybust.stages.space_on_disk import check_space, describe, in_words
from raybust.track import Journal
from raybust.trained import load_trained

Usage = namedtuple("Usage", "free")


def config_of(**tune):
    config = configuration.compose([], methods.get)
    return replace(config, tune=replace(Tune(), **{"metric": METRIC, **tune}))


def save(folder, epoch=2):
    """A trial's identity, journal and two checkpoints, as its worker leaves them."""
    config = configuration.compose(
        configuration.leaves_of_arguments(["train.lr=0.07", "name=sweep"]), methods.get
    )
    runs.identify(folder, "trial", configuration.to_dict(config))
    for done in (epoch - 1, epoch):
        fill = partial(
            checkpoint.write,
            weights={"w": torch.full((500,), float(done))},
            state={"o": torch.ones(1000)},
            manifest={"done": True, "epoch": done, "metrics": {}},
        )
        checkpoint.commit(folder, checkpoint.folder_name(done), fill, 2)
    with Journal(folder / runs.JOURNAL) as journal:
        journal.start("key", "experiment", "name")
        journal.end("FINISHED")


def files_of(folder):
    """Names of the files of each checkpoint."""
    return [sorted(path.name for path in one.iterdir()) for one in checkpoint.folders(folder)]


KEPT, BARE = [["manifest.json", "model.safetensors"]], [["manifest.json"]]


@pytest.fixture
def sweep(tmp_path):
    """(config, study, folder, close): `close(value)` runs a trial to its end; None stops it."""
    config, folder = config_of(keep=2, finalists=1), tmp_path / "sweep"
    study = study_of(folder)

    def close(value, retention=None):
        number, _ = study.ask()
        save(folder / runs.TRIALS / f"{number:04d}")
        study.report(number, 2, value or 0.0, {METRIC: value or 0.0})
        study.prune(number) if value is None else study.complete(number)
        if retention:
            retention.settle(study.record(number))

    return config, study, folder, close


def now(folder):
    return [files_of(one) for one in sorted((folder / runs.TRIALS).glob("*"))]


def test_the_weights_of_the_best_stay_while_a_sweep_goes_on(sweep):
    config, study, folder, close = sweep
    retention = Retention(config, study, folder, 0)
    seen = []
    for value in (0.3, 0.1, None, 0.2, 0.5):
        close(value, retention)
        seen.append([files == KEPT for files in now(folder)])
    assert seen == [
        [True],
        [True, True],
        [True, True, False],
        [True, False, False, True],
        [True, False, False, False, True],
    ]
    assert all(files in (KEPT, BARE) for files in now(folder))
    newest = checkpoint.newest(folder / runs.TRIALS / "0000")
    assert checkpoint.read_weights(newest)["w"][0] == 2
    assert checkpoint.read_manifest(newest)["epoch"] == 2
    retention.finish()
    sent = [(one / WEIGHTS).exists() for one in sorted((folder / runs.TRIALS).glob("*"))]
    assert sent == [True, False, False, False, True]


def test_an_earlier_start_is_caught_up_with(sweep):
    """As after a kill; running trials stay whole."""
    config, study, folder, close = sweep
    for value in (0.3, 0.1, 0.2):
        close(value)
    number, _ = study.ask()
    save(folder / runs.TRIALS / f"{number:04d}")
    before = now(folder)
    assert [len(files) for files in before] == [2] * 4
    Retention(config, study, folder, 0)
    assert now(folder) == [KEPT, BARE, KEPT, before[3]]


def test_files_that_a_worker_still_writes_about_stay(sweep):
    config, study, folder, close = sweep
    retention = Retention(config, study, folder, 0)
    close(None)
    with Journal(folder / runs.TRIALS / "0000" / runs.JOURNAL) as journal:
        journal.start("key", "experiment", "name")
    retention.settle(study.record(0))
    assert len(files_of(folder / runs.TRIALS / "0000")) == 2
    retention.finish()
    assert files_of(folder / runs.TRIALS / "0000") == BARE


def test_a_kill_between_manifest_and_files_leaves_an_intact_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "sweep" / runs.TRIALS / "0000"
    save(folder)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        strip(folder, weights=False)
    monkeypatch.undo()
    assert checkpoint.newest(folder) is not None
    strip(folder, weights=False)
    assert files_of(folder) == BARE


def test_a_trial_without_weights_says_how_to_train_it_again(tmp_path):
    folder = tmp_path / "sweep" / runs.TRIALS / "0007"
    save(folder)
    strip(folder, weights=False)
    with pytest.raises(RequestError, match=r"sweep/7: its weights were not kept.*`raybust train "):
        load_trained(folder, [])
    plain = yaml.safe_load((folder / AGAIN).read_text())
    again = configuration.compose(configuration.leaves_of(plain, AGAIN), methods.get)
    assert again.train.lr == 0.07
    assert again.name is None


X, Y = METRIC, "validation/accuracy"


def record(number, method="a", feasible=None, state="COMPLETE", *, x, y):
    return TrialRecord(number, method, state, {}, x, {X: x, Y: y}, feasible=feasible)


def test_all_that_may_become_finalists_are_kept():
    """The best, the Pareto set, and the best of each method."""
    config = config_of(keep=1, finalists=1, metric=X, objectives=(f"max {X}", f"max {Y}"))
    records = [
        record(0, x=0.9, y=0.1),
        record(1, x=0.5, y=0.5),
        record(2, x=0.4, y=0.4),
        record(3, "b", x=0.1, y=0.1),
        record(4, x=0.1, y=0.95),
        record(5, x=0.99, y=0.99, feasible=False),
        record(6, x=1.0, y=1.0, state="PRUNED"),
    ]
    assert sorted(one.number for one in keepers(config, records)) == [0, 1, 3, 4]
    one_goal = config_of(keep=2, finalists=3)
    one_goal = replace(one_goal, tune=replace(one_goal.tune, metric=X, mode="min"))
    assert [one.number for one in keepers(one_goal, records)] == [3, 4, 2]


def test_a_sweep_that_would_fill_the_disk_is_refused_before_and_stops_during(sweep, monkeypatch):
    config, study, folder, _ = sweep
    need = bytes_of_trial(config, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(need - 1))
    with pytest.raises(RequestError, match=r"sweep has 12 MB free, .* needs about 28 MB for the w"):
        check_space(config, 10**6, 2, folder)
    with pytest.raises(WorkError, match=r"sweep: the disk is full: .* rerun the same command"):
        Retention(config, study, folder, 10**6).check_space()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**8))
    check_space(config, 10**6, 2, folder)
    Retention(config, study, folder, 10**6).check_space()
    assert describe(config, 2) == "the weights of 2 trials and the checkpoints of 2 at a time"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 kB"), (1234, "1.2 kB"), (1.5e11, "150 GB"), (5e16, "50000 TB")]
)
def test_bytes_in_words(count, text):
    assert in_words(count) == text

"""Special characters in paths, and restarts of runs that failed before their first checkpoint."""

import sqlite3

import kit
import numpy as np
import pytest

from raybust.disk import runs
from raybust.errors import RequestError, WorkError
from raybust.stages import training
from raybust.track import client
from raybust.track.uri import artifact_root, resolve_uri, sqlite_file, sqlite_uri

NAMES = ["a?b=c", "a%20b", "a#b", "a b", "a;b&c+d", "caf\u00e9 'x'", "a%3Fb", "100%"]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Training starts no processes: where it runs does not matter here."""
    monkeypatch.setattr(training, "suffices", lambda *_: True)


@pytest.mark.parametrize("name", NAMES)
def test_a_sqlite_uri_means_its_file(tmp_path, name):
    file = tmp_path / name / "mlflow.db"
    file.parent.mkdir()
    uri = sqlite_uri(file)
    assert sqlite_file(uri) == file
    client.open_client(uri).search_experiments()
    assert file.exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    section = kit.config(tmp_path / name).track
    assert resolve_uri(section, tmp_path / name) == uri
    assert artifact_root(uri, tmp_path) is not None


@pytest.mark.cluster
def test_everything_lands_in_the_folder_that_was_named(cluster, tmp_path, cli, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    name = "a?b=c%20d #e"
    out = tmp_path / name
    done = cli("train", "--out", out, "--name", "one", *kit.TINY, "train.epochs=1")
    assert done.code == 0, done.err
    done = cli("certify", "one", "--out", out, "certify.examples=5")
    assert done.code == 0, done.err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    uri = sqlite_uri(out / "mlflow.db")
    opened = client.open_client(uri)
    (run,) = opened.search_runs([opened.get_experiment_by_name("raybust").experiment_id])
    assert run.data.metrics["certified/acr"] >= 0
    artifacts = {item.path for item in opened.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "certified", "checkpoint"} <= artifacts
    assert (out / "mlartifacts").is_dir()
    done = cli("report", "one", "--out", out)
    assert done.code == 0, done.err
    shown = cli("ui", "--out", out, "--dry-run")
    assert shown.code == 0, shown.err


@pytest.mark.cluster
def test_a_study_lies_in_the_folder_that_was_named(cluster, tmp_path, cli, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    space = tmp_path / "space.yaml"
    space.write_text("search:\n  train.lr: {float: [0.01, 0.1]}\n")
    out = tmp_path / "a?b%20c#d"
    settings = [text for text in kit.TINY if not text.startswith("train.lr")]
    done = cli("tune", space, "--out", out, "--name", "s", *settings, "train.epochs=1",
               "tune.trials=2", "tune.finalists=0")  # fmt: skip
    assert done.code == 0, done.err
    with sqlite3.connect(out / "s" / "study.db") as study:
        assert study.execute("select count(*) from trials").fetchone() == (2,)
    assert {path.name for path in tmp_path.iterdir()} == {"space.yaml", out.name}


def start(out, *settings):
    config = kit.config(out, "name=one", "train.epochs=1", *settings)
    said = []
    folder = training.train(config, address=None, resume=True, verbose=False, echo=said.append)
    return folder, said


@pytest.mark.cluster
def test_a_run_that_failed_with_nothing_kept_may_be_started_with_other_settings(cluster, out):
    with pytest.raises(WorkError, match="no checkpoint was kept"):
        start(out, "train.lr=1e30")
    failed = runs.read_identity(out / "one").uid
    folder, _ = start(out, "train.lr=0.05")
    assert runs.read_identity(folder).uid != failed
    assert runs.read_identity(out / "one.1").uid == failed
    opened = client.open_client(kit.uri(out))
    found = opened.search_runs([opened.get_experiment_by_name("raybust").experiment_id])
    states = {run.data.tags["raybust.run_key"]: run.info.status for run in found}
    assert states[failed] == "FAILED"
    assert set(states.values()) == {"FAILED", "FINISHED"}
    with pytest.raises(RequestError, match=r"train.lr"):
        start(out, "train.lr=0.01")


@pytest.mark.cluster
def test_training_is_not_resumed_on_other_data(cluster, out):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (200, 8, 8)).astype(np.uint8)
    labels = np.arange(200) % 3
    path = out / "data.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    data = ("data.name=npz", f"data.path={path}")
    _, said = start(out, *data)
    assert any("also in the training set" in line for line in said)
    images[17, 2, 2] ^= 1
    np.savez(path, x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    with pytest.raises(RequestError, match="images, labels or split of its dataset have changed"):
        start(out, *data)


def test_a_run_whose_checkpoints_are_elsewhere_is_not_taken_for_one_of_which_nothing_is_kept(
    tmp_path,
):
    plain = {"cluster": {"storage": "s3://bucket"}, "train": {"lr": 0.1}}
    runs.identify(tmp_path / "one", "train", plain)
    (tmp_path / "one" / runs.JOURNAL).write_text("")
    with pytest.raises(RequestError, match=r"train.lr: 0.1 -> 0.2"):
        runs.identify(tmp_path / "one", "train", {**plain, "train": {"lr": 0.2}})

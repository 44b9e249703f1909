"""Run folders: identity, lookup, loading."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from raybust import data, methods
from raybust.config import Config, Leaf, compose, to_dict
from raybust.disk import checkpoint, lock, runs
from raybust.errors import RequestError
from raybust.track.client import store_lock
from raybust.trained import load_trained
from raybust.training.fit import fit

VALUES = {
    "method.name": "gaussian",
    "method.sigma": 0.5,
    "data.limit": 40,
    "train.epochs": 1,
    "train.batch_size": 20,
    "model.width": 4,
    "certified_fast.every": 0,
    "certified_fast.examples": 2,
    "certified_fast.n": 100,
}
CONFIG = compose([Leaf(key, value, "test") for key, value in VALUES.items()], methods.get)
PLAIN = to_dict(CONFIG)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "one"
    runs.identify(folder, "train", PLAIN)
    for progress in fit(CONFIG, data.load(CONFIG.data), torch.device("cpu")):
        checkpoint.commit(folder, checkpoint.folder_name(progress.epoch), progress.save, keep=2)
    return folder


@pytest.fixture
def out(finished, tmp_path):
    shutil.copytree(finished.parent, tmp_path / "runs")
    return tmp_path / "runs"


def changed(**values):
    return to_dict(replace(CONFIG, **values))


def test_identity_is_kept(tmp_path):
    first = runs.identify(tmp_path / "a", "train", PLAIN)
    again = runs.identify(tmp_path / "a", "train", PLAIN)
    assert first == again == runs.read_identity(tmp_path / "a")
    assert first.uid != runs.identify(tmp_path / "b", "train", PLAIN).uid
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run.json"]


def test_begun_anew_keeps_the_old_aside(tmp_path):
    uids = [runs.identify(tmp_path / "a", "train", PLAIN, resume=False).uid for _ in range(3)]
    kept = [runs.read_identity(tmp_path / name).uid for name in ("a.1", "a.2", "a")]
    assert kept == uids


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"train": replace(CONFIG.train, epochs=9)}, "train.epochs: 1 -> 9"),
        ({"method": methods.get("standard")()}, "method.sigma: 0.5 -> None"),
    ],
)
def test_another_experiment_is_refused(tmp_path, values, words):
    runs.identify(tmp_path / "a", "train", PLAIN)
    with pytest.raises(RequestError) as error:
        runs.identify(tmp_path / "a", "train", changed(**values))
    assert words in str(error.value)
    assert runs.read_identity(tmp_path / "a").config == PLAIN


@pytest.mark.parametrize(
    "values",
    [
        {"out": "elsewhere"},
        {"certify": replace(CONFIG.certify, n=500)},
        {"tune": replace(CONFIG.tune, trials=99, concurrent=1)},
        {"cluster": replace(CONFIG.cluster, max_failures=9)},
        {"track": replace(CONFIG.track, uri="sqlite:///x.db")},
    ],
)
def test_what_may_change_between_starts(tmp_path, values):
    uid = runs.identify(tmp_path / "a", "train", PLAIN).uid
    assert changed(**values) != PLAIN
    assert runs.identify(tmp_path / "a", "train", changed(**values)).uid == uid


@pytest.mark.parametrize("kind", ["train", "sweep"])
@pytest.mark.parametrize(("key", "value"), [("sigma", 1.0), ("seed", 7)])
def test_what_every_epoch_is_scored_with_may_not_change(tmp_path, kind, key, value):
    """`certified_fast` compares epochs of a run, and trials of a sweep."""
    runs.identify(tmp_path / "a", kind, PLAIN)
    other = changed(certify=replace(CONFIG.certify, **{key: value}))
    with pytest.raises(RequestError) as error:
        runs.identify(tmp_path / "a", kind, other)
    assert f"certify.{key}: {getattr(CONFIG.certify, key)} -> {value}" in str(error.value)
    name = "a/NUMBER" if kind == "sweep" else "a"
    assert f"`raybust certify {name} certify.{key}=...`" in str(error.value)
    assert "\n" not in str(error.value)


def test_another_kind_is_refused(tmp_path):
    runs.identify(tmp_path / "a", "sweep", PLAIN)
    with pytest.raises(RequestError, match="is a sweep, not a train"):
        runs.identify(tmp_path / "a", "train", PLAIN)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be written: Not a directory; choose"):
        runs.identify(tmp_path / "file" / "a", "train", PLAIN)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"uid": "x"}', "3"])
def test_a_broken_identity(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RequestError, match="no readable run"):
        runs.read_identity(tmp_path)


def test_find(out):
    trial = out / "sweep" / "trials" / "0007"
    runs.identify(out / "sweep", "sweep", PLAIN)
    runs.identify(trial, "trial", PLAIN)
    newest = checkpoint.newest(out / "one")
    assert runs.find("one", out) == out / "one"
    assert runs.find(str(out / "one"), out / "nowhere") == out / "one"
    assert runs.find("sweep/7", out) == trial
    assert runs.find("sweep/0007", out) == trial
    assert runs.find(str(newest), out) == newest
    assert runs.find(str(newest / checkpoint.WEIGHTS), out).is_file()
    assert runs.names(out) == ["one", "sweep"]


@pytest.mark.parametrize("name", ["two", "sweep/8", "one/x", "", "..", "."])
def test_find_nothing(out, name):
    with pytest.raises(RequestError, match="unknown run"):
        runs.find(name, out)


def test_load(out, finished):
    trained = load_trained(out / "one", [])
    assert trained.config == replace(CONFIG, out=str(out))
    assert trained.folder == out / "one"
    assert trained.trained_sigma == 0.5
    assert trained.uid == runs.read_identity(finished).uid
    assert not trained.network.training
    weights = checkpoint.read_weights(checkpoint.newest(out / "one"))
    for key, value in trained.network.state_dict().items():
        assert torch.equal(value, weights[key])


def test_a_checkpoint_that_is_named_has_results_of_its_own(out, monkeypatch):
    monkeypatch.chdir(out.parent)
    newest = checkpoint.newest(out / "one")
    named = load_trained(newest, [])
    assert named.uid is None
    assert named.folder.parent == out.parent / "runs" / "_weights"
    assert named.folder.name.startswith(f"one-{newest.name}-")


def test_load_passes_over_a_torn_checkpoint(out):
    newest = checkpoint.newest(out / "one")
    shutil.copytree(newest, out / "one" / "epoch-000002")
    (out / "one" / "epoch-000002" / checkpoint.WEIGHTS).write_bytes(b"cut")
    assert load_trained(out / "one", []).config == replace(CONFIG, out=str(out))
    with pytest.raises(RequestError, match="not a complete checkpoint"):
        load_trained(out / "one" / "epoch-000002", [])


def test_load_a_weights_file(out):
    weights = checkpoint.newest(out / "one") / checkpoint.WEIGHTS
    overrides = [Leaf("model.width", 4, "test"), Leaf("out", str(out), "test")]
    trained = load_trained(weights, overrides)
    assert trained.uid is None
    assert trained.trained_sigma is None
    assert trained.folder.parent == out / "_weights"
    assert trained.folder.name.startswith("model-")
    other = out.parent / "other" / "model.pth"
    other.parent.mkdir()
    shutil.copy(weights, other.with_name("model.safetensors"))
    assert load_trained(other.with_name("model.safetensors"), overrides).folder != trained.folder
    with pytest.raises(RequestError):
        load_trained(weights, [])


def test_what_is_trained_cannot_be_overridden(out):
    changes = [Leaf("certify.sigma", 0.3, "test"), Leaf("evaluate.examples", 5, "test")]
    config = load_trained(out / "one", changes).config
    assert (config.certify.sigma, config.evaluate.examples) == (0.3, 5)
    for key, value in (("method.sigma", 1.0), ("train.lr", 1.0), ("data.name", "npz")):
        with pytest.raises(RequestError, match=f"{key}: is fixed by the training of one"):
            load_trained(out / "one", [Leaf(key, value, "test")])


def test_a_key_of_an_older_version_is_named(out):
    """A manifest key unknown to this version is a request error, not a traceback."""
    newest = checkpoint.newest(out / "one")
    manifest = json.loads((newest / checkpoint.MANIFEST).read_text())
    manifest["config"]["train"]["forgotten"] = 1
    (newest / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RequestError, match=r"unknown key 'train\.forgotten'"):
        load_trained(out / "one", [])


def test_out_folder_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert runs.out_folder(Config()) == tmp_path / "runs"
    assert str(runs.out_folder(Config(out="~/x"))) == os.path.expanduser("~/x")


def test_what_may_change_on_a_resume_does_not_change_a_default_name():
    def digits(**values):
        leaves = [Leaf(key.replace("__", "."), value, "test") for key, value in values.items()]
        return runs.fixed_digits(to_dict(compose(leaves, methods.get)))

    same = [{"name": "x"}, {"out": "x"}, {"track__uri": "sqlite:///x.db"}, {"train__momentum": 0.9},
            {"cluster__cpus_per_worker": 2}, {"certify__n": 500}, {"tune__trials": 3}]  # fmt: skip
    assert {digits(**values) for values in same} == {digits()}
    others = [{"seed": 1}, {"train__lr": 0.1}, {"data__limit": 5}, {"method__name": "gaussian"},
              {"model__width": 8}, {"certify__sigma": 0.3}]  # fmt: skip
    assert len({digits(), *(digits(**values) for values in others)}) == len(others) + 1


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_one_warning(tmp_path, monkeypatch, capsys, number):
    """Some network file systems have none; a command runs there all the same."""
    lock._warn_once.cache_clear()

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    for name in ("one", "two"):
        with lock.locked(tmp_path / name):
            pass
    with store_lock(f"sqlite:///{tmp_path / 'mlflow.db'}"):
        pass
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "file system has no locks" in said[0]


@pytest.mark.parametrize("kind", ["train", "sweep"])
def test_a_copy_is_not_trained_further(tmp_path, kind):
    """It would write into the MLflow run of the original, as long as that is in place."""
    original, copy = tmp_path / "one", tmp_path / "two"
    found = runs.identify(original, kind, PLAIN)
    start = {"e": "start", "t": 0, "run": found.uid, "tags": {"raybust.folder": str(original)}}
    (original / runs.JOURNAL).write_text(json.dumps(start) + "\n")
    trial = original / (runs.TRIALS + "/0000" if kind == "sweep" else ".")
    (trial / "epoch-000001").mkdir(parents=True)
    shutil.copytree(original, copy)
    runs.check_same(original, kind, PLAIN)
    with pytest.raises(RequestError, match=r"two: is a copy of .*one, into whose MLflow run"):
        runs.check_same(copy, kind, PLAIN)
    shutil.rmtree(original)
    runs.check_same(copy, kind, PLAIN)


def test_a_renamed_original_is_still_the_original(tmp_path):
    original, copy = tmp_path / "one", tmp_path / "two"
    found = runs.identify(original, "train", PLAIN)
    start = {"e": "start", "t": 0, "run": found.uid, "tags": {"raybust.folder": str(original)}}
    (original / runs.JOURNAL).write_text(json.dumps(start) + "\n")
    shutil.copytree(original, copy)
    renamed = original.rename(tmp_path / "zero")
    assert runs.original_of(renamed) is None
    assert runs.original_of(copy) == renamed

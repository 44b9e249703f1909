"""An embedded store whose folder was moved or copied, with its artifacts."""

import shutil

import pytest
from test_registry import record, versions
from tracking import deliver

from raybust.disk import runs
from raybust.track import prepare
from raybust.track.client import open_client


@pytest.fixture
def whole(tmp_path, store):
    """A folder with a store, a run with artifacts and a registered version."""
    out = tmp_path / "runs"
    out.mkdir()
    shutil.copy(store.removeprefix("sqlite:///"), out / "mlflow.db")
    uri = f"sqlite:///{out / 'mlflow.db'}"
    assert prepare(uri, out, "e") is None
    deliver(record(tmp_path), uri)
    return out


def places(out):
    """Every path that the store names, and the content of the version's weights."""
    uri = f"sqlite:///{out / 'mlflow.db'}"
    assert prepare(uri, out, "e") is None
    client = open_client(uri)
    (version,) = versions(uri)
    run = client.get_run(version.run_id)
    where = client.get_model_version_download_uri("sweep", version.version)
    folder = client.download_artifacts(version.run_id, "checkpoint")
    with open(f"{folder}/model.safetensors", "rb") as file:
        content = file.read()
    experiment = client.get_experiment(run.info.experiment_id)
    named = [version.source, where, run.info.artifact_uri, experiment.artifact_location]
    return named, content


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
@pytest.mark.parametrize("name", ["else where", "100% _#"])
def test_artifacts_are_found_where_the_folder_is_now(whole, tmp_path, how, name):
    before, content = places(whole)
    assert content == b"weights"
    other = tmp_path / name / "runs"
    other.parent.mkdir()
    how(whole, other)
    if how is shutil.move:
        assert not whole.exists()
    named, again = places(other)
    assert again == content
    root = (other / "mlartifacts").as_uri() if "#" in name else str(other / "mlartifacts")
    assert all(place.startswith(root) for place in named)
    if whole.exists():
        assert places(whole)[0] == before


def test_a_store_without_its_artifacts_keeps_their_place(whole, tmp_path):
    before, _ = places(whole)
    (tmp_path / "alone").mkdir()
    shutil.copy(whole / "mlflow.db", tmp_path / "alone" / "mlflow.db")
    assert places(tmp_path / "alone")[0] == before


def test_a_moved_run_is_found_by_its_key(tmp_path):
    plain = {"name": "one"}
    made = runs.identify(tmp_path / "runs" / "one", "train", plain)
    trial = runs.identify(tmp_path / "runs" / "s" / runs.TRIALS / "0003", "trial", plain)
    (tmp_path / "runs").rename(tmp_path / "moved")
    gone, out = tmp_path / "runs" / "one", tmp_path / "moved"
    assert runs.by_uid(gone, made.uid, out) == out / "one"
    assert runs.by_uid(gone, trial.uid, out) == out / "s" / runs.TRIALS / "0003"
    assert runs.by_uid(gone, "unknown", out) == gone
    assert runs.by_uid(out / "one", "unknown", out) == out / "one"

"""Weights in the model registry: real SQLite stores, a real server, an unreachable server."""

import hashlib
import json
import shutil

import pytest
from tracking import deliver, free_port, lines, runs_of

from raybust.track import Journal, sync
from raybust.track.client import open_client

TAGS = {"raybust.acr": 0.5, "raybust.n": 1000}


def weights(tmp_path, content=b"weights"):
    path = tmp_path / "epoch-000001" / "model.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    (path.parent / "manifest.json").write_text("{}")
    return [path, path.parent / "manifest.json"]


def record(tmp_path, model="sweep", content=b"weights", description="text", **tags):
    """Records weights for registration; returns the journal's path."""
    files = weights(tmp_path, content)
    with Journal(tmp_path / "registered.journal.jsonl") as journal:
        journal.attach("key", "e")
        digest = hashlib.sha256(content).hexdigest()
        journal.register(
            model, files, folder="checkpoint", digest=digest, description=description,
            tags=TAGS | tags,
        )  # fmt: skip
        return journal.path


def versions(uri, name="sweep"):
    client = open_client(uri)
    found = client.search_model_versions(f"name = '{name}'")
    return [client.get_model_version(name, one.version) for one in found]


@pytest.fixture(params=["sqlite", "server"])
def place(request, tmp_path):
    """URI of a store, once a file and once behind a server."""
    if request.param == "server":
        return request.getfixturevalue("server").uri
    return request.getfixturevalue("store")


def test_weights_become_a_version_that_can_be_fetched(place, tmp_path):
    name = f"fetched {tmp_path.name}"
    deliver(record(tmp_path, name), place)
    (version,) = versions(place, name)
    client = open_client(place)
    assert (version.description, version.current_stage) == ("text", "None")
    assert version.tags == {
        "raybust.acr": "0.5", "raybust.n": "1000",
        "raybust.digest": hashlib.sha256(b"weights").hexdigest(),
    }  # fmt: skip
    assert client.get_run(version.run_id).data.tags["raybust.run_key"] == "key"
    assert version.source.endswith("/checkpoint")
    assert client.get_model_version_by_alias(name, "best").version == version.version
    import mlflow

    mlflow.set_tracking_uri(place)
    mlflow.set_registry_uri(place)
    try:
        folder = mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{name}@best", dst_path=str(tmp_path / "fetched")
        )
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
    found = {path.name: path.read_bytes() for path in (tmp_path / "fetched").rglob("*.safetensors")}
    assert found == {"model.safetensors": b"weights"}, folder


def test_the_same_again_makes_no_second_version(place, tmp_path):
    name = f"again {tmp_path.name}"
    journal = record(tmp_path, name)
    deliver(journal, place)
    size = journal.stat().st_size
    assert record(tmp_path, name).stat().st_size == size, "must be recorded once"
    deliver(journal, place)
    assert len(versions(place, name)) == 1


def test_a_lost_acknowledgment_makes_no_second_version(place, tmp_path):
    name = f"lost {tmp_path.name}"
    journal = record(tmp_path, name)
    deliver(journal, place)
    journal.with_name(journal.name + ".ack").unlink()
    deliver(journal, place)
    assert len(versions(place, name)) == 1


def test_a_new_certificate_of_the_same_weights_is_the_same_version(store, tmp_path):
    deliver(record(tmp_path), store)
    deliver(record(tmp_path, description="better", **{"raybust.n": 10**5}), store)
    (version,) = versions(store)
    assert (version.description, version.tags["raybust.n"]) == ("better", "100000")


def test_what_a_new_measurement_does_not_have_is_gone(store, tmp_path):
    """A figure of an earlier protocol would stand beside the new ones; tags of others stay."""
    deliver(record(tmp_path, **{"raybust.acr_understated": "True"}), store)
    (version,) = versions(store)
    open_client(store).set_model_version_tag("sweep", version.version, "reviewed", "yes")
    deliver(record(tmp_path, description="drawn in full"), store)
    (version,) = versions(store)
    assert "raybust.acr_understated" not in version.tags
    assert version.tags["reviewed"] == "yes"


def test_other_weights_are_another_version(store, tmp_path):
    deliver(record(tmp_path), store)
    deliver(record(tmp_path, content=b"others"), store)
    assert sorted(int(one.version) for one in versions(store)) == [1, 2]
    best = open_client(store).get_model_version_by_alias("sweep", "best")
    assert int(best.version) == 2
    assert best.tags["raybust.digest"] == hashlib.sha256(b"others").hexdigest()


@pytest.mark.parametrize(
    ("mode", "bounds", "second", "best"),
    [
        ("max", "", 0.4, 1), ("max", "", 0.6, 2), ("min", "", 0.4, 2), ("min", "", 0.6, 1),
        ("max", "validation/accuracy >= 0.9", 0.4, 2),
    ],
)  # fmt: skip
def test_best_is_the_better_version_not_the_later_one(store, tmp_path, mode, bounds, second, best):
    """By the sweep's metric; versions of other constraints cannot be compared."""
    tags = {"raybust.metric": "acr", "raybust.mode": mode, "raybust.bounds": ""}
    deliver(record(tmp_path, **tags, **{"raybust.value": 0.5}), store)
    tags["raybust.bounds"] = bounds
    deliver(record(tmp_path, content=b"others", **tags, **{"raybust.value": second}), store)
    assert int(open_client(store).get_model_version_by_alias("sweep", "best").version) == best


@pytest.mark.parametrize("key", ["raybust.data", "raybust.fidelity"])
def test_versions_of_other_data_or_fidelity_are_not_compared(store, tmp_path, key):
    tags = {"raybust.metric": "acr", "raybust.mode": "max", "raybust.bounds": "",
            "raybust.data": "digest", "raybust.fidelity": "n = 100"}  # fmt: skip
    deliver(record(tmp_path, **tags, **{"raybust.value": 0.5}), store)
    tags[key] = "another"
    deliver(record(tmp_path, content=b"others", **tags, **{"raybust.value": 0.4}), store)
    assert int(open_client(store).get_model_version_by_alias("sweep", "best").version) == 2


@pytest.mark.parametrize("name", ["a/b:c", "it's", 'q"uote', "x" * 300, "ünï"])
def test_any_name_of_a_sweep_is_a_name_of_a_model(store, tmp_path, name):
    delivery = deliver(record(tmp_path, name), store)
    assert delivery.rejected == 0
    deliver(record(tmp_path, name, description="again"), store)
    (model,) = open_client(store).search_registered_models()
    assert len(versions(store, model.name)) == 1


def test_a_server_that_is_away_gets_it_later(tmp_path, template):
    from tracking import Server

    journal = record(tmp_path)
    result = sync(tmp_path, f"http://127.0.0.1:{free_port()}", deadline_s=20)
    assert [path for path, _ in result.left] == [journal]
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder, template)
    server.start()
    try:
        assert sync(tmp_path, server.uri).left == ()
        assert len(versions(server.uri)) == 1
    finally:
        server.kill()


def test_weights_that_are_gone_are_refused_with_the_reason(store, tmp_path):
    journal = record(tmp_path)
    shutil.rmtree(tmp_path / "epoch-000001")
    delivery = deliver(journal, store)
    assert delivery.rejected == 3
    refused = lines(journal.with_name(journal.name + ".rejected"))
    assert refused[-1]["model"] == "sweep"
    assert "model.safetensors" in refused[-1]["reason"]
    assert versions(store) == []


def test_a_version_waits_for_its_files(store, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    from raybust.track.delivery import Delivery, UndeliveredError

    journal = record(tmp_path)
    original = MlflowClient.log_artifact

    def away(self, run_id, path, *rest):
        if path.endswith("model.safetensors"):
            raise ConnectionError("away")
        return original(self, run_id, path, *rest)

    monkeypatch.setattr(MlflowClient, "log_artifact", away)
    delivery = Delivery(journal, store)
    with pytest.raises(UndeliveredError, match="away"):
        delivery.step()
    assert versions(store) == []
    monkeypatch.setattr(MlflowClient, "log_artifact", original)
    assert delivery.step()
    assert len(versions(store)) == 1
    assert json.loads(journal.with_name(journal.name + ".ack").read_text())["pending"] == []


def test_the_run_and_its_sweep_name_the_version_and_not_the_alias(store, tmp_path):
    """The alias may be that of another sweep's better version."""
    tags = {"raybust.metric": "acr", "raybust.mode": "max", "raybust.bounds": ""}
    for number, value in enumerate((0.5, 0.3)):
        for key, parent in ((f"sweep{number}", None), (f"trial{number}", f"sweep{number}")):
            folder = tmp_path / key
            with Journal(folder / "journal.jsonl") as journal:
                journal.start(key, "e", key, parent_key=parent)
            deliver(folder / "journal.jsonl", store)
        files = weights(folder, str(value).encode())
        with Journal(folder / "registered.journal.jsonl") as journal:
            journal.attach(key, "e")
            journal.register("sweep", files, folder="checkpoint", digest=str(value),
                             tags=tags | {"raybust.value": value})  # fmt: skip
        deliver(folder / "registered.journal.jsonl", store)
    found = {run.info.run_name: run.data.tags["raybust.model"] for run in runs_of(store)}
    assert found == {
        "sweep0": "models:/sweep/1", "trial0": "models:/sweep/1",
        "sweep1": "models:/sweep/2", "trial1": "models:/sweep/2",
    }  # fmt: skip
    assert open_client(store).get_model_version_by_alias("sweep", "best").version == 1

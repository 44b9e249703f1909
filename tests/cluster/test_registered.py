"""The best finalist in a real registry: selected by the search, with its certificate, once."""

import csv
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import kit
import numpy as np
import pytest
import torch
from torch import nn
from waiting import wait

from raybust import config as configuration
from raybust import data, track
from raybust.certification import CertificateLog, Protocol, certify_examples
from raybust.disk import checkpoint, runs
from raybust.reporting import acr, read_log
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord
from raybust.stages.packaged import MODEL, package
from raybust.stages.registration import REGISTERED, describe_sweep, register
from raybust.track import sync
from raybust.track.client import open_client
from raybust.trained import load_trained
from raybust.training.fit import fit


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep's folder with two trained trials, and a certification log."""
    folder = tmp_path_factory.mktemp("registered") / "found"
    for number in range(2):
        config = kit.config(folder.parent, "data.limit=40", "train.epochs=1", f"seed={number}")
        trial = folder / runs.TRIALS / f"{number:04d}"
        runs.identify(trial, "trial", configuration.to_dict(config))
        for progress in fit(config, data.load(config.data), torch.device("cpu")):
            name = checkpoint.folder_name(progress.epoch)
            checkpoint.commit(trial, name, progress.save, keep=2)
        assert package(load_trained(trial, []), checkpoint.newest(trial), trial / MODEL)
    protocol = Protocol(sigma=0.5, shape=(1, 2, 2), n=500, weights="w" * 64, split="test")
    log = CertificateLog(folder / "log.tsv", protocol)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    found = certify_examples(network, torch.rand(9, 1, 2, 2), torch.zeros(9), range(9), protocol)
    log.append(list(found))
    log.finish()
    return folder


def board(folder, *trials, feasible=None):
    entries = tuple(
        TrialRecord(
            number, "gaussian", "COMPLETE", {"train.lr": 0.05}, 0.5 - number / 10, {},
            feasible=feasible, accuracy=accuracy, examples=150, certified={"certified/acr": 0.1},
            attacked={"attacked/linf_0.03/robust_accuracy": 0.25, "attacked/flags": 0.0},
            log=folder / "log.tsv",
        )
        for number, accuracy in trials
    )  # fmt: skip
    return Leaderboard("found", "certified_fast/acr", "max", entries, (), folder)


def ensured(client, key):
    """Returns the id of the run with a key."""
    places = [one.experiment_id for one in client.search_experiments()]
    (found,) = client.search_runs(places, f"tags.`raybust.run_key` = '{key}'")
    return found.info.run_id


USE = """
import sys
import mlflow
import numpy as np

mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/found@best")
images = np.load(sys.argv[2])
print(model.predict(images).to_csv(index=False))
print(model.predict(images, params={"plain": True}).to_csv(index=False))
print("ray" in sys.modules)
other = mlflow.pyfunc.load_model(
    "models:/found@best", model_config={"certify.sigma": 0.75, "certify.n": 300}
)
print()
print(other.predict(images).to_csv(index=False))
"""


def test_mlflow_loads_the_model_in_a_fresh_process(sweep, out):
    mine = shutil.ignore_patterns(f"{REGISTERED}*")
    sweep = shutil.copytree(sweep, out / "found", ignore=mine)
    register(board(sweep, (0, 0.75), (1, 0.99)), ())
    assert sync(sweep, kit.uri(out)).left == ()
    trained = load_trained(sweep / runs.TRIALS / "0000", [])
    images, _ = trained.dataset.test.fetch(range(4))
    np.save(out / "images.npy", images.numpy())
    done = subprocess.run(
        [sys.executable, "-c", USE, kit.uri(out), str(out / "images.npy")],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    certified, plain, ray, other = done.stdout.strip().split("\n\n")
    assert {row["draws"] for row in csv.DictReader(other.splitlines())} == {"300"}
    rows = list(csv.DictReader(certified.splitlines()))
    assert [row["image"] for row in rows] == ["0", "1", "2", "3"]
    assert {row["draws"] for row in rows} == {"200"}, "certify.n of the sweep"
    tops = trained.network(images).argmax(1).tolist()
    assert [int(row["number"]) for row in csv.DictReader(plain.splitlines())] == tops
    assert ray == "False"
    assert "Traceback" not in done.stderr


def test_mlflow_serves_the_model(sweep, out):
    sweep = shutil.copytree(sweep, out / "found", ignore=shutil.ignore_patterns(f"{REGISTERED}*"))
    register(board(sweep, (0, 0.75)), ())
    assert sync(sweep, kit.uri(out)).left == ()
    trained = load_trained(sweep / runs.TRIALS / "0000", [])
    images = trained.dataset.test.fetch(range(3))[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/found@best",
               "--env-manager", "local", "-p", str(port)]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": kit.uri(out), "PATH": path}
    with (out / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait(lambda: answers(f"http://127.0.0.1:{port}/ping"), 300, "MLflow's server answers")
        body = {"inputs": images.tolist(), "params": {"plain": True}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as found:
            rows = json.load(found)["predictions"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert [row["number"] for row in rows] == trained.network(images).argmax(1).tolist()


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except (OSError, urllib.error.URLError):
        return False


def test_the_description_of_a_sweep_leads_to_its_model(sweep):
    made = board(sweep, (0, 0.75), (1, 0.99))
    text = describe_sweep(made, registered=True)
    assert "Best by certified_fast/acr: trial 0, gaussian, lr=0.05: 0.5000" in text
    assert "Registered as a version of the model [found](#/models/found)" in text
    assert f"ACR {acr(read_log(sweep / 'log.tsv'))}" in text
    assert "Registered" not in describe_sweep(made, registered=False)


def test_the_best_finalist_becomes_a_version_once(sweep, out):
    made = board(sweep, (0, 0.75), (1, 0.99))
    for _ in range(2):
        assert register(made, ()).number == 0, "the search decides, not the test set"
        assert sync(sweep, kit.uri(out)).left == ()
    client = open_client(kit.uri(out))
    (found,) = client.search_model_versions("name = 'found'")
    version = client.get_model_version("found", found.version)
    trial = sweep / runs.TRIALS / "0000"
    weights = checkpoint.newest(trial) / checkpoint.WEIGHTS
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    average = acr(read_log(sweep / "log.tsv"))
    expected = {
        "digest": digest, "acr": str(average.value), "acr_low": str(average.low), "n": "500",
        "alpha": "0.001", "sigma": "0.5", "examples": "9", "weights": "w" * 64, "trial": "0",
        "method": "gaussian", "clean_accuracy": "0.75", "clean_examples": "150",
        "dataset": "digits", "sweep": "found",
        "attacked/linf_0.03/robust_accuracy": "0.25",
    }  # fmt: skip
    assert (
        expected.items()
        <= {key.removeprefix("raybust."): value for key, value in version.tags.items()}.items()
    )
    assert str(average) in version.description
    assert digest in version.description
    assert "Clean accuracy of the network on 150 test examples: 0.7500" in version.description
    run = client.get_run(version.run_id)
    assert run.data.tags["raybust.run_key"] == runs.read_identity(trial).uid
    fetched = track.fetch_model(kit.uri(out), "models:/found@best", out / "fetched")
    assert fetched == track.fetch_model(kit.uri(out), "models:/found/1", out / "fetched")
    assert weights.read_bytes() == (fetched / checkpoint.WEIGHTS).read_bytes()
    found = {path.name for path in fetched.parent.rglob("*") if path.is_file()}
    assert found == {
        "MLmodel", "loader.py", "raybust.json", "model.safetensors", "manifest.json",
        "input_example.json", "serving_input_example.json", "requirements.txt", "conda.yaml",
        "python_env.yaml",
    }, "no pickle"  # fmt: skip
    assert str(sweep) not in "".join(path.read_text() for path in fetched.parent.glob("*.*"))
    other = client.get_run(ensured(client, runs.read_identity(sweep / runs.TRIALS / "0001").uid))
    names = {one.path for one in client.list_artifacts(other.info.run_id, "model")}
    assert "model/MLmodel" in names, "every finalist has a model"


def test_who_misses_a_constraint_and_who_was_not_measured_is_not_registered(sweep):
    (sweep / runs.TRIALS / "0001" / REGISTERED).unlink(missing_ok=True)
    assert register(board(sweep, (1, 0.9), feasible=False), ()) is None
    assert register(board(sweep, (1, None)), ()) is None
    assert register(board(sweep), ()) is None
    kinds = {entry["e"] for entry in kit.lines(sweep / runs.TRIALS / "0001" / REGISTERED)}
    assert "register" not in kinds, "its model is uploaded as any finalist's"


def test_the_fidelity_of_a_version_names_its_number_of_seeds(sweep):
    """The alias moves between values that were measured alike: not from one seed to a mean."""
    journal, found = sweep / runs.TRIALS / "0000" / REGISTERED, []
    for seeds in ((0,), (0, 1, 2)):
        journal.unlink(missing_ok=True)
        made = board(sweep, (0, 0.75))
        entries = tuple(dataclasses.replace(entry, seeds=seeds) for entry in made.entries)
        register(dataclasses.replace(made, entries=entries), ())
        found += [entry["tags"]["raybust.fidelity"] for entry in kit.lines(journal)
                  if entry["e"] == "register"]  # fmt: skip
    assert [text.rpartition(", ")[2] for text in found] == ["mean over 1 seed", "mean over 3 seeds"]
    journal.unlink()


def test_a_model_is_packaged_anew_for_another_protocol_and_fetched_from_its_own_store(sweep, out):
    mine = shutil.ignore_patterns(f"{REGISTERED}*")
    sweep = shutil.copytree(sweep, out / "found", ignore=mine)
    trial = sweep / runs.TRIALS / "0000"
    leaves = configuration.leaves_of_arguments(["certify.noise=uniform"])
    trained = load_trained(trial, leaves)
    newest = checkpoint.newest(trial)
    assert package(trained, newest, trial / MODEL)
    assert not package(trained, newest, trial / MODEL)
    loaded = load_trained(trial / MODEL / "artifacts", [], with_data=False)
    assert loaded.config.certify.noise == "uniform"
    register(board(sweep, (0, 0.75)), ())
    assert sync(sweep, kit.uri(out)).left == ()
    first = track.fetch_model(kit.uri(out), "models:/found@best", out / "fetched")
    open_client(kit.uri(out)).delete_registered_model("found")
    (trial / REGISTERED).unlink()
    (trial / f"{REGISTERED}.ack").unlink()
    assert package(load_trained(trial, []), newest, trial / MODEL)
    register(board(sweep, (0, 0.75)), ())
    assert sync(sweep, kit.uri(out)).left == ()
    second = track.fetch_model(kit.uri(out), "models:/found@best", out / "fetched")
    assert first != second, "version 1 of a model that was deleted is not that of the new one"
    config = load_trained(second, [], with_data=False).config
    assert config.certify.noise == "gaussian"

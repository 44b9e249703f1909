"""The best finalist in a real registry: selected by the search, with its certificate, once."""

import hashlib

import kit
import pytest
import torch
from torch import nn

from raybust import config as configuration
from raybust import data
from raybust.certification import CertificateLog, Protocol, certify_examples
from raybust.disk import checkpoint, runs
from raybust.reporting import acr, read_log
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord
from raybust.stages.registration import REGISTERED, register_best
from raybust.track import sync
from raybust.track.client import open_client
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


def test_the_best_finalist_becomes_a_version_once(sweep, out):
    made = board(sweep, (0, 0.75), (1, 0.99))
    for _ in range(2):
        assert register_best(made, ()).number == 0, "the search decides, not the test set"
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
    fetched = client.download_artifacts(run.info.run_id, "checkpoint", str(sweep))
    assert weights.read_bytes() in [
        path.read_bytes() for path in (sweep / "checkpoint").iterdir()
    ], fetched  # fmt: skip


def test_who_misses_a_constraint_and_who_was_not_measured_is_not_registered(sweep):
    (sweep / runs.TRIALS / "0001" / REGISTERED).unlink(missing_ok=True)
    assert register_best(board(sweep, (1, 0.9), feasible=False), ()) is None
    assert register_best(board(sweep, (1, None)), ()) is None
    assert register_best(board(sweep), ()) is None
    assert not (sweep / runs.TRIALS / "0001" / REGISTERED).exists()

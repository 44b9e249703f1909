"""Training while a server is unreachable in the middle of a run, in each of four ways."""

import time

import pytest
import torch
from faulty import MODES, Faulty
from tracking import points, runs_of

from raybust import config as configuration
from raybust import data, methods
from raybust.cluster.runlog import Job, RunLog
from raybust.stages import tracking
from raybust.track import prepare, sync
from raybust.training.fit import fit

pytestmark = pytest.mark.drills

EPOCHS = 12


@pytest.fixture
def faulty(server):
    made = Faulty(server.port)
    yield made
    made.stop()


def config_of(experiment):
    settings = ["method.name=gaussian", "method.sigma=0.25", "model.width=4", "data.limit=256",
                f"train.epochs={EPOCHS}", "certified_fast.examples=5", "certified_fast.n=100",
                f"track.experiment={experiment}"]  # fmt: skip
    return configuration.compose(configuration.leaves_of_arguments(settings), methods.get)


def assert_all_there_once(server, experiment):
    (run,) = runs_of(server.uri, experiment)
    assert run.info.status == "FINISHED"
    own = [(key, step) for run_id, key, step, _ in points(f"sqlite:///{server.folder}/mlflow.db")
           if run_id == run.info.run_id]  # fmt: skip
    assert len(own) == len(set(own)), "duplicate points"
    assert sorted(step for key, step in own if key == "train/loss") == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize("mode", MODES)
def test_every_point_arrives_once(mode, faulty, server, tmp_path):
    experiment = f"away {mode}"
    config = config_of(experiment)
    assert prepare(faulty.uri, tmp_path, experiment) is None
    plain = configuration.to_dict(config)
    log = RunLog(Job(plain, str(tmp_path / "run"), f"key {mode}", mode), config, faulty.uri)
    for progress in fit(config, data.load(config.data), torch.device("cpu")):
        if progress.epoch == 3:
            faulty.mode = mode
        if progress.epoch == EPOCHS - 2:
            _wait_for_a_failed_request(faulty, mode)
            faulty.released.set()
            faulty.mode = None
        log.epoch(progress)
    log.end("finished")
    log.close(60)
    assert sync(tmp_path, faulty.uri).left == ()
    assert_all_there_once(server, experiment)
    assert faulty.failed[mode] > 0


@pytest.mark.parametrize("mode", ["refused", "500"])
def test_what_a_server_that_stays_away_misses_is_sent_by_the_next_command(
    mode, faulty, server, tmp_path
):
    """Uses the context that `raybust train` and `tune` wrap around their work."""
    experiment = f"gone {mode}"
    config, said = config_of(experiment), []
    folder, plain = tmp_path / "run", configuration.to_dict(config)
    assert prepare(faulty.uri, tmp_path, experiment) is None
    with tracking.sending_rest(folder, faulty.uri, tmp_path, said.append):
        log = RunLog(Job(plain, str(folder), f"gone {mode}", mode), config, faulty.uri)
        for progress in fit(config, data.load(config.data), torch.device("cpu")):
            if progress.epoch == 3:
                faulty.mode = mode
            log.epoch(progress)
        log.end("finished")
        log.close(1)
    (warning,) = said
    assert "journal.jsonl is not in MLflow yet" in warning
    assert "rerun the same command to send it" in warning
    faulty.mode = None
    with tracking.sending_rest(folder, faulty.uri, tmp_path, said.append):
        pass
    assert said == [warning]
    assert_all_there_once(server, experiment)


def _wait_for_a_failed_request(faulty, mode):
    deadline = time.monotonic() + 30
    while not faulty.failed[mode]:
        assert time.monotonic() < deadline, f"no request reached the server while {mode}"
        time.sleep(0.05)

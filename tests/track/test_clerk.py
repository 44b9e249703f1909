"""The process that talks to MLflow for a command."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from waiting import wait

from raybust import RequestError, track
from raybust.track import clerk, prepare
from raybust.track.client import open_client


@pytest.fixture(scope="module", autouse=True)
def at_last():
    yield
    clerk._dismiss()


@pytest.fixture
def process():
    return track.call(os.getpid)


def test_the_command_does_not_import_mlflow(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    code = (
        "import sys; from raybust import track;"
        f"print(track.call(track.prepare, {uri!r}, {str(tmp_path)!r}, 'found'));"
        "print('mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["None", "False"], done.stderr
    assert [one.name for one in open_client(uri).search_experiments()] == ["found", "Default"]


def test_errors_are_those_of_the_function(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database" * 100)
    with pytest.raises(RequestError, match="cannot be used"):
        track.call(prepare, f"sqlite:///{tmp_path}/mlflow.db", tmp_path, "found")


def test_it_has_the_environment_of_the_command(process, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    assert track.call(os.getenv, "MLFLOW_TRACKING_USERNAME") == "somebody"
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    assert track.call(os.getenv, "MLFLOW_TRACKING_USERNAME") is None
    assert track.call(os.getpid) == process


def test_where_it_dies_the_command_goes_on(process):
    os.kill(process, signal.SIGKILL)
    assert track.call(os.getpid) == os.getpid()
    assert track.call(os.getpid) not in (process, os.getpid()), "the next call starts another"


def test_a_journal_is_delivered_while_it_is_written(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert track.call(prepare, uri, tmp_path, "found") is None
    with track.Journal(tmp_path / "journal.jsonl") as journal:
        journal.start("key", "found", "run")
        following = track.Following(journal.path, uri)
        journal.metrics({"loss": 0.5}, 1)
        assert following.close(60)
    (run,) = open_client(uri).search_runs(["1"])
    assert run.data.metrics == {"loss": 0.5}


def test_it_survives_ctrl_c_and_ends_with_a_command_that_is_killed():
    code = (
        "import os, time; from raybust import track;"
        "print(track.call(os.getpid), flush=True); time.sleep(600)"
    )
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    beside = psutil.Process(int(command.stdout.readline()))
    beside.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert beside.is_running()
    command.kill()
    command.wait()
    wait(lambda: not beside.is_running() or beside.status() == "zombie", 60, "it has ended")

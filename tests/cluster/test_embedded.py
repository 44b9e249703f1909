"""The Ray of one command: on loopback, with its own token and folder; its death is one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
from waiting import names, wait

from raybust.cluster import embedded
from raybust.errors import RequestError, WorkError

pytestmark = pytest.mark.cluster

INTRUDER = """
import ray, sys
ray.init(address=sys.argv[1], logging_level="ERROR")
print(ray.get(ray.remote(lambda: 41).remote()) + 1)
"""
SPACE = """
name: bereft
method: {name: gaussian, sigma: 0.25}
model: {width: 24}
train: {epochs: 20, batch_size: 128}
certified_fast: {examples: 20, n: 100}
tune: {trials: 3, scheduler: none, finalists: 0, metric: validation/accuracy}
search:
  train.lr: {float: [0.02, 0.2], log: true, default: 0.05}
"""


def test_everything_listens_on_loopback_only(cluster):
    """What listens elsewhere could be reached from another host or network namespace."""
    own = psutil.Process()
    places = {
        connection.laddr.ip
        for process in (own, *own.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert places
    assert places <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_no_server_runs_that_nobody_asked_for(cluster):
    """The session of the tests shows a dashboard, but no output of its workers."""
    running = {
        Path(word).name
        for child in psutil.Process().children(recursive=True)
        for word in child.cmdline()[:4]
    }
    assert {"gcs_server", "raylet", "dashboard.py"} <= running
    assert not running & {"monitor.py", "log_monitor.py"}


def test_a_process_without_the_token_runs_no_task(cluster, tmp_path):
    """Neither with none nor with another one; Ray keeps trying, so they are ended."""
    bare = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    bare |= {"HOME": str(tmp_path)}
    intruders = [
        subprocess.Popen(
            [sys.executable, "-c", INTRUDER, ray.get_runtime_context().gcs_address],
            env=bare | token, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for token in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
    ]  # fmt: skip
    time.sleep(20)
    for intruder in intruders:
        intruder.kill()
        said, _ = intruder.communicate()
        assert "42" not in said
        assert intruder.returncode != 0


def test_the_folder_is_short_and_the_users_own(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    own = f"ray-{os.getuid()}"
    assert str(embedded.session_folder()) == f"/tmp/{own}"
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 90)))
    assert str(embedded.session_folder()) == f"/tmp/{own}"


@pytest.mark.parametrize(
    ("place", "reason"), [("x" * 90, "is longer than"), ("/proc/nowhere", "/proc/nowhere: ")]
)
def test_no_folder_for_ray_is_one_line(tmp_path, monkeypatch, place, reason):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / place))
    with pytest.raises(RequestError, match=f"(?s){reason}.*set RAY_TMPDIR to a short folder"):
        embedded.session_folder()


def test_ray_that_does_not_start_is_one_line(monkeypatch):
    class Broken:
        starts = 0

        @classmethod
        def init(cls, **_):
            cls.starts += 1
            raise TimeoutError("The current node timed out\nduring startup.")

    with (
        pytest.raises(WorkError, match=r"^Ray did not start on this machine: The current node"
                      r" timed out during startup\.; rerun the same command"),
        embedded.embedded(Broken),
    ):  # fmt: skip
        raise AssertionError("it started")
    assert Broken.starts == 3


def test_ray_is_started_again_on_a_busy_machine():
    """The servers of the first attempt are gone."""

    class Slow:
        children = None

        @classmethod
        def init(cls, **_):
            if cls.children is None:
                sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
                cls.children = [subprocess.Popen(sleeper)]
                raise TimeoutError("The current node timed out during startup.")

        @staticmethod
        def shutdown():
            pass

    with embedded.embedded(Slow):
        (first,) = Slow.children
        assert first.wait(60) == -signal.SIGKILL


@pytest.mark.drills
@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_a_server_that_dies_ends_a_sweep_in_one_line(new_out, server):
    """Within seconds, with nothing left behind; the same command resumes."""
    out = new_out(f"bereft-{server}")
    (out / "space.yaml").write_text(SPACE)
    command = [sys.executable, "-m", "raybust", "tune", out / "space.yaml", "--out", out]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    trials = out / "bereft/trials"
    wait(lambda: list(trials.glob("*/epoch-*")), 180, "a checkpoint")
    children = psutil.Process(process.pid).children(recursive=True)
    (victim,) = [pid for pid, name in names(children).items() if name == server]
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - killed < 10
    assert process.returncode == 1
    last = said.strip().splitlines()[-1]
    assert last == (
        f"raybust: Ray's {server} died on this machine; finished work is kept; rerun the same"
        " command to resume"
    )
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=20)
    assert names(alive) == {}
    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert again.returncode == 0, again.stderr

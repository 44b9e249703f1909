"""Tasks in this process with helpers beside it: every result once, whatever happens to a helper."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import torch
from waiting import wait

from raybust import config as configuration
from raybust import methods
from raybust.errors import RequestError, WorkError
from raybust.stages.place import Here, suffices, threads
from raybust.track import clerk


def config_of(**cluster):
    config = configuration.compose([], methods.get)
    return replace(config, cluster=replace(config.cluster, **cluster))


@pytest.fixture
def here(monkeypatch):
    """A pool of three processes, and what it says."""
    monkeypatch.setattr("raybust.stages.place.cpu_count", lambda: 3)
    said = []
    pool = Here(config_of(), None, said.append)
    assert pool.room == 3
    return pool, said


def squared(number, pause=0.02):
    time.sleep(pause)
    return number**2, os.getpid(), torch.get_num_threads()


def test_every_result_comes_once_from_this_process_and_helpers(here):
    pool, said = here
    found = list(pool.run(squared, ((number, 0.3) for number in range(60))))
    assert sorted(result for result, _, _ in found) == [number**2 for number in range(60)]
    places = {place for _, place, _ in found}
    assert os.getpid() in places
    assert 2 <= len(places) <= 3
    assert {count for _, _, count in found} == {1}
    assert said == []
    wait(lambda: not helpers(), 30, "the helpers are gone")


@pytest.fixture(scope="module", autouse=True)
def _without_the_process_of_mlflow():
    clerk._dismiss()


def helpers():
    found = psutil.Process().children(recursive=True)
    return [one for one in found if "popen_loky" in " ".join(one.cmdline())]


@pytest.mark.parametrize("count", [0, 1])
def test_few_calls_need_no_helper(here, count):
    pool, _ = here
    calls = ((number,) for number in range(count))
    assert [place for _, place, _ in pool.run(squared, calls)] == [os.getpid()] * count
    assert helpers() == []


def test_a_short_command_does_not_wait_for_helpers(here):
    pool, _ = here
    began = time.monotonic()
    assert len(list(pool.run(squared, ((number, 0) for number in range(6))))) == 6
    assert time.monotonic() - began < 30  # helpers that import torch need longer on a busy machine


def deadly(number, own, dying):
    if os.getpid() != own:
        dying.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    wait(dying.exists, 30, "a helper that dies")
    time.sleep(0.5)
    return number


def test_helpers_that_die_cost_no_result(here, tmp_path):
    pool, said = here
    dying = tmp_path / "dying"
    found = list(pool.run(deadly, ((number, os.getpid(), dying) for number in range(20))))
    assert sorted(found) == list(range(20))
    assert said == ["warning: a helper process died; the command goes on in one process"]


def broken(kind, only_in, own):
    time.sleep(0.2)
    if (os.getpid() == own) == (only_in == "here"):
        raise kind("told by the task")


@pytest.mark.parametrize("where", ["here", "helper"])
@pytest.mark.parametrize(
    ("kind", "raised", "text"),
    [
        (RequestError, RequestError, "told by the task"),
        (WorkError, WorkError, "told by the task"),
        (ZeroDivisionError, WorkError, "a task failed: ZeroDivisionError: told by the task; fin"),
    ],
)
def test_what_a_task_raises_is_raised(here, where, kind, raised, text):
    pool, _ = here
    with pytest.raises(raised, match=text):
        list(pool.run(broken, ((kind, where, os.getpid()) for _ in range(200))))


def test_the_room_is_what_was_asked_for_and_fits(monkeypatch):
    monkeypatch.setattr("raybust.stages.place.cpu_count", lambda: 8)
    rooms = [Here(config_of(cpus_per_worker=2), workers, print).room for workers in (None, 3, 99)]
    assert rooms == [4, 3, 4]
    with pytest.raises(RequestError, match=r"1 workers of 9 CPUs .* do not fit"):
        Here(config_of(cpus_per_worker=9), None, print)


def test_threads_are_those_of_a_worker_and_come_back():
    before = torch.get_num_threads()
    with threads(config_of(cpus_per_worker=before + 2)):
        assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before


def test_one_worker_on_this_machine_needs_no_ray(monkeypatch):
    assert suffices(config_of(), None)
    assert suffices(config_of(gpus_per_worker=0), None)
    assert not suffices(config_of(), "auto")
    for setting in ({"workers": 2}, {"storage": "/mnt/s"}, {"gpus_per_worker": 0.5}):
        assert not suffices(config_of(**setting), None)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert not suffices(config_of(), None)


KILLED = """
import sys
sys.path.insert(0, {folder!r})
from test_place import config_of, squared
from raybust.stages import place
place.cpu_count = lambda: 3
pool = place.Here(config_of(), None, print)
for result in pool.run(squared, ((number, 1.0) for number in range(1000))):
    print(result[1], flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_helpers_end_with_their_command(number):
    script = KILLED.format(folder=os.path.dirname(__file__))
    command = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    seen = set()
    while len(seen) < 2:
        seen.add(int(command.stdout.readline()))
    children = psutil.Process(command.pid).children(recursive=True)
    command.send_signal(number)
    command.wait(30)
    _, alive = psutil.wait_procs(children, timeout=60)
    for one in alive:
        one.kill()
    assert alive == []

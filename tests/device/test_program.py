"""The whole program where Ray counts one GPU: sweep, finalists, certify, evaluate."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import raybust.cluster  # noqa: F401  sets Ray's options before Ray is imported
from raybust import config as configuration
from raybust import methods
from raybust.cluster.embedded import embedded
from raybust.cluster.tasks import gpu_workers, run_tasks
from raybust.cluster.worker import own_device
from raybust.errors import WorkError

SPACE = """
name: sweep
method: {name: gaussian, sigma: 0.25}
model: {width: 4}
train: {epochs: 2, batch_size: 128}
certified_fast: {examples: 20, n: 100}
certify: {examples: 30, n: 200}
evaluate: {examples: 20, eps: [0.1], steps: 5, queries: 20}
tune: {trials: 2, scheduler: none, finalists: 2, metric: validation/accuracy}
search:
  train.lr: {float: [0.02, 0.2], log: true, default: 0.05}
"""


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine with two CPUs and one GPU."""
    import ray

    quiet = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    with embedded(ray, num_cpus=2, num_gpus=1, include_dashboard=True, **quiet):
        yield ray


def make(*settings):
    given = configuration.leaves_of_arguments(["method.name=gaussian", *settings])
    return configuration.compose(given, methods.get)


def header(path):
    return json.loads(path.read_text().splitlines()[0].lstrip("# "))


def test_a_sweep_with_its_finalists(cluster, cli, tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    found = cli("tune", tmp_path / "space.yaml", "--out", tmp_path, "--json")
    assert found.code == 0, found.err
    board = json.loads(found.out)
    for entry in board["entries"]:
        assert entry["reason"] is None
        assert entry["accuracy"] > 0.2
        assert entry["certified"]["certified/acr"] >= 0
        assert entry["attacked"]["attacked/clean_accuracy"] > 0.2
    trial = tmp_path / "sweep/trials/0000"
    (log,) = (trial / "certified").glob("*.tsv")
    (table,) = (trial / "attacked").glob("*.tsv")
    assert header(log)["device"] == header(table)["device"] == "pretend"
    assert header(log)["batch"] == 10_000
    again = ("certify", "sweep/0", "--out", tmp_path, "certify.examples=30", "certify.n=200")
    resumed = cli(*again)
    assert resumed.code == 0, resumed.err
    one = cli(*again, "--only", log.read_text().splitlines()[-1].split("\t")[0])
    assert (one.code, "was reproduced" in one.out) == (0, True), one.err
    clean = cli("evaluate", "sweep/0", "--out", tmp_path, "evaluate.attacks=[]")
    assert (clean.code, "clean accuracy" in clean.out) == (0, True), clean.err


def test_a_run_of_one_worker_and_its_corruptions(cluster, cli, tmp_path):
    run = ("method.name=gaussian", "model.width=4", "train.epochs=1", "certified_fast.examples=10")
    # Ray Train's process group of GPUs is NCCL's, which this build of PyTorch lacks.
    found = cli("train", *run, "cluster.gpus_per_worker=0", "--name", "one", "--out", tmp_path)
    assert found.code == 0, found.err
    found = cli(
        "evaluate", "one", "--out", tmp_path, "evaluate.attacks=[]", "corruptions.sets=[iCE]",
        "corruptions.examples=40", "cluster.gpus_per_worker=1",
    )  # fmt: skip
    assert found.code == 0, found.err


def _where(number):
    time.sleep(0.05)
    return os.getpid(), torch.zeros(1, device=own_device()).device.type


def test_tasks_on_a_gpu_share_a_process(cluster):
    """Ray would start a process for each task that has a GPU."""
    config, calls = make(), [(n,) for n in range(6)]
    with gpu_workers(cluster):
        first = set(run_tasks(cluster, config, 1, _where, calls))
        with gpu_workers(cluster):
            second = set(run_tasks(cluster, config, 1, _where, calls))
        assert first == second
        ((_, device),) = first
        assert device == "pretend"
    later = set(run_tasks(cluster, config, 1, _where, calls))
    assert len(later) == 1
    assert later != first


def _dies(marker):
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def _raises(text):
    raise torch.OutOfMemoryError(text)


def test_a_process_that_dies_is_replaced(cluster, tmp_path):
    found = run_tasks(cluster, make(), 1, _dies, [(str(tmp_path / "died"),)])
    assert list(found) == ["done"]


def test_what_a_task_on_a_gpu_raises_is_one_line(cluster):
    with gpu_workers(cluster):
        with pytest.raises(WorkError, match="OutOfMemoryError: no memory; finished work is kept"):
            list(run_tasks(cluster, make(), 1, _raises, [("no memory",)]))
        assert len(list(run_tasks(cluster, make(), 1, _where, [(1,)]))) == 1


def test_a_fraction_of_a_gpu_makes_room_for_several(cluster):
    config = make("cluster.gpus_per_worker=0.5")
    with gpu_workers(cluster):
        found = set(run_tasks(cluster, config, 2, _where, [(n,) for n in range(8)]))
    assert len({process for process, _ in found}) == 2


def test_the_script_for_a_gpu_finds_the_same_numbers():
    """The parts of `make gpu` that compare a device with the CPU."""
    script = Path(__file__).parents[2] / "benchmarks/gpu.py"
    parts = ("losses", "certificates", "attacks")
    done = subprocess.run([sys.executable, script, *parts], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, [line for line in lines if "failed" in line]
    checked = {line["name"]: line["holds"] for line in lines if line.get("holds") is not None}
    assert len(checked) >= 15
    assert [name for name, holds in checked.items() if not holds] == []

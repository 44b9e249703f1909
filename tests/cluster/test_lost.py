"""What a two-worker training run loses with a node, after a preemption notice, or with its driver.

Runs `raybust train` in its own process on a cluster of several nodes on this machine. After each
fault the weights must equal those of an undisturbed run.
"""

import os
import re
import signal
import subprocess
import sys
import time

import kit
import pytest
from test_worker import assert_same_weights
from waiting import wait

from raybust.disk import checkpoint

pytestmark = pytest.mark.drills

EPOCHS = 8
SETTINGS = ("method.name=gaussian", "method.sigma=0.25", "model.width=24", "train.batch_size=64",
            f"train.epochs={EPOCHS}", "certified_fast.examples=20", "certified_fast.n=100",
            "--workers", "2")  # fmt: skip


class Nodes:
    """A head without CPUs, and nodes with one CPU each."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.living = []

    @property
    def address(self):
        return self.cluster.address

    def have(self, count):
        """Adds or removes nodes until `count` are up."""
        while len(self.living) < count:
            self.living.append(self.cluster.add_node(num_cpus=1))
        while len(self.living) > count:
            self.lose()
        self.cluster.wait_for_nodes()

    def lose(self):
        """Kills all processes of a node at once."""
        self.cluster.remove_node(self.living.pop(0), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes():
    made = Nodes()
    yield made
    made.cluster.shutdown()


class Run:
    """`raybust train` in its own process."""

    def __init__(self, nodes, out, name, *more, **environment):
        self.folder = out / name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raybust", "train", *SETTINGS, *more, "--name", name,
             "--out", out, "--address", nodes.address],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip

    def reaches(self, epoch):
        """Waits until an epoch's checkpoint exists and a later epoch is being trained."""

        def there():
            assert self.process.poll() is None, self.process.communicate()[0]
            newest = checkpoint.newest(self.folder)
            return newest is not None and checkpoint.epoch_of(newest) >= epoch

        wait(there, 120, f"epoch {epoch}")

    def ends(self, code=0, seconds=240):
        said, _ = self.process.communicate(timeout=seconds)
        print(said)
        assert self.process.returncode == code, said
        return said

    def epochs_trained(self):
        """Steps in the order recorded, and how often the run was resumed."""
        entries = kit.lines(self.folder / "journal.jsonl")
        steps = [entry["step"] for entry in entries if entry["e"] == "metrics"]
        return steps, len([entry for entry in entries if entry["e"] == "resume"])


@pytest.fixture(scope="module")
def outs(new_out):
    return new_out("lost")


@pytest.fixture(scope="module")
def undisturbed(nodes, outs):
    """The weights of an undisturbed run."""
    nodes.have(2)
    run = Run(nodes, outs, "undisturbed")
    run.ends()
    return checkpoint.newest(run.folder)


def assert_complete(run, undisturbed, resumed=1):
    assert_same_weights(checkpoint.newest(run.folder), undisturbed)
    assert run.epochs_trained() == (list(range(1, EPOCHS + 1)), resumed)


def test_a_lost_node_is_replaced(nodes, outs, undisturbed):
    nodes.have(2)
    run = Run(nodes, outs, "replaced")
    run.reaches(3)
    nodes.lose()
    nodes.have(2)
    run.ends()
    assert_complete(run, undisturbed)


def test_a_lost_node_without_a_replacement_is_told_in_bounded_time(nodes, outs, undisturbed):
    nodes.have(2)
    run = Run(nodes, outs, "alone", RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="5")
    run.reaches(3)
    nodes.lose()
    lost = time.monotonic()
    said = run.ends(code=1)
    assert time.monotonic() - lost < 90
    last = said.splitlines()[-1]
    assert "alone" in last
    assert "no room left for 2 workers: 1 CPUs" in last
    assert "rerun the same command to resume" in last
    nodes.have(2)
    again = Run(nodes, outs, "alone")
    assert re.search(r"resuming at epoch [3-7]", again.ends())
    assert_complete(again, undisturbed)


def test_workers_that_no_node_holds_are_refused_at_once(nodes, outs):
    """Four CPUs in total, one per node: two workers with two CPUs each would wait forever."""
    nodes.have(4)
    said = Run(nodes, outs, "whole", "cluster.cpus_per_worker=2").ends(code=2)
    assert "cluster's 4 CPUs and 0 GPUs on 5 nodes, which have room for 0 such workers" in said
    assert not (outs / "whole").exists()


def test_a_killed_driver_is_started_again(nodes, outs, undisturbed):
    nodes.have(2)
    run = Run(nodes, outs, "driver")
    run.reaches(3)
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    again = Run(nodes, outs, "driver")
    assert re.search(r"resuming at epoch [3-7]", again.ends())
    assert_complete(again, undisturbed)


def killed_in_epoch(nodes, outs, name, epoch):
    """A run whose driver and workers have been killed."""
    run = Run(nodes, outs, name)
    run.reaches(epoch)
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    time.sleep(5)
    return run


def test_a_torn_checkpoint_is_told_and_the_one_before_it_is_used(nodes, outs, undisturbed):
    nodes.have(2)
    run = killed_in_epoch(nodes, outs, "torn", 4)
    newest, before = checkpoint.folders(run.folder)[:2]
    weights = newest / checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    said = Run(nodes, outs, "torn").ends()
    assert newest.name in said
    assert f"resuming at epoch {checkpoint.epoch_of(before)}" in said
    assert_same_weights(checkpoint.newest(run.folder), undisturbed)


def test_a_torn_record_of_ray_s_costs_nothing(nodes, outs, undisturbed):
    nodes.have(2)
    run = killed_in_epoch(nodes, outs, "record", 3)
    (run.folder / "checkpoint_manager_snapshot.json").write_text("")  # as after a full disk
    newest = checkpoint.newest(run.folder)
    said = Run(nodes, outs, "record").ends()
    assert f"resuming at epoch {checkpoint.epoch_of(newest)}" in said
    assert_complete(run, undisturbed)


def test_a_notice_of_preemption_costs_no_epoch_and_counts_as_no_failure(nodes, outs, undisturbed):
    nodes.have(3)
    run = Run(nodes, outs, "preempted", "cluster.max_failures=0",
              RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.2")  # fmt: skip
    run.reaches(2)
    workers = kit.descendants("ray::RayTrainWorker")
    hosts = {process.ppid() for process in workers}
    for process in workers:  # they would be done before the notice is written
        process.suspend()
    going = next(node for node in nodes.living
                 if node.all_processes["raylet"][0].process.pid in hosts)  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", nodes.address,
         "--node-id", going.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
         "--reason-message", "spot", "--deadline-remaining-seconds", "100"],
        check=True,
    )  # fmt: skip
    for process in workers:
        process.resume()
    began = time.monotonic()
    run.ends()
    assert time.monotonic() - began < 90, "it waited for the node to go"
    assert_complete(run, undisturbed)

"""Numbers of nodes that an autoscaler may add, and runs that need nodes that are not up yet."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import yaml
from autoscaled import Autoscaled
from ray.autoscaler._private.kuberay import node_provider
from ray.autoscaler._private.util import prepare_config

from raybust.cluster import autoscaler, session, worker
from raybust.errors import RequestError

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ("method.name=gaussian", "method.sigma=0.25", "model.width=4", "train.batch_size=120",
        "train.epochs=2", "certified_fast.examples=20", "certified_fast.n=100",
        "certify.examples=30", "certify.n=200", "certify.radii=[0,0.25]")  # fmt: skip

LARGE = "cluster.cpus_per_worker=2"
"""More than the head of the autoscaled cluster has."""

WAITS = "waiting for the autoscaler to add nodes"


def cluster_file(most, **types):
    """A cluster file: resources and `max_workers` of each type, None to omit it."""
    kinds = {
        name: {"resources": resources} | ({} if limit is None else {"max_workers": limit})
        for name, (resources, limit) in types.items()
    }
    head = {"head": {"resources": {"CPU": 4}}}
    return {"max_workers": most, "head_node_type": "head", "available_node_types": head | kinds}


GPU, BIG, PLAIN = {"CPU": 8, "GPU": 1}, {"CPU": 48, "GPU": 4}, {"CPU": 64}


@pytest.mark.parametrize(
    ("file", "nodes"),
    [
        ({}, []),
        (cluster_file(0, gpu=(GPU, 8)), []),
        (cluster_file(8, gpu=(GPU, 3)), [GPU] * 3),
        (cluster_file(2, gpu=(GPU, 3)), [GPU] * 2),
        (cluster_file(2, gpu=(GPU, None)), [GPU] * 2),
        (cluster_file(9, gpu=(GPU, 0)), []),
        (cluster_file(3, plain=(PLAIN, 2), gpu=(GPU, 2), big=(BIG, 1)), [BIG, GPU, GPU]),
        (cluster_file(9, plain=(PLAIN, 2), gpu=(GPU, 1)), [GPU, PLAIN, PLAIN]),
        (cluster_file(2, own=({}, 2)), []),
        (cluster_file(1) | {"available_node_types": {"head": {"resources": GPU, "max_workers": 1}}},
         [GPU]),
    ],
)  # fmt: skip
def test_no_more_than_the_caps_allow_together(file, nodes):
    assert autoscaler.largest(file) == nodes


@pytest.mark.parametrize(
    ("name", "cpus", "gpus"),
    [("cluster.yaml", 64, 8), ("examples/gcp.yaml", 64, 8), ("examples/local.yaml", 0, 0)],
)
def test_what_the_files_of_the_repository_allow(name, cpus, gpus):
    nodes = autoscaler.largest(prepare_config(yaml.safe_load((ROOT / name).read_text())))
    assert sum(node["CPU"] for node in nodes) == cpus
    assert sum(node["GPU"] for node in nodes) == gpus


def test_capacity_is_the_head_with_all_nodes_that_may_be_there(monkeypatch):
    alive = {"Alive": True}
    head = alive | {"Resources": {autoscaler.HEAD: 1.0, "CPU": 1.0, "GPU": 0.0}}
    node = alive | {"Resources": {"CPU": 8.0, "GPU": 1.0}}
    ray = SimpleNamespace(nodes=lambda: [head, node, node | {"Alive": False}])
    for coming, most in (([], (9, 1)), ([GPU] * 3, (25, 3))):
        monkeypatch.setattr(session, "potential_workers", lambda ray, coming=coming: coming)
        nodes = session.nodes_of(ray)
        assert len(nodes.alive) == 2
        assert (nodes.total("CPU"), nodes.total("GPU")) == most


@pytest.mark.parametrize(("coming", "own", "waits"), [([GPU], None, "900"), ([], None, None),
                                                      ([GPU], "7", "7")])  # fmt: skip
def test_workers_wait_for_nodes_where_an_autoscaler_starts_them(monkeypatch, coming, own, waits):
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    monkeypatch.setattr(os, "environ", {} if own is None else {name: own})
    monkeypatch.setattr(worker, "potential_workers", lambda ray: coming)
    monkeypatch.setattr(worker.ray, "nodes", lambda: [{"Alive": True}])
    worker._adapt_to_cluster()
    assert os.environ.get(name) == waits
    assert os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == str(int(bool(coming)))


@pytest.mark.cluster
def test_nothing_comes_to_an_embedded_ray(cluster):
    assert autoscaler.potential_workers(cluster) == []
    assert autoscaler._ask_head(cluster) == {}
    nodes = session.nodes_of(cluster)
    assert nodes.potential == ()
    assert nodes.total("CPU") == cluster.cluster_resources()["CPU"]


@pytest.mark.cluster
def test_a_file_that_cannot_be_read_is_told(cluster, monkeypatch, tmp_path):
    ours = f"--gcs-address={cluster.get_runtime_context().gcs_address}"
    command = ["python", "ray/monitor.py", ours, f"--autoscaling-config={tmp_path}/gone"]
    monkeypatch.setattr(autoscaler, "_commands", lambda: iter([command]))
    with pytest.raises(RequestError, match=r"cannot read the autoscaler.*No such file.*ray status"):
        autoscaler.potential_workers(cluster)
    command[2] += "0"  # another cluster's
    assert autoscaler.potential_workers(cluster) == []


class Kubernetes:
    """Stands in for the Kubernetes API: serves one RayCluster, or an error."""

    def __init__(self, monkeypatch, folder, code=200, scales=True):
        kinds = yaml.safe_load_all((ROOT / "examples/kuberay.yaml").read_text())
        (job,) = (found for found in kinds if found["kind"] == "RayJob")
        spec = job["spec"]["rayClusterSpec"] | {"enableInTreeAutoscaling": scales}
        self.found = {"metadata": {"name": "own", "namespace": "here"}, "spec": spec}
        self.code, self.asked = code, []
        (folder / "namespace").write_text("here")
        monkeypatch.setattr(autoscaler, "_NAMESPACE", folder / "namespace")
        monkeypatch.setattr(autoscaler, "_commands", lambda: iter([]))
        monkeypatch.setenv("RAY_CLUSTER_NAME", "own")
        monkeypatch.setattr(node_provider, "load_k8s_secrets", lambda: ({}, "ca", None))
        monkeypatch.setattr(requests, "get", self.get)

    def get(self, url, **options):
        self.asked.append(url)
        answer = requests.Response()
        answer.status_code, answer.raw = self.code, io.BytesIO(json.dumps(self.found).encode())
        return answer


@pytest.mark.cluster
def test_kuberay_is_asked_for_its_ray_cluster(cluster, monkeypatch, tmp_path):
    api = Kubernetes(monkeypatch, tmp_path)
    nodes = autoscaler.potential_workers(cluster)
    assert [(node["CPU"], node["GPU"]) for node in nodes] == [(8, 1)] * 4
    (url,) = api.asked
    assert url.endswith("/apis/ray.io/v1/namespaces/here/rayclusters/own")


@pytest.mark.cluster
@pytest.mark.parametrize("answer", [{"code": 403}, {"scales": False}])
def test_nothing_comes_to_a_ray_cluster_that_does_not_scale(cluster, monkeypatch, tmp_path, answer):
    Kubernetes(monkeypatch, tmp_path, **answer)
    assert autoscaler.potential_workers(cluster) == []


@pytest.mark.cluster
def test_an_api_that_fails_is_told(cluster, monkeypatch, tmp_path):
    Kubernetes(monkeypatch, tmp_path, code=500)
    with pytest.raises(RequestError, match=r"cannot read the autoscaler.*500 Server Error"):
        autoscaler.potential_workers(cluster)


@pytest.fixture(scope="module", params=["v2", "v1"])
def autoscaled(request, tmp_path_factory):
    """A head with one CPU, and up to two nodes with two CPUs each, none of them up."""
    with pytest.MonkeyPatch.context() as patch:
        made = Autoscaled(
            tmp_path_factory.mktemp("autoscaled"), patch, head=1, node=2, most=2,
            v2=request.param == "v2",
        )  # fmt: skip
    yield made
    made.end()


def raybust(autoscaled, *arguments, code=0):
    """The output of a command in its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "raybust", *arguments, "--address", autoscaled.address],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.mark.drills
def test_workers_that_fit_on_no_node_yet_get_theirs_and_finish(autoscaled, new_out):
    out = new_out("grown")
    said = raybust(autoscaled, "doctor", "--out", out)
    assert "1 CPUs, 0 GPUs on 1 nodes; the autoscaler may add up to 4 CPUs and 0 GPUs" in said
    said = raybust(autoscaled, "train", *TRAIN, "--name", "one", "--out", out)
    assert WAITS not in said, "it fits on the head"
    said = raybust(autoscaled, "certify", "one", LARGE, "--workers", "1", "--out", out)
    assert WAITS in said
    assert "certified/test_gaussian" in said
    said = raybust(autoscaled, "train", *TRAIN, LARGE, "--workers", "3", "--out", out, code=2)
    assert "3 workers of 2 CPUs and 0 GPUs do not fit into the cluster's 5 CPUs" in said
    two = ("--workers", "2", "--name", "two", "--out", out)
    said = raybust(autoscaled, "train", *TRAIN, LARGE, *two)
    assert WAITS in said
    assert "trained two" in said
    assert "5 CPUs, 0 GPUs on 3 nodes; 5 runs at a time" in raybust(
        autoscaled, "doctor", "--out", out
    )
    code = (
        "import ray; from raybust.cluster.autoscaler import potential_workers;"
        f" ray.init(address='{autoscaled.address}');"
        " print(ray.get(ray.remote(num_cpus=2)(lambda: potential_workers(ray)).remote()))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    said = done.stdout.splitlines()  # the autoscaler's own lines may come before and after
    assert "[{'CPU': 2}, {'CPU': 2}]" in said, "a trial's driver on a node knows too"

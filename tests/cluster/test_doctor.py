"""What `raybust doctor` reports about each missing thing, and that it advises a fix."""

import json
from dataclasses import replace

import kit
import pytest

from raybust.cluster import doctor, jobs, nodes
from raybust.cluster.nodes import Node
from raybust.cluster.session import Nodes
from raybust.errors import RequestError

HEAD = Node(host="head", head=True, driver_gpus=0, ray_gpus=0, shared=True, mlflow="", memory=16)
WORKER = replace(HEAD, host="far", head=False, driver_gpus=2, ray_gpus=2, memory=4)
WHOLE = (HEAD, WORKER)


def missing(*seen, most=None):
    """Returns the findings with state "missing", by name."""
    rows = doctor.findings(seen, most or {"CPU": 4, "GPU": 2})
    return {row.what: row for row in rows if row.state == "missing"}


def test_a_whole_cluster_lacks_nothing():
    assert missing(*WHOLE) == {}


@pytest.mark.parametrize(
    ("what", "host", "fault", "advice"),
    [
        ("GPUs", "far: 2", {"ray_gpus": 0}, "CUDA_VISIBLE_DEVICES"),
        ("GPUs", "far: 2", {"ray_gpus": 1}, "restart Ray there"),
        ("storage", "far", {"shared": False}, "mount one folder on all nodes"),
        ("MLflow", "far (timed out)", {"mlflow": "timed out"}, "MLFLOW_TRACKING_URI"),
    ],
)
def test_what_a_worker_lacks(what, host, fault, advice):
    found = missing(HEAD, replace(WORKER, **fault))
    assert found.keys() == {what}
    assert host in found[what].seen
    assert advice in found[what].advice


def test_only_the_heads_memory_counts():
    found = missing(replace(HEAD, memory=4.0), WORKER)
    assert found.keys() == {"head"}
    assert "4.0 GiB" in found["head"].seen
    assert "8 GiB or more" in found["head"].advice


def test_no_gpu_anywhere_is_a_note_until_the_autoscaler_may_bring_one():
    bare = (HEAD, replace(WORKER, driver_gpus=0, ray_gpus=0))
    (note,) = [row for row in doctor.findings(bare, {"CPU": 4}) if row.what == "GPUs"]
    assert note.state == "note"
    assert "nvidia-smi" in note.advice
    assert not [row for row in doctor.findings(bare, {"CPU": 4, "GPU": 8}) if row.what == "GPUs"]


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("memory.max", "4294967296\n", 4.0),
        ("memory.max", "max\n", 16.0),
        ("memory/memory.limit_in_bytes", "2147483648\n", 2.0),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", 16.0),
        ("other", "1", 16.0),
    ],
)
def test_the_memory_of_a_container_is_its_limit(tmp_path, monkeypatch, file, text, found):
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4 * 2**20}
    monkeypatch.setattr(nodes.os, "sysconf", pages.get)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert nodes.memory(tmp_path) == found


@pytest.mark.cluster
def test_a_folder_that_cannot_be_made_is_a_row_and_no_row_is_lost(cluster, tmp_path):
    (tmp_path / "file").touch()
    found = {row.what: row for row in doctor.examine(kit.config(tmp_path / "file"), "auto")}
    assert found["nodes"].state == "missing"
    assert "file: File exists" in found["nodes"].seen
    assert "--out" in found["nodes"].advice
    assert found["Ray"].state == "ok"


@pytest.mark.cluster
def test_a_node_that_goes_while_it_is_asked_is_a_row(cluster, tmp_path, monkeypatch):
    gone = [dict(node, NodeID="0" * 56) for node in cluster.nodes()]
    monkeypatch.setattr(cluster, "nodes", lambda: gone)
    monkeypatch.setattr(doctor, "nodes_of", lambda ray: Nodes(({"CPU": 2.0},)))
    found = {row.what: row for row in doctor.examine(kit.config(tmp_path), "auto")}
    assert found["nodes"].state == "missing"
    assert "TaskUnschedulableError" in found["nodes"].seen
    assert "ray status" in found["nodes"].advice
    assert found["Ray"].state == "ok"


@pytest.mark.cluster
def test_an_autoscaler_that_cannot_be_asked_is_a_row(cluster, tmp_path, monkeypatch):
    def fail(ray):
        raise RequestError("no answer from the head")

    monkeypatch.setattr(doctor, "nodes_of", fail)
    found = {row.what: row for row in doctor.examine(kit.config(tmp_path), None)}
    assert found["autoscaler"].seen == "no answer from the head"
    assert found["Ray"].state == "ok"


@pytest.mark.cluster
def test_a_client_of_other_versions_and_a_store_that_is_away(cluster, tmp_path, monkeypatch):
    here = jobs.versions()
    monkeypatch.setenv(jobs.CLIENT, json.dumps(here | {"ray": "1.0.0"}))
    away = kit.config(tmp_path, "track.uri=http://127.0.0.1:9")
    found = {row.what: row for row in doctor.examine(away, None) if row.state == "missing"}
    assert found.keys() == {"MLflow", "versions"}
    assert "start the server" in found["MLflow"].advice
    seen = f"ray 1.0.0 on the submitting machine, {here['ray']} on the cluster"
    assert found["versions"].seen == seen
    assert "requirements.lock" in found["versions"].advice


@pytest.mark.cluster
def test_a_node_that_does_not_reach_the_server_says_why(cluster, tmp_path):
    (seen,) = nodes.inspect_nodes(cluster, tmp_path, "http://127.0.0.1:9")
    assert "refused" in seen.mlflow
    assert seen.head
    assert seen.shared
    assert seen.memory > 1
    assert list(tmp_path.iterdir()) == []

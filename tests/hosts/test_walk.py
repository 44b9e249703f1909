"""The walk-through of docs/cluster.md on isolated hosts: up, check, train, certify, search, down.

Every command runs on the laptop; its effects are checked from outside. The tests build on each
other, in this order.
"""

import re
import sqlite3
import subprocess

import pytest
import torch
from lab import JOBS
from waiting import names, wait

from raybust import config as configuration
from raybust.disk import checkpoint
from raybust.stages import certified
from raybust.trained import load_trained

pytestmark = pytest.mark.hosts

TO = f"--out /mnt/raybust/runs --address {JOBS}"
FAST = "certified_fast.examples=20 certified_fast.n=100"
CERTIFY = "certify.n=200 certify.radii=[0,0.25]"
FINISHED = re.compile(r" +\d+ +finished ")
"""A line of the sweep's table."""


def mlflow_rows(lab, query):
    """Rows of MLflow's database on the head's disk."""
    with sqlite3.connect(lab.head.home / "raybust_mlflow/mlflow.db") as connection:
        return connection.execute(query).fetchall()


def test_nothing_listens_for_others_but_ssh_and_ray(lab):
    listening = lab.head.run("ss -Hltnp")
    for port in ("8265", "5000"):
        (address,) = re.findall(rf"(\S+):{port}\s", listening)
        assert address == "127.0.0.1", f"port {port} listens on {address}"
    for port in ("8265", "5000"):
        assert lab.answer(f"http://{lab.head.address}:{port}/", lab.worker) == "000"


def test_both_dashboards_answer_through_the_one_tunnel(lab):
    assert lab.answer("http://127.0.0.1:5000/") == "200"
    assert lab.answer("http://127.0.0.1:8265/") == "200"
    assert "403" in lab.answer("-H 'Host: evil.example' http://127.0.0.1:5000/")
    assert wait(
        lambda: lab.answer("http://127.0.0.1:5000/health", lab.worker) == "200", 60, "relay"
    )


def test_without_the_token_nothing_is_submitted(lab):
    assert lab.answer("http://127.0.0.1:8265/api/jobs/") in ("401", "403")
    said = lab.laptop.run(
        f"mv ~/.ray/auth_token ~/.ray/away; raybust doctor {TO}; code=$?;"
        " mv ~/.ray/away ~/.ray/auth_token; exit $code",
        code=2,
    )
    assert len(said.splitlines()) == 1
    assert "~/.ray/auth_token" in said


def test_doctor(lab):
    said = lab.laptop.run(f"raybust doctor {TO}")
    assert "2 CPUs, 0 GPUs on 2 nodes" in said
    assert "the same folder on every node" in said


def test_the_file_of_the_autoscaler_is_found_on_the_head(lab):
    code = "from raybust.cluster import autoscaler as a; print(a._cluster_file()['cluster_name'])"
    assert lab.python(code).strip() == lab.filled_in()["cluster_name"]


def test_doctor_names_a_folder_that_is_not_shared(lab):
    said = lab.laptop.run(f"raybust doctor --out /root/own --address {JOBS}", code=1)
    assert re.search(r"storage +missing +not shared with rb[12] +mount one folder", said)


def test_two_hosts_train_one_network(lab):
    said = lab.laptop.run(
        "raybust train method.name=gaussian method.sigma=0.25 model.width=4 train.epochs=3"
        f" train.batch_size=128 {FAST} --workers 2 --name two {TO}",
        timeout=240,
    )
    assert re.search(r"process group \(gloo\): rank 0 on rb[12], rank 1 on rb[12]", said)
    assert f"certify it  raybust certify two {TO}" in said
    assert "browse it   http://127.0.0.1:5000, on the cluster" in said
    hosts = re.findall(r"rank \d on (rb\d)", said)
    assert sorted(hosts) == ["rb1", "rb2"]
    folder = lab.shared / "runs/two"
    manifest = checkpoint.read_manifest(checkpoint.newest(folder))
    assert (manifest["epoch"], manifest["workers"]) == (3, 2)
    trained = load_trained(folder, [])
    split = trained.dataset.validation
    images, labels = split.fetch(torch.arange(len(split)))
    with torch.no_grad():
        accuracy = (trained.network(images).argmax(1) == labels).double().mean().item()
    assert accuracy == pytest.approx(manifest["metrics"]["validation/accuracy"], abs=1e-9)
    assert accuracy > 0.6
    (run,) = mlflow_rows(lab, "select run_uuid from runs where name = 'two'")
    where = f"where run_uuid = '{run[0]}' and key"
    assert mlflow_rows(lab, f"select step from metrics {where} = 'train/loss' order by step") == [
        (1,), (2,), (3,)]  # fmt: skip
    tags = dict(mlflow_rows(lab, f"select key, value from tags {where} like 'raybust%'"))
    assert tags["raybust.hosts"].split() == hosts


def test_both_hosts_certify_it(lab):
    said = lab.laptop.run(f"raybust certify two certify.examples=60 {CERTIFY} {TO} --detach")
    again = re.search(r"follow it with: (ray job logs .*)", said).group(1)
    lab.laptop.run(again, timeout=240)
    said = lab.laptop.run(f"raybust certify two certify.examples=60 {CERTIFY} {TO}")
    assert "60 of 60 rows are done" in said
    assert "curve  /mnt/raybust/runs/two/certified/" in said
    settings = configuration.leaves_of_arguments(["certify.examples=60", *CERTIFY.split()])
    trained = load_trained(lab.shared / "runs/two", settings)
    log = certified.log_path(trained.folder, certified.protocol_of(trained, "cpu"))
    rows = [line for line in log.read_text().splitlines() if re.match(r"\d", line)]
    assert len(rows) == 60
    for row in rows[::12]:
        number = int(row.split("\t")[0])
        assert "was reproduced" in certified.recompute(trained, number)
    tasks = "list_tasks(filters=[('name', '=', '_shard')], detail=True)"
    code = f"from ray.util.state import list_tasks; print(*{{t.node_id for t in {tasks}}})"
    assert len(lab.python(code).split()) == 2, "both hosts computed certificates"


def test_a_sweep_survives_a_lost_connection(lab):
    process = lab.laptop.start(
        "raybust tune search_spaces/quickstart.yaml model.width=4 train.epochs=4 tune.trials=4"
        f" tune.finalists=1 tune.scheduler=none certify.examples=30 {FAST} {CERTIFY}"
        f" --name search {TO}"
    )
    said = []
    for line in process.stdout:
        said.append(line.rstrip())
        print(said[-1], flush=True)
        if FINISHED.match(line) and lab.tunnel is not None:
            lab.close_tunnel()
            lab.tunnel = None
        if "connection lost" in line:
            lab.open_tunnel()
    assert process.wait() == 0
    text = "\n".join(said)
    assert text.index("connection lost") < text.index("connection restored")
    trials = [line for line in said if FINISHED.match(line)]
    assert len(trials) == len(set(trials)) == 4, "a line is missing or duplicated"
    names = {
        name for (name,) in mlflow_rows(lab, "select name from runs where name like 'search%'")
    }
    assert names == {"search", *(f"search/{number}" for number in range(4))}
    rows = mlflow_rows(
        lab,
        "select run_uuid, key, step from metrics where key = 'train/loss'"
        " and run_uuid in (select run_uuid from runs where name like 'search/%')",
    )
    assert len(rows) == len(set(rows)) == 4 * 4
    with sqlite3.connect(lab.shared / "runs/search/study.db") as study:
        assert [s for (s,) in study.execute("select state from trials")] == ["COMPLETE"] * 4


def test_results_are_fetched(lab):
    lab.laptop.run("mkdir -p runs; ray rsync-down mine.yaml /mnt/raybust/runs/search/ runs/search/")
    there, here = lab.shared / "runs/search", lab.laptop.home / "raybust/runs/search"
    files = sorted(path.relative_to(there) for path in there.rglob("*.safetensors"))
    assert files
    for path in (*files, "leaderboard.md"):
        assert (here / path).read_bytes() == (there / path).read_bytes()


def test_no_token_in_what_is_kept(lab):
    token = (lab.laptop.home / ".ray/auth_token").read_text().strip()
    assert len(token) > 20
    places = [lab.shared, lab.head.home / "raybust_mlflow", lab.head.home / "raybust_services.log",
              *(host.disk / "tmp/ray" for host in lab.network.hosts[1:])]  # fmt: skip
    found = subprocess.run(["grep", "-rlF", token, *places], capture_output=True, text=True)
    assert found.stdout == ""


def test_down_ends_rays_processes_there_and_nothing_elsewhere(lab):
    # Looks like Ray to `ray stop`, which must not see it.
    outside = subprocess.Popen(
        ["bash", "-c", "exec -a raylet/raylet sleep 600"], stdin=subprocess.DEVNULL
    )
    try:
        lab.laptop.run("ray exec mine.yaml '~/raybust_services.sh stop'")
        lab.laptop.run("ray down -y mine.yaml")
        lab.laptop.run(f"ssh -o StrictHostKeyChecking=no root@{lab.worker.address} ray stop")
        left = names([*lab.head.processes(), *lab.worker.processes()]).values()
        assert not [name for name in left if re.search("raylet|gcs_server|mlflow", name)], left
        assert outside.poll() is None
    finally:
        outside.kill()
        outside.wait()

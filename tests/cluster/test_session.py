"""How many runs fit on a cluster, and addresses without a cluster."""

import os
import subprocess
import sys
from types import SimpleNamespace

import kit
import pytest

from raybust.cluster import session as module
from raybust.cluster.autoscaler import HEAD
from raybust.cluster.session import Nodes, must_grow, nodes_of, session, slots
from raybust.errors import RequestError


def config(tmp_path, *settings):
    return kit.config(tmp_path, *settings)


@pytest.mark.parametrize(
    ("settings", "resources", "overhead", "expected"),
    [
        ((), {"CPU": 2}, 0, 2),
        ((), {"CPU": 2}, 0.01, 1),
        (("cluster.workers=2",), {"CPU": 8}, 0, 4),
        (("cluster.workers=2",), {"CPU": 8}, 0.01, 3),
        (("cluster.cpus_per_worker=0.1",), {"CPU": 1}, 0, 10),
        (("cluster.cpus_per_worker=3",), {"CPU": 8}, 0, 2),
        ((), {"CPU": 64, "GPU": 3}, 0, 3),
        (("cluster.workers=2",), {"CPU": 64, "GPU": 5}, 0, 2),
        (("cluster.gpus_per_worker=0.25",), {"CPU": 64, "GPU": 2}, 0, 8),
        (("cluster.gpus_per_worker=0",), {"CPU": 6, "GPU": 2}, 0, 6),
        ((), {"CPU": 2, "GPU": 8}, 0, 2),
    ],
)
def test_slots(tmp_path, settings, resources, overhead, expected):
    assert slots(config(tmp_path, *settings), Nodes((resources,)), overhead) == expected


@pytest.mark.parametrize(
    ("settings", "living", "overhead", "expected"),
    [
        ((), [{"CPU": 1}] * 4, 0, 4),
        (("cluster.workers=2",), [{"CPU": 1}] * 5, 0, 2),
        (("cluster.cpus_per_worker=2",), [{"CPU": 3}] * 4, 0, 4),
        (("cluster.cpus_per_worker=2",), [{"CPU": 1}] * 3 + [{"CPU": 5}], 0, 2),
        (("cluster.cpus_per_worker=2",), [{"CPU": 16}, {"CPU": 8, "GPU": 2}], 0, 2),
        (("cluster.gpus_per_worker=0.4",), [{"CPU": 64, "GPU": 2}], 0, 4),
        (("cluster.gpus_per_worker=2",), [{"CPU": 8, "GPU": 3}] * 2, 0, 2),
        # A trial's driver uses CPUs left over by workers, or displaces a worker.
        (("cluster.workers=2",), [{"CPU": 2}] * 4, 0.01, 3),
        (("cluster.workers=2",), [{"CPU": 2}] * 4 + [{"CPU": 0.5}], 0.01, 4),
        (("cluster.workers=2", "cluster.cpus_per_worker=2"), [{"CPU": 3}] * 4, 0.01, 2),
    ],
)
def test_a_worker_is_whole_on_one_node(tmp_path, settings, living, overhead, expected):
    assert slots(config(tmp_path, *settings), Nodes(tuple(living)), overhead) == expected


def test_nodes_of_which_none_holds_a_worker_are_refused_however_many_they_are(tmp_path):
    two = config(tmp_path, "cluster.cpus_per_worker=2")
    with pytest.raises(RequestError, match=r"4 CPUs and 0 GPUs on 4 nodes, .* 0 such workers"):
        slots(two, Nodes(({"CPU": 1},) * 4))
    assert slots(two, Nodes(({"CPU": 1},) * 4, potential=({"CPU": 1}, *({"CPU": 4},) * 3))) == 6
    with pytest.raises(RequestError, match=r"on 5 nodes"):
        slots(two, Nodes(({"CPU": 1},) * 4, potential=({"CPU": 1},) * 5))


def test_dead_nodes_hold_nothing_and_nodes_may_come(tmp_path, monkeypatch):
    here = [
        {"Alive": alive, "Resources": {HEAD: 1.0, "CPU": cpus}}
        for alive, cpus in ((True, 2.0), (False, 8.0))
    ]
    monkeypatch.setattr(module, "potential_workers", lambda ray: [{"CPU": 2}] * 3)
    ray = SimpleNamespace(nodes=lambda: here)
    head = here[0]["Resources"]
    assert nodes_of(ray) == Nodes((head,), (head, *[{"CPU": 2}] * 3))
    two = config(tmp_path, "cluster.cpus_per_worker=2", "cluster.workers=2")
    assert must_grow(two, ray)
    assert slots(two, nodes_of(ray)) == 2
    assert not must_grow(config(tmp_path, "cluster.workers=2"), ray)


@pytest.mark.parametrize(
    ("settings", "resources", "words"),
    [
        (("cluster.workers=4",), {"CPU": 3}, ("4 workers of 1 CPUs", "3 CPUs and 0 GPUs")),
        (("cluster.cpus_per_worker=2.5",), {"CPU": 2}, ("1 workers of 2.5 CPUs", "2 CPUs")),
        (("cluster.gpus_per_worker=1",), {"CPU": 2}, ("1 GPUs", "0 GPUs")),
        (("cluster.workers=4",), {"CPU": 8, "GPU": 2}, ("4 workers", "and 1 GPUs", "2 GPUs")),
        ((), {}, ("0 CPUs",)),
    ],
)
def test_what_does_not_fit_is_refused_in_numbers(tmp_path, settings, resources, words):
    with pytest.raises(RequestError, match=r"cluster\.workers: .* do not fit .* use fewer") as told:
        slots(config(tmp_path, *settings), Nodes((resources,)))
    assert all(word in str(told.value) for word in words)


def test_gpus_are_used_where_there_are_any(tmp_path):
    assert Nodes(({"CPU": 4},)).gpus(config(tmp_path)) == 0
    assert Nodes(({"CPU": 4}, {"GPU": 2})).gpus(config(tmp_path)) == 1
    assert Nodes(({"GPU": 2},)).gpus(config(tmp_path, "cluster.gpus_per_worker=0.5")) == 0.5


def test_settings_are_made_before_ray_is_imported_and_the_users_own_stay():
    code = """
import os, sys
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "7"
os.environ.pop("RAY_USAGE_STATS_ENABLED", None)
import raybust.cluster.session
assert "ray" not in sys.modules
print(os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"], os.environ["RAY_USAGE_STATS_ENABLED"])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["7", "0"]


@pytest.mark.cluster
def test_an_open_session_is_used_and_left_open(cluster):
    with session(None, verbose=False) as found:
        assert found is cluster
    assert cluster.is_initialized()
    assert cluster.cluster_resources()["CPU"] == 2
    (node,) = nodes_of(cluster).alive
    assert node["CPU"] == 2


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_that_nothing_listens_on_is_told_at_once(address, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray would try for minutes"))
    with (
        pytest.raises(RequestError, match=f"no Ray cluster at address '{address}': .*doctor"),
        session(address, verbose=False),
    ):
        pass


@pytest.mark.cluster
@pytest.mark.slow
def test_an_address_without_a_cluster_is_one_line(tmp_path):
    address = "nonsense"
    command = [sys.executable, "-m", "raybust", "train", f"out={tmp_path}", "--address", address]
    command += [f"track.uri=sqlite:///{tmp_path}/mlflow.db", "train.epochs=1"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2, found.stderr
    assert found.stdout == ""
    told = [line for line in found.stderr.splitlines() if line]
    assert told[-1].startswith(f"raybust: no Ray cluster at address '{address}'")
    assert "raybust doctor" in told[-1]
    assert len(told) == 1, found.stderr


@pytest.mark.cluster
@pytest.mark.drills
@pytest.mark.parametrize("handler", ["default_int_handler", "SIG_IGN"])
def test_a_cluster_that_refuses_the_token_is_one_line(cluster, handler):
    """Ray itself would keep trying for minutes. A shell's background jobs ignore SIGINT."""
    code = (
        f"import signal; signal.signal(signal.SIGINT, signal.{handler})"
        + """
import sys
from raybust.cluster import session
session._CONNECT_S = 3.0
try:
    with session.session(sys.argv[1], verbose=False):
        print("connected")
except Exception as error:
    print(type(error).__name__, error)
"""
    )
    address = cluster.get_runtime_context().gcs_address
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    found = subprocess.run(
        [sys.executable, "-c", code, address], capture_output=True, text=True, env=environment,
        timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout == (
        f"RequestError the Ray cluster at address '{address}' took no connection in 3 s; is"
        " RAY_AUTH_TOKEN that of the cluster? Run `raybust doctor`\n"
    )


@pytest.mark.cluster
def test_a_second_ray_on_the_machine_confuses_no_process_of_the_first(cluster):
    """Queries the State API the way Ray Train's cleaner does for its controller."""

    class Asking:
        def state(self):
            import ray
            from ray.util.state import get_actor

            return get_actor(ray.get_runtime_context().get_actor_id(), timeout=20).state

    code = "import raybust.cluster, ray, sys; ray.init(address='local', num_cpus=1)"
    code += "; print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as other:
        assert other.stdout.readline() == "up\n"
        actor = cluster.remote(num_cpus=0)(Asking).remote()
        assert cluster.get(actor.state.remote()) == "ALIVE"
        other.communicate("")
    cluster.kill(actor)

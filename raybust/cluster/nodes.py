"""What every node of a cluster sees: its GPUs, the run folder, the MLflow server, its memory.

One task a node looks, because the driver's own view says nothing about the others. `findings` of
`raybust doctor` are made from it. Stage `cluster`.
"""

from __future__ import annotations

import os
import socket
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybust.cluster.autoscaler import HEAD

_ANSWER_S, _TASK_S = 5.0, 120.0
_GIB = 2.0**30


@dataclass(frozen=True)
class Node:
    """A node as a task on it sees it.

    Attributes:
        host: its name.
        head: whether it is the head.
        driver_gpus: GPUs that NVIDIA's driver has there.
        ray_gpus: GPUs that Ray hands out there.
        shared: whether the driver's run folder is the same folder there.
        mlflow: "", or why the MLflow server is out of its reach.
        memory: what it has of main memory, in GiB.
    """

    host: str
    head: bool
    driver_gpus: int
    ray_gpus: float
    shared: bool
    mlflow: str
    memory: float


def look(ray: Any, out: Path, uri: str) -> list[Node]:
    """Returns every living node; one that does not answer within two minutes is an error.

    Args:
        ray: the module, connected.
        out: the run folder, which is there and writable.
        uri: the tracking URI; only an http(s) one is asked.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = out / f".raybust-{uuid.uuid4().hex}"
    marker.touch()
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        task = ray.remote(num_cpus=0, max_retries=0)(_seen)
        answers = [
            task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(marker), uri)
            for node in alive
        ]
        seen = ray.get(answers, timeout=_TASK_S)
    finally:
        marker.unlink(missing_ok=True)
    return [
        Node(
            head=HEAD in node["Resources"],
            ray_gpus=node["Resources"].get("GPU", 0.0),
            **answer,
        )
        for node, answer in zip(alive, seen, strict=True)
    ]


def _seen(marker: str, uri: str) -> dict[str, Any]:
    """The task: what this node sees."""
    gpus = Path("/proc/driver/nvidia/gpus")
    return {
        "host": socket.gethostname(),
        "driver_gpus": len(list(gpus.iterdir())) if gpus.is_dir() else 0,
        "shared": Path(marker).exists(),
        "mlflow": _unreachable(uri),
        "memory": memory(),
    }


def memory(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Returns the main memory in GiB: the machine's, or a container's limit where that is lower."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (cgroup / "memory.max", cgroup / "memory/memory.limit_in_bytes"):  # v2, v1
        if limit.exists() and (text := limit.read_text().strip()).isdigit():  # not "max"
            found = min(found, int(text))
    return found / _GIB


def _unreachable(uri: str) -> str:
    """Returns why a server does not answer, "" where it does or where there is none."""
    if not uri.startswith(("http://", "https://")):
        return ""
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=_ANSWER_S):  # noqa: S310
            return ""
    except (OSError, ValueError) as error:
        return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__

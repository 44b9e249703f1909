"""Inspects every node of a cluster: its GPUs, the run folder, the MLflow server, its memory.

One task runs on each node, because the driver sees only its own machine. `raybust doctor` turns
the results into findings.
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
    """A node as seen by a task on it.

    Attributes:
        host: its name.
        head: whether it is the head.
        driver_gpus: GPUs known to NVIDIA's driver.
        ray_gpus: GPUs that Ray schedules.
        shared: whether it sees the driver's run folder.
        mlflow: why it cannot reach the MLflow server, or "".
        memory: main memory in GiB.
    """

    host: str
    head: bool
    driver_gpus: int
    ray_gpus: float
    shared: bool
    mlflow: str
    memory: float


def inspect_nodes(ray: Any, out: Path, uri: str) -> list[Node]:
    """Inspects every live node; fails if one does not answer within two minutes.

    Args:
        ray: the module, connected.
        out: the run folder, which exists and is writable.
        uri: the tracking URI; only http(s) servers are contacted.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = out / f".raybust-{uuid.uuid4().hex}"
    marker.touch()
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        task = ray.remote(num_cpus=0, max_retries=0)(_inspect)
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


def _inspect(marker: str, uri: str) -> dict[str, Any]:
    """The task: inspects the node it runs on."""
    gpus = Path("/proc/driver/nvidia/gpus")
    return {
        "host": socket.gethostname(),
        "driver_gpus": len(list(gpus.iterdir())) if gpus.is_dir() else 0,
        "shared": Path(marker).exists(),
        "mlflow": _unreachable(uri),
        "memory": memory(),
    }


def memory(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Returns the main memory in GiB: the machine's, or the container's limit if lower."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (cgroup / "memory.max", cgroup / "memory/memory.limit_in_bytes"):  # v2, v1
        if limit.exists() and (text := limit.read_text().strip()).isdigit():  # not "max"
            found = min(found, int(text))
    return found / _GIB


def _unreachable(uri: str) -> str:
    """Returns why the server does not answer; "" if it does or the store is no server."""
    if not uri.startswith(("http://", "https://")):
        return ""
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=_ANSWER_S):  # noqa: S310
            return ""
    except (OSError, ValueError) as error:
        return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__

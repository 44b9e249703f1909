"""Nodes that Ray's autoscaler may still add, read from the autoscaler's own configuration.

Ray 2.60 exposes no node types to a driver: nothing fills in its `ClusterConfig`. So we read the
file that the head's autoscaler was started with, or the RayCluster from Kubernetes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from raybust.errors import RequestError

HEAD = "node:__internal_head__"
"""A resource that only the head has."""

_ANSWER_S = 60.0
_AUTOSCALER, _FILE = "/monitor.py", "--autoscaling-config="
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def potential_workers(ray: Any) -> list[dict[str, float]]:
    """Returns the resources of each worker node of the fully grown cluster, including those already
    up; empty without an autoscaler.

    Args:
        ray: the module, connected.

    Raises:
        RequestError: the autoscaler's configuration cannot be read.
    """
    try:
        return largest(_cluster_file() if _on_head(ray) else _ask_head(ray))
    except (OSError, yaml.YAMLError, ray.exceptions.RayError) as error:
        text = " ".join(str(getattr(error, "cause", error)).split())[:200]
        raise RequestError(
            "cannot read the autoscaler's configuration from the head"
            f" ({text or type(error).__name__}); check the autoscaler with `ray status` on the head"
        ) from None


def largest(cluster: Mapping[str, Any]) -> list[dict[str, float]]:
    """Returns the resources of each worker node that a cluster file allows at the same time.

    Respects `max_workers` of the cluster and of each type. If the types exceed the cluster's limit,
    nodes with the most GPUs, then CPUs, come first. A type without `resources` counts for nothing.

    Args:
        cluster: the file, as Ray's autoscaler reads it; empty without one.
    """
    most, head = cluster.get("max_workers", 0), cluster.get("head_node_type")
    nodes = [
        kind["resources"]
        for name, kind in cluster.get("available_node_types", {}).items()
        if kind.get("resources")
        for _ in range(kind.get("max_workers", 0 if name == head else most))
    ]
    nodes.sort(key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), reverse=True)
    return nodes[:most]


def _on_head(ray: Any) -> bool:
    """Whether this process runs on the head, as jobs and the driver of an embedded Ray do."""
    if ray.util.client.ray.is_connected():  # the runtime context is the server's
        return False
    own = ray.get_runtime_context().get_node_id()
    return any(HEAD in node["Resources"] for node in ray.nodes() if node["NodeID"] == own)


def _ask_head(ray: Any) -> dict[str, Any]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    (head,) = (n["NodeID"] for n in ray.nodes() if n["Alive"] and HEAD in n["Resources"])
    there = NodeAffinitySchedulingStrategy(head, soft=False)
    task = ray.remote(num_cpus=0, scheduling_strategy=there)(_cluster_file)
    found: dict[str, Any] = ray.get(task.remote(), timeout=_ANSWER_S)
    return found


def _cluster_file() -> dict[str, Any]:
    """Returns the cluster file of the head's autoscaler, empty without one. Runs on the head."""
    import ray

    ours = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    for command in _commands():
        if ours in command and any(word.endswith(_AUTOSCALER) for word in command):
            for word in command:
                if word.startswith(_FILE):
                    text = Path(word.removeprefix(_FILE)).expanduser().read_text()
                    return dict(yaml.safe_load(text))
    name = os.environ.get("RAY_CLUSTER_NAME")  # KubeRay sets it in every container of its pods
    return _kuberay_cluster(name) if name and _NAMESPACE.exists() else {}


def _commands() -> Iterator[list[str]]:
    """Yields the command line of every process on this machine."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # the process has exited
            continue


def _kuberay_cluster(name: str) -> dict[str, Any]:
    """Returns the RayCluster as KubeRay's autoscaler, a container of the head pod, reads it."""
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    client = node_provider.KubernetesHttpApiClient(_NAMESPACE.read_text().strip(), "v1")
    try:
        found = client.get(f"rayclusters/{name}")
    except OSError as error:
        # The autoscaler has this pod's permissions: if they do not suffice, there is none.
        if getattr(getattr(error, "response", None), "status_code", None) == 403:
            return {}
        raise
    if not found["spec"].get("enableInTreeAutoscaling"):
        return {}
    return dict(autoscaling_config._derive_autoscaling_config_from_ray_cr(found))

"""What Ray's autoscaler may still add to a cluster, read where the autoscaler itself reads it.

Ray 2.60 tells a driver of no node type: nothing writes what its `ClusterConfig` would hold. So the
head is asked for the file that its autoscaler was started with, or Kubernetes for the RayCluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from raybust.errors import RequestError

HEAD = "node:__internal_head__"
"""A resource that the head alone has."""

_ANSWER_S = 60.0
_AUTOSCALER, _FILE = "/monitor.py", "--autoscaling-config="
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def may_come(ray: Any) -> list[dict[str, float]]:
    """Returns the resources of each worker node at the cluster's largest, those that are up among
    them; nothing where no autoscaler adds any.

    Args:
        ray: the module, connected.

    Raises:
        RequestError: the head does not tell.
    """
    try:
        return largest(_cluster() if _on_head(ray) else _ask_head(ray))
    except (OSError, yaml.YAMLError, ray.exceptions.RayError) as error:
        text = " ".join(str(getattr(error, "cause", error)).split())[:200]
        raise RequestError(
            f"the head does not tell what its autoscaler may add ({text or type(error).__name__});"
            " `ray status` on the head tells how the autoscaler is"
        ) from None


def largest(cluster: Mapping[str, Any]) -> list[dict[str, float]]:
    """Returns the resources of each worker node that a cluster's file allows at a time.

    No more than `max_workers` in all, and of each type no more than its own; of several types those
    with the most GPUs, then with the most CPUs, so that all of them can be there together. A type
    whose resources the file does not tell counts for nothing.

    Args:
        cluster: the file, as Ray's autoscaler reads it; empty where there is none.
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
    """Tells whether this process runs on the head, as jobs do and the driver of an embedded Ray."""
    if ray.util.client.ray.is_connected():  # then the node is that of the other end
        return False
    own = ray.get_runtime_context().get_node_id()
    return any(HEAD in node["Resources"] for node in ray.nodes() if node["NodeID"] == own)


def _ask_head(ray: Any) -> dict[str, Any]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    (head,) = (n["NodeID"] for n in ray.nodes() if n["Alive"] and HEAD in n["Resources"])
    there = NodeAffinitySchedulingStrategy(head, soft=False)
    task = ray.remote(num_cpus=0, scheduling_strategy=there)(_cluster)
    found: dict[str, Any] = ray.get(task.remote(), timeout=_ANSWER_S)
    return found


def _cluster() -> dict[str, Any]:
    """Returns, on the head, the cluster's file, as its autoscaler has it; nothing without one."""
    import ray

    ours = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    for command in _commands():
        if ours in command and any(word.endswith(_AUTOSCALER) for word in command):
            for word in command:
                if word.startswith(_FILE):
                    text = Path(word.removeprefix(_FILE)).expanduser().read_text()
                    return dict(yaml.safe_load(text))
    name = os.environ.get("RAY_CLUSTER_NAME")  # KubeRay sets it in every container of its pods
    return _of_kubernetes(name) if name and _NAMESPACE.exists() else {}


def _commands() -> Iterator[list[str]]:
    """Yields the command line of every process here."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue


def _of_kubernetes(name: str) -> dict[str, Any]:
    """Returns what KubeRay's autoscaler, a container of the head's pod, reads of its RayCluster."""
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    client = node_provider.KubernetesHttpApiClient(_NAMESPACE.read_text().strip(), "v1")
    try:
        found = client.get(f"rayclusters/{name}")
    except OSError as error:
        # The autoscaler has this pod's own rights: where they do not reach, there is none.
        if getattr(getattr(error, "response", None), "status_code", None) == 403:
            return {}
        raise
    if not found["spec"].get("enableInTreeAutoscaling"):
        return {}
    return dict(autoscaling_config._derive_autoscaling_config_from_ray_cr(found))

"""A session on a Ray cluster: the embedded one on this machine, or one at an address.

Dashboards stay on loopback. What a run needs is held against what the cluster has before anything
is submitted.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raybust.cluster.growth import HEAD, may_come
from raybust.config import Config
from raybust.errors import RequestError

_PROBE_S = 10.0


@contextmanager
def session(address: str | None, *, verbose: bool, dashboard: bool = False) -> Iterator[Any]:
    """Connects to Ray, yields the module `ray`, and disconnects.

    Args:
        address: of a running cluster ("auto", "host:6379", "ray://..."); None starts one here.
        verbose: whether Ray's own messages and the workers' output are shown.
        dashboard: whether an embedded Ray needs the State API (trials of several workers do).

    Raises:
        RequestError: there is no cluster at the address.
    """
    import ray

    if ray.is_initialized():
        yield ray
        return
    # Errors are told in one line by whoever catches them; Ray's own tracebacks only on demand.
    level = logging.INFO if verbose else logging.CRITICAL
    options: dict[str, Any] = {"logging_level": level, "log_to_driver": verbose}
    if address is None:
        options.update(address="local", include_dashboard=dashboard, dashboard_host="127.0.0.1")
    else:
        _probe(address)
        options["address"] = address
    logging.getLogger("ray").setLevel(level)
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise RequestError(
            f"no Ray cluster at address '{address}': {text}; `raybust doctor` tells more"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Asks host:port for a connection, because Ray would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PROBE_S).close()
    except (OSError, OverflowError) as error:
        raise RequestError(
            f"no Ray cluster at address '{address}': {error}; `raybust doctor` tells more"
        ) from None


def capacity(ray: Any) -> dict[str, float]:
    """Returns the resources of the cluster, with the nodes that its autoscaler may still add.

    Args:
        ray: the module, connected.
    """
    have, coming = ray.cluster_resources(), may_come(ray)
    if not coming:
        return dict(have)
    heads = [n["Resources"] for n in ray.nodes() if n["Alive"] and HEAD in n["Resources"]]
    keys = {key for node in coming for key in node}
    most = {key: sum(float(node.get(key, 0)) for node in (*heads, *coming)) for key in keys}
    return {key: max(have.get(key, 0.0), most.get(key, 0.0)) for key in {*have, *most}}


def must_grow(config: Config, ray: Any) -> bool:
    """Tells whether one run needs nodes that the autoscaler has yet to add."""
    have, workers = ray.cluster_resources(), config.cluster.workers
    cpus, gpus = config.cluster.cpus_per_worker, gpus_per_worker(config, capacity(ray))
    return bool(have.get("CPU", 0) < workers * cpus or have.get("GPU", 0) < workers * gpus)


def gpus_per_worker(config: Config, resources: dict[str, float]) -> float:
    """Returns the GPUs of one training worker: as configured, else 1 where the cluster has any."""
    if config.cluster.gpus_per_worker is not None:
        return config.cluster.gpus_per_worker
    return 1.0 if resources.get("GPU", 0) >= 1 else 0.0


def slots(config: Config, resources: dict[str, float], overhead: float = 0.0) -> int:
    """Returns how many runs of `cluster.workers` workers the cluster can hold at a time.

    Args:
        config: what one worker takes.
        resources: what the cluster has, see `capacity`.
        overhead: CPUs that each run's driver takes beside its workers.

    Raises:
        RequestError: not even one run fits.
    """
    cluster, workers = config.cluster, config.cluster.workers
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    gpu = gpus_per_worker(config, resources)
    fit = int(cpus / (workers * cluster.cpus_per_worker + overhead) + 1e-9)
    if gpu:
        fit = min(fit, int(gpus / (workers * gpu) + 1e-9))
    if fit < 1:
        driver = f", and {overhead:g} CPUs of a trial's driver," if overhead else ""
        raise RequestError(
            f"cluster.workers: {workers} workers of {cluster.cpus_per_worker:g} CPUs and"
            f" {gpu:g} GPUs{driver} do not fit into the cluster's {cpus:g} CPUs and {gpus:g} GPUs;"
            " take fewer workers, or less for each (cluster.cpus_per_worker, gpus_per_worker)"
        )
    return fit

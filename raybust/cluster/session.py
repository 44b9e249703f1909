"""A session on a Ray cluster: the embedded one on this machine, or one at an address.

Dashboards stay on loopback. What a run needs is held against what the cluster has before anything
is submitted.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from raybust.cluster.autoscaler import HEAD, may_come
from raybust.config import Config
from raybust.errors import RequestError

_PROBE_S = 10.0
_ROUNDING = 1e-9


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
        with known_to_its_processes(ray) if address is None else nullcontext():
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


@contextmanager
def known_to_its_processes(ray: Any) -> Iterator[None]:
    """Lets the processes of a Ray that is started meanwhile inherit its address.

    Without it Ray's State API looks in them for the one Ray of this machine, and gives up where
    there are several: a trial of several workers that was stopped would keep its CPUs.

    Args:
        ray: the module.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    own = {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}
    before = {key: os.environ.get(key) for key in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


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


@dataclass(frozen=True)
class Nodes:
    """The resources of a cluster's nodes.

    Attributes:
        living: those that are there.
        most: the heads, and those that the autoscaler may come to keep beside them, the living ones
            among them; none where no autoscaler adds any.
    """

    living: tuple[Mapping[str, float], ...]
    most: tuple[Mapping[str, float], ...] = ()

    def total(self, key: str) -> float:
        """Returns the sum of a resource over all nodes, those to come included."""
        return max(sum(node.get(key, 0.0) for node in nodes) for nodes in (self.living, self.most))

    def hold(self, config: Config) -> int:
        """Returns how many training workers the living nodes hold, each whole on one of them."""
        return sum(_workers_on(node, config, self.gpus(config)) for node in self.living)

    def gpus(self, config: Config) -> float:
        """Returns the GPUs of one training worker: as configured, else 1 where there are any."""
        if config.cluster.gpus_per_worker is not None:
            return config.cluster.gpus_per_worker
        return 1.0 if self.total("GPU") >= 1 else 0.0


def nodes_of(ray: Any) -> Nodes:
    """Returns the nodes of the cluster.

    Args:
        ray: the module, connected.

    Raises:
        RequestError: the head does not tell what its autoscaler may add.
    """
    living = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    coming = may_come(ray)
    heads = [node for node in living if HEAD in node]
    return Nodes(living, (*heads, *coming) if coming else ())


def must_grow(config: Config, ray: Any) -> bool:
    """Tells whether one run needs nodes that the autoscaler has yet to add."""
    return nodes_of(ray).hold(config) < config.cluster.workers


def slots(config: Config, nodes: Nodes, overhead: float = 0.0) -> int:
    """Returns how many runs of `cluster.workers` workers the cluster can hold at a time.

    Args:
        config: what one worker takes.
        nodes: what the cluster has, see `nodes_of`.
        overhead: CPUs that each run's driver takes beside its workers.

    Raises:
        RequestError: not even one run fits.
    """
    cluster, gpu = config.cluster, nodes.gpus(config)
    fit, held, among = max(
        (*_runs_on(some, config, gpu, overhead), len(some)) for some in (nodes.living, nodes.most)
    )
    if fit < 1:
        driver = f", and {overhead:g} CPUs of a trial's driver," if overhead else ""
        raise RequestError(
            f"cluster.workers: {cluster.workers} workers of {cluster.cpus_per_worker:g} CPUs and"
            f" {gpu:g} GPUs{driver} do not fit into the cluster's {nodes.total('CPU'):g} CPUs and"
            f" {nodes.total('GPU'):g} GPUs on {among} nodes, which hold {held} such workers;"
            " take fewer workers, or less for each (cluster.cpus_per_worker, gpus_per_worker)"
        )
    return fit


def _runs_on(
    nodes: Sequence[Mapping[str, float]], config: Config, gpu: float, overhead: float
) -> tuple[int, int]:
    """Returns how many runs some nodes hold at a time, and how many workers."""
    cpus, workers = config.cluster.cpus_per_worker, config.cluster.workers
    held = sum(_workers_on(node, config, gpu) for node in nodes)
    left = sum(node.get("CPU", 0.0) for node in nodes) - held * cpus
    runs = held // workers
    # Drivers sit in what whole workers leave, and where that is too little in a worker's place.
    while runs and held - math.ceil((runs * overhead - left) / cpus - _ROUNDING) < runs * workers:
        runs -= 1
    return runs, held


def _workers_on(node: Mapping[str, float], config: Config, gpu: float) -> int:
    """Returns how many training workers fit on a node; a part of a GPU is all of one GPU's."""
    fit = int(node.get("CPU", 0.0) / config.cluster.cpus_per_worker + _ROUNDING)
    if not gpu:
        return fit
    gpus = node.get("GPU", 0.0)
    on_gpus = int(gpus) * int(1 / gpu + _ROUNDING) if gpu < 1 else int(gpus / gpu + _ROUNDING)
    return min(fit, on_gpus)

"""A session on a Ray cluster: an embedded one on this machine, or one at an address.

Dashboards listen on loopback only. A run's resources are checked against the cluster's before
anything is submitted.
"""

from __future__ import annotations

import logging
import math
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from raybust.cluster.autoscaler import HEAD, potential_workers
from raybust.cluster.embedded import embedded
from raybust.config import Config
from raybust.errors import RequestError

_PROBE_S, _CONNECT_S = 10.0, 60.0
_ROUNDING = 1e-9


@contextmanager
def session(address: str | None, *, verbose: bool, dashboard: bool = False) -> Iterator[Any]:
    """Connects to Ray, yields the module `ray`, and disconnects.

    Args:
        address: of a running cluster ("auto", "host:6379", "ray://..."); None starts one here.
        verbose: show Ray's own messages and the workers' output.
        dashboard: start the State API of an embedded Ray, which multi-worker trials need.

    Raises:
        RequestError: no cluster answers at the address.
        WorkError: Ray does not start on this machine.
    """
    import ray

    if ray.is_initialized():
        yield ray
        return
    # The CLI prints errors in one line; Ray's own tracebacks appear only with --verbose.
    level = logging.INFO if verbose else logging.CRITICAL
    logging.getLogger("ray").setLevel(level)
    options: dict[str, Any] = {"logging_level": level, "log_to_driver": verbose}
    if address is None:
        with embedded(ray, include_dashboard=dashboard, **options):
            yield ray
        return
    _probe(address)
    with _in_time(address):
        try:
            ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())[:200]
            raise RequestError(
                f"no Ray cluster at address '{address}': {text}; run `raybust doctor`"
            ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Tries to connect to host:port, because Ray itself would keep trying for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PROBE_S).close()
    except (OSError, OverflowError) as error:
        raise RequestError(
            f"no Ray cluster at address '{address}': {error}; run `raybust doctor`"
        ) from None


@contextmanager
def _in_time(address: str) -> Iterator[None]:
    """Ends an attempt to connect that takes too long: Ray keeps trying for minutes where a cluster
    refuses its token. Only the main thread can be interrupted so."""
    main, late = threading.main_thread(), threading.Event()

    def interrupt() -> None:
        late.set()
        signal.pthread_kill(main.ident or 0, signal.SIGINT)

    timer, ignored = threading.Timer(_CONNECT_S, interrupt), False
    if threading.current_thread() is main:
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a shell's background job
        if ignored:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        timer.start()
    try:
        yield
    except KeyboardInterrupt:
        if not late.is_set():
            raise
        raise RequestError(
            f"the Ray cluster at address '{address}' took no connection in {_CONNECT_S:g} s; is"
            " RAY_AUTH_TOKEN that of the cluster? Run `raybust doctor`"
        ) from None
    finally:
        timer.cancel()
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Nodes:
    """The resources of a cluster's nodes.

    Attributes:
        alive: of the nodes that are up.
        potential: of the fully grown cluster, heads included; empty without an autoscaler.
    """

    alive: tuple[Mapping[str, float], ...]
    potential: tuple[Mapping[str, float], ...] = ()

    def total(self, key: str) -> float:
        """Returns the total of a resource in the fully grown cluster."""
        return max(
            sum(node.get(key, 0.0) for node in nodes) for nodes in (self.alive, self.potential)
        )

    def capacity(self, config: Config) -> int:
        """Returns how many training workers fit on the live nodes, each within one node."""
        return sum(_workers_on(node, config, self.gpus(config)) for node in self.alive)

    def gpus(self, config: Config) -> float:
        """Returns the GPUs of one training worker: as configured, else 1 if there are any."""
        if config.cluster.gpus_per_worker is not None:
            return config.cluster.gpus_per_worker
        return 1.0 if self.total("GPU") >= 1 else 0.0


def nodes_of(ray: Any) -> Nodes:
    """Returns the nodes of the cluster.

    Args:
        ray: the module, connected.

    Raises:
        RequestError: the autoscaler's configuration cannot be read.
    """
    alive = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    workers = potential_workers(ray)
    heads = [node for node in alive if HEAD in node]
    return Nodes(alive, (*heads, *workers) if workers else ())


def connected_nodes() -> Nodes:
    """Returns the nodes of the cluster on which this process runs, as in a task."""
    import ray

    return nodes_of(ray)


def must_grow(config: Config, ray: Any) -> bool:
    """Whether one run needs nodes that the autoscaler has yet to add."""
    return nodes_of(ray).capacity(config) < config.cluster.workers


def slots(config: Config, nodes: Nodes, overhead: float = 0.0) -> int:
    """Returns how many runs of `cluster.workers` workers fit on the cluster at a time.

    Args:
        config: sets the resources of one worker.
        nodes: of the cluster, see `nodes_of`.
        overhead: CPUs of each run's driver, on top of its workers.

    Raises:
        RequestError: not even one run fits.
    """
    cluster, gpu = config.cluster, nodes.gpus(config)
    fit, capacity, count = max(
        (*_runs_on(some, config, gpu, overhead), len(some))
        for some in (nodes.alive, nodes.potential)
    )
    if fit < 1:
        driver = f", plus {overhead:g} CPUs for the trial's driver," if overhead else ""
        raise RequestError(
            f"cluster.workers: {cluster.workers} workers of {cluster.cpus_per_worker:g} CPUs and"
            f" {gpu:g} GPUs{driver} do not fit into the cluster's {nodes.total('CPU'):g} CPUs and"
            f" {nodes.total('GPU'):g} GPUs on {count} nodes, which have room for {capacity} such"
            " workers; use fewer workers or smaller ones (cluster.cpus_per_worker, gpus_per_worker)"
        )
    return fit


def _runs_on(
    nodes: Sequence[Mapping[str, float]], config: Config, gpu: float, overhead: float
) -> tuple[int, int]:
    """Returns how many runs fit on some nodes at a time, and how many workers."""
    cpus, workers = config.cluster.cpus_per_worker, config.cluster.workers
    fit = sum(_workers_on(node, config, gpu) for node in nodes)
    left = sum(node.get("CPU", 0.0) for node in nodes) - fit * cpus
    runs = fit // workers
    # Drivers use the CPUs left over by workers; if those do not suffice, they displace workers.
    while runs and fit - math.ceil((runs * overhead - left) / cpus - _ROUNDING) < runs * workers:
        runs -= 1
    return runs, fit


def _workers_on(node: Mapping[str, float], config: Config, gpu: float) -> int:
    """Returns how many training workers fit on a node; a fraction of a GPU never spans two."""
    fit = int(node.get("CPU", 0.0) / config.cluster.cpus_per_worker + _ROUNDING)
    if not gpu:
        return fit
    gpus = node.get("GPU", 0.0)
    on_gpus = int(gpus) * int(1 / gpu + _ROUNDING) if gpu < 1 else int(gpus / gpu + _ROUNDING)
    return min(fit, on_gpus)

"""Runs a served network on Ray Serve: one gate for HTTP, and its replicas.

A second call with another network replaces the first one: new replicas start first, old ones finish
what they have.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from ray import serve

from raybust.serve.gate import Gate
from raybust.serve.replica import Replica, Served
from raybust.serve.requests import Limits

APPLICATION = "raybust"
_PER_REQUEST = 64
"""Images in a request at most (our choice)."""
_BYTES = 64 * 2**20
_GATE_CPUS = 0.1
_ONGOING = 1000
_TARGET = 8
"""Requests in flight at a replica above which another one is started, where that is allowed (our
choice)."""
_GRACE_S = 60.0
"""Seconds for which a replica that is replaced may finish what it has."""


def start(host: str, port: int, *, verbose: bool) -> None:
    """Starts Ray Serve's HTTP proxy.

    Args:
        host: address on which it listens.
        port: its port.
        verbose: show Ray Serve's messages.
    """
    if not verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options={"host": host, "port": port, "request_timeout_s": None})


def deploy(served: Served, *, replicas: tuple[int, int], gpus: float, token: str | None) -> None:
    """Serves a network, or replaces the one that is served; returns when it answers.

    Args:
        served: see `application`.
        replicas: see `application`.
        gpus: see `application`.
        token: see `application`.
    """
    bound = application(served, replicas=replicas, gpus=gpus, token=token)
    serve.run(bound, name=APPLICATION, route_prefix="/")


def application(
    served: Served, *, replicas: tuple[int, int], gpus: float, token: str | None
) -> serve.Application:
    """Returns the application that serves a network.

    Args:
        served: the network.
        replicas: number of replicas, at least and at most; Ray Serve follows the load.
        gpus: of each.
        token: that each request must carry, or None.
    """
    protocol = served.protocol
    amount = "keep" if protocol.noise == "ablation" else "sigma"
    about: dict[str, Any] = {
        "model": served.name,
        "classes": list(served.classes),
        "shape": list(protocol.shape),
        "n": protocol.n,
        "alpha": protocol.alpha,
        "radii": list(served.radii),
        "protocol": {key: asdict(protocol)[key] for key in ("noise", "norm", amount, "weights")},
    }
    limits = Limits(
        protocol.shape,
        protocol.n,
        protocol.alpha,
        min(_PER_REQUEST, served.most),
        _BYTES,
        served.decoding,
    )
    least, most = replicas
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": _TARGET}
    workers = serve.deployment(
        Replica,
        name="Replica",
        num_replicas=least if least == most else "auto",
        autoscaling_config=None if least == most else scaling,
        max_ongoing_requests=_ONGOING,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=_GRACE_S,
        ray_actor_options={"num_cpus": served.cpus, "num_gpus": gpus},
    ).bind(served)
    return serve.deployment(
        Gate,
        max_ongoing_requests=_ONGOING,
        graceful_shutdown_timeout_s=_GRACE_S,
        ray_actor_options={"num_cpus": _GATE_CPUS},
    ).bind(workers, about, limits, token)


def stop() -> None:
    """Ends the server."""
    serve.shutdown()

"""`raybust serve`: a network behind HTTP, whose every answer carries a certified radius.

The server runs on Ray Serve, on this machine or on the cluster at an address, until Ctrl-C or
SIGTERM.
"""

from __future__ import annotations

import importlib.util
import secrets
import signal
import socket
import threading
from dataclasses import dataclass, replace

from raybust import devices
from raybust.certification import CertificateLog, Protocol
from raybust.certification.protocol import make_protocol
from raybust.cluster.session import nodes_of, session
from raybust.data import decoding_of
from raybust.disk.files import is_aside
from raybust.errors import RequestError
from raybust.identity import Sent, fixed_images, outputs_of, weights_digest
from raybust.reporting.logs import read_log
from raybust.stages import certified
from raybust.stages.progress import Echo
from raybust.trained import Trained

_LOOPBACK = "127.0.0.1"
_TOKEN_BYTES = 24


@dataclass(frozen=True)
class Listening:
    """Where and how a server listens.

    Attributes:
        host: address.
        port: of HTTP.
        replicas: number of replicas.
        token: of all requests; "" for a new one, None for none.
        most: images that wait or are in flight at a replica.
    """

    host: str = _LOOPBACK
    port: int = 8000
    replicas: int = 1
    token: str | None = ""
    most: int = 256


def serve(
    trained: Trained, listening: Listening, *, address: str | None, verbose: bool, echo: Echo
) -> None:
    """Serves a network until Ctrl-C or SIGTERM.

    Args:
        trained: the network; section `certify` has the defaults of a request.
        listening: where and how.
        address: of a Ray cluster; None for this machine.
        verbose: show Ray's messages.
        echo: prints a line.

    Raises:
        RequestError: a package is missing, the port is taken, or the network cannot be certified.
    """
    if address is not None and address.startswith(("http://", "https://")):
        raise RequestError(
            f"--address: got the jobs URL {address}, expected a Ray address such as"
            " ray://HOST:10001, or `auto` on a node of the cluster"
        )
    check(listening, local=address is None)
    with session(address, verbose=verbose) as ray:
        from raybust.serve import service

        gpus = nodes_of(ray).gpus(trained.config)
        protocol = protocol_of(trained, devices.of_tasks(gpus))
        served = service.Served(
            trained.name,
            Sent.of(trained.network, trained.dataset.shape),
            trained.classes,
            protocol,
            trained.config.cluster.cpus_per_worker,
            listening.most,
            radii_of_test_set(trained, protocol),
            decoding_of(trained.config.data),
        )
        told = threading.Event()
        for one in (signal.SIGINT, signal.SIGTERM):  # after Ray, which sets its own
            signal.signal(one, lambda *_: told.set())
        token = secrets.token_urlsafe(_TOKEN_BYTES) if listening.token == "" else listening.token
        service.start(listening.host, listening.port, verbose=verbose)
        try:
            service.deploy(served, replicas=listening.replicas, gpus=gpus, token=token)
            for line in _welcome(trained, listening, token, protocol):
                echo(line)
            told.wait()
            echo("stopping; requests in flight are answered first")
        finally:
            service.stop()


def check(listening: Listening, *, local: bool) -> None:
    """Checks what can be checked before Ray starts.

    Args:
        listening: where and how.
        local: whether the server runs on this machine.

    Raises:
        RequestError: a package is missing, or the port is taken.
    """
    if importlib.util.find_spec("grpc_reflection") is None:
        raise RequestError("serve: needs Ray Serve: pip install 'raybust[serve]'")
    if not local:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listening.host, listening.port))
        except OSError as error:
            raise RequestError(
                f"--port: {listening.host}:{listening.port} cannot be used"
                f" ({error.strerror or error}); choose another with --port"
            ) from None


def protocol_of(trained: Trained, device: str) -> Protocol:
    """Returns the protocol of a server's answers.

    Args:
        trained: the network.
        device: type of the replicas' device.

    Raises:
        RequestError: a norm that the noise cannot certify, or an n that certifies nothing.
    """
    shape = trained.dataset.shape
    protocol = make_protocol(
        trained.config.certify, sigma=trained.sigma, shape=shape, device=device, dataset="served"
    )
    return replace(
        protocol,
        schedule="sequence",
        targets=(),
        weights=weights_digest(trained.network),
        outputs=outputs_of(trained.network, fixed_images(shape)),
    )


def radii_of_test_set(trained: Trained, protocol: Protocol) -> tuple[float, ...]:
    """Returns the radii of the test set as the server would answer them, 0 on abstention, from the
    votes that `certify` counted; none if it did not use the server's noise and draws.

    Args:
        trained: the network.
        protocol: of the server.
    """
    rule, smoothing = protocol.rule, protocol.smoothing
    keys = ("noise", "norm", "sigma", "keep", "n", "n0", "weights")
    for path in sorted((trained.folder / certified.FOLDER).glob("*.tsv")):
        log = read_log(path)
        made = log.protocol
        if made is None or made.split != "test" or is_aside(path):
            continue
        if any(getattr(made, key) != getattr(protocol, key) for key in keys):
            continue
        rows = CertificateLog(path, made).rows
        if all(row.draws == protocol.n for row in rows):
            last = len(rule.times) - 1
            votes = (dict(row.counts).get(row.top, 0) for row in rows)
            return tuple(smoothing.radius(rule.lower(v, protocol.n, last)) for v in votes)
    return ()


def _welcome(
    trained: Trained, listening: Listening, token: str | None, protocol: Protocol
) -> list[str]:
    url = f"http://{listening.host}:{listening.port}"
    header = f' -H "Authorization: Bearer {token}"' if token else ""
    lines = [
        f"{trained.name} on {url} (replicas: {listening.replicas}); Ctrl-C ends it",
        f"each answer: {protocol.noise} noise, sigma = {protocol.sigma:g}, at most"
        f" {protocol.n:,} draws, wrong with probability at most {protocol.alpha:g}",
        f"try it    curl{header} -F image=@photo.png {url}/predict",
        f"look at   {url}/{f'#token={token}' if token else ''}",
    ]
    if token is None:
        lines.insert(1, "warning: no token: whoever reaches the port is answered")
    if listening.host != _LOOPBACK:
        lines.insert(1, f"warning: listening on {listening.host}, which other machines may reach")
    return lines

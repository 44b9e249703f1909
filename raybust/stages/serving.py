"""`raybust serve`: a network behind HTTP, whose every answer carries a certified radius.

The server runs on Ray Serve, on this machine or on the cluster at an address, until Ctrl-C or
SIGTERM. `build` is the same for a config file of Ray Serve, as Kubernetes' RayService has one.
"""

from __future__ import annotations

import importlib.util
import re
import secrets
import signal
import socket
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybust import data, devices
from raybust.certification import CertificateLog, Protocol
from raybust.certification.protocol import make_protocol
from raybust.cluster.session import connected_nodes, nodes_of, session
from raybust.data import decoding_of
from raybust.disk.files import is_aside
from raybust.errors import RequestError, unknown
from raybust.identity import Sent, fixed_images, outputs_of, weights_digest
from raybust.reporting.logs import read_log
from raybust.stages import certified
from raybust.stages.bars import Echo
from raybust.stages.current import changes_of
from raybust.stages.opened import open_run
from raybust.trained import Trained

if TYPE_CHECKING:
    from raybust.serve.service import Served

_LOOPBACK = "127.0.0.1"
_TOKEN_BYTES = 24
_MOST = 256
KEYS = ("run", "settings", "out", "replicas", "queue", "token_file", "no_token")
"""Of the `args` in a config file of Ray Serve."""


@dataclass(frozen=True)
class Listening:
    """Where and how a server listens.

    Attributes:
        host: address.
        port: of HTTP.
        replicas: number of replicas, at least and at most.
        token: of all requests; "" for a new one, None for none.
        token_file: where the user keeps it, or None.
        most: images that wait or are in flight at a replica.
    """

    host: str = _LOOPBACK
    port: int = 8000
    replicas: tuple[int, int] = (1, 1)
    token: str | None = ""
    token_file: Path | None = None
    most: int = _MOST


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
        served = served_of(trained, listening.most, gpus)
        told = threading.Event()
        for one in (signal.SIGINT, signal.SIGTERM):  # after Ray, which sets its own
            signal.signal(one, lambda *_: told.set())
        token = secrets.token_urlsafe(_TOKEN_BYTES) if listening.token == "" else listening.token
        service.start(listening.host, listening.port, verbose=verbose)
        try:
            service.deploy(served, replicas=listening.replicas, gpus=gpus, token=token)
            for line in _welcome(trained, listening, token, served.protocol):
                echo(line)
            told.wait()
            echo("stopping; requests in flight are answered first")
        finally:
            service.stop()


def build(given: dict[str, Any]) -> Any:
    """Returns the application that a config file of Ray Serve describes by its `args`.

    Args:
        given: `run`, as for `raybust serve`, and `token_file`, or `no_token: true`; optionally
            `settings`, a list of key=value, `out`, `replicas` such as "1-4", and `queue`.

    Raises:
        RequestError: a key is unknown or missing, or the network cannot be certified.
    """
    from raybust.serve import service

    strange = sorted(set(given) - set(KEYS))
    if strange:
        raise unknown("key of args", strange[0], list(KEYS))
    if "run" not in given:
        raise RequestError("args: got no `run`; name the run or model to serve")
    token = token_of(given.get("token_file"), no_token=bool(given.get("no_token")))
    if token == "":
        raise RequestError("args: got no `token_file`; name one, or set `no_token: true`")
    settings, most = given.get("settings", []), given.get("queue", _MOST)
    if not isinstance(settings, list):
        raise RequestError(f"args: settings: got {settings!r}, expected a list of key=value")
    if not isinstance(most, int) or most < 1:
        raise RequestError(f"args: queue: got {most!r}, expected a number of images from 1")
    trained = open_run(str(given["run"]), settings, given.get("out"), with_data=False)
    gpus = connected_nodes().gpus(trained.config)
    return service.application(
        served_of(trained, most, gpus),
        replicas=replicas_of(str(given.get("replicas", 1))),
        gpus=gpus,
        token=token,
    )


def served_of(trained: Trained, most: int, gpus: float) -> Served:
    """Returns what the replicas need of a network.

    Args:
        trained: the network.
        most: images that wait or are in flight at a replica.
        gpus: of a replica.

    Raises:
        RequestError: the network cannot be certified.
    """
    from raybust.serve.service import Served

    protocol = protocol_of(trained, devices.of_tasks(gpus))
    return Served(
        trained.name,
        Sent.of(trained.network, trained.dataset.shape),
        trained.classes,
        protocol,
        trained.config.cluster.cpus_per_worker,
        most,
        radii_of_test_set(trained, protocol),
        decoding_of(trained.config.data),
    )


def replicas_of(text: str) -> tuple[int, int]:
    """Returns the least and the largest number of replicas of "2" or "1-4".

    Raises:
        RequestError: it is neither.
    """
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise RequestError(
            f"replicas: got {text!r}, expected a number such as 2, or a range such as 1-4 that"
            " follows the load"
        )
    return least, most


def token_of(path: str | Path | None, *, no_token: bool) -> str | None:
    """Returns the token of all requests; "" for a new one, None for none.

    Args:
        path: of a file with the token.
        no_token: whether none is wanted.

    Raises:
        RequestError: both are given, or the file cannot be read or is empty.
    """
    if path is None:
        return None if no_token else ""
    if no_token:
        raise RequestError("--no-token: contradicts --token-file; leave out one of them")
    try:
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--token-file: {path} cannot be read ({error})") from None
    if not token:
        raise RequestError(f"--token-file: {path} is empty")
    return token


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
    """Returns the radii of the test set as the server would answer them, -1 on abstention, from the
    votes that `certify` counted; none if it did not use the server's noise and draws, or not the
    whole of what it was asked to certify. Function, images and labels are compared with what the
    run has now; none if its data are not at hand.

    Args:
        trained: the network.
        protocol: of the server.
    """
    rule, smoothing = protocol.rule, protocol.smoothing
    found: tuple[float, ...] = ()
    keys = ("noise", "norm", "sigma", "keep", "n", "n0", "weights")
    for path in sorted((trained.folder / certified.FOLDER).glob("*.tsv")):
        log = read_log(path)
        made = log.protocol
        if not isinstance(made, Protocol) or made.split != "test" or is_aside(path):
            continue
        if any(getattr(made, key) != getattr(protocol, key) for key in keys):
            continue
        try:
            if not len(trained.dataset.test):
                trained = replace(trained, dataset=data.load(trained.config.data))
        except RequestError:
            return ()
        rows = CertificateLog(path, made).rows
        whole = len(rows) == len(made.select(len(trained.dataset.test)))
        drawn = all(row.draws == protocol.n for row in rows)
        if whole and drawn and len(rows) > len(found) and not changes_of(trained, path):
            last = len(rule.times) - 1
            votes = (dict(row.counts).get(row.top, 0) for row in rows)
            bounds = (rule.lower(v, protocol.n, last) for v in votes)
            found = tuple(smoothing.radius(p) if p > 0.5 else -1.0 for p in bounds)
    return found


def _welcome(
    trained: Trained, listening: Listening, token: str | None, protocol: Protocol
) -> list[str]:
    url = f"http://{listening.host}:{listening.port}"
    replicas = "-".join(map(str, dict.fromkeys(listening.replicas)))
    shown = f"$(cat {listening.token_file})" if listening.token_file else token
    header = f' -H "Authorization: Bearer {shown}"' if token else ""
    lines = [
        f"{trained.name} on {url} (replicas: {replicas}); Ctrl-C ends it",
        f"each answer: {protocol.noise} noise, {protocol.amount}, at most"
        f" {protocol.n:,} draws, wrong with probability at most {protocol.alpha:g}",
        f"try it    curl{header} -F image=@photo.png {url}/predict",
        f"look at   {url}/{f'#token={token}' if token and not listening.token_file else ''}",
    ]
    if token is None:
        lines.insert(1, "warning: no token: whoever reaches the port is answered")
    if listening.host != _LOOPBACK:
        lines.insert(1, f"warning: listening on {listening.host}, which other machines may reach")
    return lines

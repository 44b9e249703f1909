"""What the commands do: check everything that can be checked without a cluster, then run.

Each function takes a resolved configuration, does the work on Ray, and returns what the command
line prints. Nothing is submitted before data, network and store are known to be there.
"""

from __future__ import annotations

import fcntl
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raybust import checkpoint, data, methods, models, runs, sources, track
from raybust import config as configuration
from raybust.cluster.checks import check_places, check_search
from raybust.cluster.goals import check_goals
from raybust.cluster.runlog import Job, end_if_open
from raybust.cluster.sampler import check_sampler
from raybust.cluster.session import must_grow, nodes_of, session, slots
from raybust.cluster.space import Space
from raybust.config import Config, Leaf
from raybust.errors import RequestError, WorkError
from raybust.objective import assemble, check_batch

Say = Callable[[str], None]
"""Prints one line for the user."""

_POLL_S = 0.3


def default_name(config: Config) -> str:
    """Returns the name of a run that was given none: the same for the same experiment."""
    model = config.model.name.replace(":", "-")
    digits = runs.fixed_digits(configuration.to_dict(config))
    return f"{config.data.name}-{config.method.key}-{model}-{digits}"


def train(config: Config, *, address: str | None, resume: bool, verbose: bool, say: Say) -> Path:
    """Trains one run, or goes on with it; returns its folder.

    Args:
        config: the whole configuration.
        address: of a Ray cluster; None for the embedded one.
        resume: False moves an earlier run of that name aside.
        verbose: whether Ray's messages are shown.
        say: prints a line.

    Raises:
        RequestError: something of the request is wrong; nothing was begun.
        WorkError: training failed; the last good checkpoint is kept.
    """
    dataset = data.load(config.data)
    out = runs.out_folder(config)
    folder = out / (config.name or default_name(config))
    plain = configuration.to_dict(config)
    newest = checkpoint.newest(folder, say) if resume else None
    network = assemble(config, dataset)
    if newest is None:
        sources.initialize(network, config, dataset)
    check_batch(network, config, dataset)
    sources.embedding(config, dataset, "cpu")
    data.fitting_batch(
        dataset.train.labels,
        config.train.batch_size,
        world=config.cluster.workers,
        classes=config.train.batch_classes or config.method.balanced_classes,
    )
    check_places(config)
    if resume:
        runs.check_same(folder, "train", plain, dataset.digest)
    if newest is not None and checkpoint.read_manifest(newest)["done"]:
        say(f"{folder.name} is trained already; --no-resume trains it anew")
        with locked(folder), sending_rest(folder, open_store(config, out, say), out, say):
            end_if_open(folder, "finished")
            return folder
    from raybust.cluster import worker

    load_ahead()
    with session(address, verbose=verbose, dashboard=True) as ray:
        slots(config, nodes_of(ray))
        say_if_growing(config, ray, say)
        uri = open_store(config, out, say)
        with locked(folder), sending_rest(folder, uri, out, say):
            identity = runs.identify(folder, "train", plain, resume, dataset.digest)
            newest = checkpoint.newest(folder)
            tell_data(config, dataset, say)
            for note in models.notes_of(network):
                say(note)
            start = f"resuming at epoch {checkpoint.epoch_of(newest)}" if newest else "training"
            say(f"{folder.name}: {start}, {config.cluster.workers} workers, in {folder}")
            job = Job(plain, str(folder), identity.uid, folder.name)
            with _epoch_lines(folder, say):
                worker.train(config, job, uri)
    return folder


def tell_data(config: Config, dataset: data.Dataset, say: Say) -> None:
    """Says what was understood of the data."""
    for line in dataset.understood(config.model.mean, config.model.std):
        say(line)


def check_sweep(
    leaves: Sequence[Leaf], block: Any, *, address: str | None = None, here: bool = True
) -> tuple[Config, Space]:
    """Returns configuration and space of a sweep, all of it checked that needs no data.

    Args:
        leaves: the fixed configuration.
        block: the block `search` of the file.
        address: of a Ray cluster; None for the embedded one.
        here: False where the sweep is to run on the machine of a jobs URL.
    """
    config = configuration.compose(leaves, methods.get)
    space = Space.parse(block)
    space.check(leaves, methods.get)
    for point in config.tune.points:
        space.check_point(point)
    check_sampler(config, space)
    check_goals(config, space)
    check_search(config, space, address=address, here=here)
    return config, space


def load_ahead() -> None:
    """Imports MLflow in a thread: it takes as long as Ray's processes take to start."""
    threading.Thread(target=track.load_mlflow, daemon=True).start()


def open_store(config: Config, out: Path, say: Say) -> str:
    """Returns the tracking URI, its store made ready; a server that is away is only a warning."""
    uri = track.resolve_uri(config.track, out)
    warning = track.prepare(uri, out, config.track.experiment)
    if warning:
        say(f"warning: {warning}")
    return uri


@contextmanager
def sending_rest(folder: Path, uri: str, out: Path, say: Say) -> Iterator[None]:
    """Afterwards, failed or not, sends what workers left unsent; tells what could not be sent."""
    failure = None
    try:
        yield
    except WorkError as error:
        failure = error
    result = track.sync(folder, uri, out)
    for journal, reason in result.left:
        say(f"warning: {journal} is not in MLflow yet ({reason}); the same command sends it")
    if failure is not None:
        raise failure


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run's lock, which dies with the process, so that two commands never share a run."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        handle = (folder.parent / f".{folder.name}.lock").open("w")
    except OSError as error:
        raise RequestError(
            f"out: {folder.parent} cannot be written: {error.strerror};"
            " choose another folder with --out"
        ) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(
                f"{folder.name}: another command is running it; wait for it,"
                " or choose another --name"
            ) from None
        yield


def say_if_growing(config: Config, ray: Any, say: Say) -> None:
    """Says that nothing happens before the autoscaler has added nodes, where that is so."""
    if must_grow(config, ray):
        say(
            "waiting for the autoscaler to add nodes, which takes minutes;"
            " `ray status` on the head tells why none comes"
        )


@contextmanager
def _epoch_lines(folder: Path, say: Say) -> Iterator[None]:
    """Says a line for each epoch that a worker notes in the run's journal."""
    path = folder / runs.JOURNAL
    stop = threading.Event()
    start = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        offset = start
        while True:
            last = stop.wait(_POLL_S)
            if path.exists():
                with path.open("rb") as file:
                    file.seek(offset)
                    for line in file:
                        if not line.endswith(b"\n"):
                            break
                        offset += len(line)
                        entry = json.loads(line)
                        if entry.get("e") == "metrics":
                            say(epoch_line(entry["step"], entry["values"]))
                        elif "raybust.hosts" in entry.get("tags", {}):
                            say(group_line(entry["tags"]))
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def progress_bar(total: int, what: str, initial: int = 0) -> Any:
    """Returns a tqdm bar on standard error; away from a terminal it prints only what is written."""
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    return tqdm(total=total, initial=initial, desc=what, disable=quiet, dynamic_ncols=True)


def group_line(tags: dict[str, str]) -> str:
    """Returns which rank is on which host, as one line for a person."""
    hosts = enumerate(tags["raybust.hosts"].split())
    ranks = ", ".join(f"rank {rank} on {host}" for rank, host in hosts)
    return f"process group ({tags['raybust.backend']}): {ranks}"


def epoch_line(epoch: int, metrics: dict[str, Any]) -> str:
    """Returns an epoch's metrics as one line for a person."""
    parts = [f"epoch {epoch:3d}"]
    for key, label in (
        ("train/loss", "loss"),
        ("validation/accuracy", "validation accuracy"),
        ("certified_fast/acr", "fast ACR"),
        ("attacked_fast/robust_accuracy", "fast robust accuracy"),
        ("train/images_per_second", "images/s"),
    ):
        if key in metrics:
            value = float(metrics[key])
            parts.append(
                f"{label} {value:.0f}" if key.endswith("second") else f"{label} {value:.4f}"
            )
    return "  ".join(parts)

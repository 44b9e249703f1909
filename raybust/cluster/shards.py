"""Certification over Ray: stateless tasks of a few examples each, rows merged by their key.

A task that dies is run again, a driver that dies is run again by the same command: finished rows
are in the log, and noise is keyed, so that the file ends the same for any number of workers. Stage
certify.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raybust import runs, track
from raybust.certify import (
    CertificateLog,
    Protocol,
    Row,
    certify_examples,
    check_rows,
    make_protocol,
    sigma_warning,
    summarize,
    write_cohen,
)
from raybust.cluster.launch import Say, locked, open_store, progress_bar, say_if_growing
from raybust.cluster.session import nodes_of, session
from raybust.cluster.tasks import of_one_task, room_for, run_tasks
from raybust.cluster.worker import set_threads
from raybust.config import Config
from raybust.data import Part
from raybust.errors import RequestError, WorkError
from raybust.files import put_aside, step_of
from raybust.objective import smoothing_sigma
from raybust.report import certificates
from raybust.trained import Trained

FOLDER = "certified"
Examples = tuple[Tensor, Tensor, Tensor]
"""Images (N, C, H, W), labels (N,), indices (N,)."""

_SMALLEST_SHARD, _LARGEST_SHARD = 2, 64


@dataclass(frozen=True)
class Certified:
    """A finished certification.

    Attributes:
        log: the file of rows.
        curve: the picture of certified accuracy over radius.
        metrics: `certified/*`.
        table: a Markdown table with its protocol.
        rows: the certificates, by index.
    """

    log: Path
    curve: Path
    metrics: dict[str, float]
    table: str
    rows: tuple[Row, ...]

    def export_cohen(self) -> Path:
        """Writes the bare six columns into the folder `cohen` beside the log; returns the file."""
        target = bare_path(self.log)
        target.parent.mkdir(exist_ok=True)
        write_cohen(self.rows, target)
        return target

    def text(self) -> str:
        """Returns what the command line prints."""
        return f"{self.table.rstrip()}\n\nrows   {self.log}\ncurve  {self.curve}"

    def plain(self) -> dict[str, Any]:
        """Returns the same for --json."""
        return {"log": str(self.log), "curve": str(self.curve), "metrics": self.metrics}


def certify(
    trained: Trained,
    *,
    say: Say,
    address: str | None = None,
    workers: int | None = None,
    resume: bool = True,
    name: str | None = None,
    verbose: bool = False,
) -> Certified:
    """Certifies a network at the protocol of its configuration, or goes on with it.

    Args:
        trained: network, data, configuration.
        say: prints a line.
        address: of a Ray cluster; None for the embedded one, or the session that is open.
        workers: tasks at a time; as many as the cluster has room for where not given.
        resume: False moves an earlier log of the same name aside.
        name: of the log; made from the protocol where not given.
        verbose: whether Ray's messages are shown.

    Raises:
        OtherProtocolError: the log there is of another function, images, labels or protocol.
        RequestError: the network cannot be certified, or another command is at its results.
        WorkError: a task failed for good; what was certified is kept.
    """
    config, out = trained.config, runs.out_folder(trained.config)
    uri = open_store(config, out, say)
    with locked(trained.folder), session(address, verbose=verbose) as ray:
        gpu = nodes_of(ray).gpus(config)
        protocol = protocol_of(trained, "cuda" if gpu else "cpu")
        warning = sigma_warning(protocol.sigma, trained.trained_sigma)
        if warning:
            say(f"warning: {warning}")
        path = log_path(trained.folder, protocol, name)
        if not resume:
            put_aside(path)
            put_aside(bare_path(path))
        log = CertificateLog(path, protocol)
        chosen = protocol.select(len(getattr(trained.dataset, protocol.split)))
        todo = _left(ray, trained, log, chosen, say)
        if todo:
            say_if_growing(of_one_task(config), ray, say)
        _run(ray, trained, log, todo=todo, room=room_for(ray, config, workers))
        log.finish()
        return _publish(trained, log, uri)


def bare_path(log: Path) -> Path:
    """Returns where the bare six columns of a log go."""
    return log.parent / "cohen" / log.name


def _left(
    ray: Any, trained: Trained, log: CertificateLog, chosen: list[int], say: Say
) -> list[int]:
    """Returns the positions that a log lacks; proves that its rows are of the network at hand."""
    split, protocol = getattr(trained.dataset, log.protocol.split), log.protocol
    at = {int(split.indices[position]): position for position in chosen}
    log.check_examples({idx: int(split.labels[position]) for idx, position in at.items()})
    if log.rows:
        say(f"resuming {log.path.name}: {len(log.rows)} of {len(chosen)} rows are there")

        def again(indices: list[int], at_protocol: Protocol) -> list[Row]:
            examples = _examples(split, [at[idx] for idx in indices])
            call = (copy.deepcopy(trained.network), examples, at_protocol, trained.config)
            if protocol.device == "cpu" or torch.cuda.is_available():
                return _in_order(_shard(*call), indices)
            (rows,) = run_tasks(ray, trained.config, 1, _shard, [call])
            return _in_order(rows, indices)

        check_rows(log.rows, len(chosen), protocol, log.path, again)
    return [position for idx, position in at.items() if idx not in log.places]


def _in_order(rows: list[Row], indices: list[int]) -> list[Row]:
    return sorted(rows, key=lambda row: indices.index(row.idx))


def _examples(split: Part, positions: list[int]) -> Examples:
    images, labels = split.fetch(positions)
    return images, labels, split.indices[positions]


def recompute(trained: Trained, idx: int, name: str | None = None) -> str:
    """Recomputes one row of an existing log; returns what was found.

    Args:
        trained: network, data, configuration.
        idx: index of the example in its dataset.
        name: of the log; made from the protocol where not given.

    Raises:
        RequestError: there is no log at this protocol, or no such row in it.
        WorkError: the row differs.
    """
    protocol = protocol_of(trained, "cuda" if torch.cuda.is_available() else "cpu")
    path = log_path(trained.folder, protocol, name)
    if not path.exists():
        raise RequestError(f"{path}: no certificates at this protocol yet; run without --only")
    log = CertificateLog(path, protocol)
    old = next((row for row in log.rows if row.idx == idx), None)
    if old is None:
        raise RequestError(f"--only: example {idx} is not in {path}")
    split = getattr(trained.dataset, protocol.split)
    examples = _examples(split, (split.indices == idx).nonzero().flatten().tolist())
    (new,) = _shard(copy.deepcopy(trained.network), examples, protocol, trained.config)
    if not new.same(old):
        raise WorkError(f"row {idx} of {path} is not reproduced: {old} became {new}")
    return f"row {idx} of {path} is reproduced:\n{new.line().rstrip()}"


def protocol_of(trained: Trained, device: str) -> Protocol:
    """Returns the protocol at which a network is certified on a type of device."""
    dataset, config = trained.dataset, trained.config
    protocol = make_protocol(
        config.certify,
        sigma=smoothing_sigma(config),
        shape=dataset.shape,
        device=device,
        dataset=dataset.name,
    )
    return protocol.about(trained.network, getattr(dataset, protocol.split))


def log_path(folder: Path, protocol: Protocol, name: str | None = None) -> Path:
    """Returns where the rows of a protocol lie: one file for split, noise, n and radii, or the one
    of that name."""
    if name is not None:
        return folder / FOLDER / f"{name}.tsv"
    noise = f"keep{protocol.keep}" if protocol.noise == "ablation" else f"sigma{protocol.sigma:g}"
    parts = [protocol.split, protocol.noise, protocol.norm, noise, f"n{protocol.n}"]
    if protocol.targets:
        parts.append("r" + "-".join(f"{radius:g}" for radius in protocol.targets))
    return folder / FOLDER / ("_".join(parts) + ".tsv")


def _run(ray: Any, trained: Trained, log: CertificateLog, *, todo: list[int], room: int) -> None:
    """Certifies positions `todo` of the split with `room` tasks at a time."""
    if not todo:
        return
    config, protocol = trained.config, log.protocol
    split = getattr(trained.dataset, protocol.split)
    network = ray.put(trained.network)
    calls = ((network, _examples(split, at), protocol, config) for at in in_shards(todo, room))
    with progress_bar(len(todo), "certified") as bar:
        for rows in run_tasks(ray, config, room, _shard, calls):
            log.append(rows)
            bar.update(len(rows))


def in_shards(todo: list[int], room: int) -> Iterator[list[int]]:
    """Yields positions in shards that shrink towards the end: an eighth of a task's part of what is
    left (our choice), so that all tasks end together. Shards of one example waste parts of batches.
    """
    while todo:
        size = max(_SMALLEST_SHARD, min(_LARGEST_SHARD, len(todo) // (8 * room)))
        yield todo[:size]
        todo = todo[size:]


def _shard(network: nn.Module, examples: Examples, protocol: Protocol, config: Config) -> list[Row]:
    """The task: certificates of a few examples."""
    set_threads(config)
    images, labels, indices = examples
    network = network.to(protocol.device).eval()
    images, labels = images.to(protocol.device), labels.to(protocol.device)
    return list(certify_examples(network, images, labels, indices, protocol))


def _publish(trained: Trained, log: CertificateLog, uri: str) -> Certified:
    """Writes curve, table and summary beside the rows and sends all of it to MLflow."""
    protocol, path, rows = log.protocol, log.path, log.rows
    metrics = summarize(rows, trained.config.certify.radii, "certified")
    curve, table = path.with_suffix(".png"), path.with_suffix(".md")
    certificates.draw_curve([path], curve, labels=[trained.name])
    text = certificates.table([path], radii=trained.config.certify.radii, labels=[trained.name])
    ablated = protocol.noise == "ablation"
    amount = f"keep = {protocol.keep}" if ablated else f"sigma = {protocol.sigma:g}"
    text = f"{text.rstrip()}\n\nNoise: {protocol.noise}, {amount}; radii in {protocol.norm}.\n"
    table.write_text(text)
    if trained.uid is not None:
        step = step_of(path, log.header)
        track.log_to_run(
            path.with_suffix(".journal.jsonl"),
            uri,
            trained.uid,
            trained.config.track.experiment,
            metrics=metrics,
            step=step,
            artifacts=[path, curve, table],
            folder=FOLDER,
            tags={f"raybust.{FOLDER}.{step}": path.stem},
        )
    return Certified(path, curve, metrics, text, tuple(rows))

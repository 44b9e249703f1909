"""Certification on Ray: stateless tasks of a few examples each, rows merged by their key.

A task that dies is retried; if the driver dies, rerunning the command resumes. Finished rows are in
the log; noise is keyed, and bounds are computed for the same images together, so the result does
not depend on the number of workers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from raybust import devices, track
from raybust.certification import (
    BoundLog,
    BoundProtocol,
    CertificateLog,
    Header,
    Protocol,
    bound_examples,
    certify_examples,
    check_bound_rows,
    check_bounds,
    check_rows,
    make_bound_protocol,
    make_protocol,
    open_log,
    sigma_warning,
    summarize,
    write_cohen,
)
from raybust.config import Config
from raybust.data import Part
from raybust.disk.files import put_aside
from raybust.errors import RequestError, WorkError
from raybust.identity import Sent
from raybust.reporting.logs import norm_in, read_log
from raybust.stages.bars import Echo, progress_bar
from raybust.stages.extended import extended
from raybust.stages.measurement import Bench, Measurement, Options, bench, warn_of_few_classes
from raybust.trained import Trained
from raybust.training.objective import smoothing_sigma

FOLDER = "certified"
Log = CertificateLog | BoundLog
Examples = tuple[Tensor, Tensor, Tensor]
"""Images (N, C, H, W), labels (N,), indices (N,)."""

_SMALLEST_SHARD, _LARGEST_SHARD = 2, 64


@dataclass(frozen=True)
class Certified(Measurement):
    """A finished certification.

    Attributes:
        rows: the certificates, `Row` or `BoundRow`, by index.
        header: their protocol.
    """

    rows: tuple[Any, ...] = ()
    header: Header = field(kw_only=True)

    @property
    def log(self) -> Path:
        """The file of rows."""
        return self.files["rows"]

    def export_cohen(self) -> Path:
        """Writes the log with Cohen's six columns into the folder `cohen`; returns the file.

        Raises:
            RequestError: the columns cannot tell how the radii were proven, see `check_bare`.
        """
        check_bare(self.header)
        target = bare_path(self.log, self.details["protocol"]["norm"])
        target.parent.mkdir(exist_ok=True)
        write_cohen(self.rows, target)
        return target


def check_bare(protocol: Header) -> None:
    """Rejects `--cohen` for certificates by bounds, and for those that were drawn only to decide
    some radii: others are understated."""
    if not isinstance(protocol, Protocol):
        raise RequestError(
            f"--cohen: got certificates by {protocol.how}, which six columns cannot tell from those"
            " of smoothing; leave it out"
        )
    if targets := protocol.targets:
        raise RequestError(
            "--cohen: got certificates drawn only to decide the radii"
            f" {', '.join(f'{one:g}' for one in targets)}, which six columns cannot tell; certify"
            " without certify.radius and certify.intent=radii"
        )


def certify(trained: Trained, options: Options) -> Certified:
    """Certifies a network under its configuration's protocol, or resumes its certification.

    Args:
        trained: network, data, configuration.
        options: how to run.

    Raises:
        OtherProtocolError: the existing log is of another function, images, labels or protocol.
        RequestError: the network cannot be certified, or another command is measuring the run.
        WorkError: a task failed every retry; finished rows are kept.
    """
    with bench(trained, options) as at:
        protocol = protocol_of(trained, at.device)
        if isinstance(protocol, Protocol):
            warn_of_sigma(trained, protocol, options.echo)
        path = at.place(log_path(trained.folder, protocol, options.name))
        if not options.resume:
            put_aside(bare_path(path, protocol.norm))
        part = getattr(trained.dataset, protocol.split)
        warn_of_few_classes(part, protocol.select(len(part)), options.echo)
        log = extended(
            open_log, path, protocol,
            lambda one: one.about(trained.network, part),
            lambda one: part.indices[one.lasting(len(part))].tolist(),
        )  # fmt: skip
        complete(at, log)
        return _publish(at, log)


def warn_of_sigma(trained: Trained, protocol: Protocol, echo: Echo) -> None:
    """Warns if a network was trained for another sigma than it is certified at."""
    warning = sigma_warning(protocol.sigma, trained.trained_sigma)
    if warning and trained.training_known:
        echo(f"warning: {warning}")


def complete(at: Bench, log: Log) -> None:
    """Computes the rows that a log lacks, after proving that the others are of this network.

    Raises:
        OtherProtocolError: the rows are of another function.
        RequestError: the images changed meanwhile.
        WorkError: a task failed every retry; finished rows are kept.
    """
    part = getattr(at.trained.dataset, log.protocol.split)
    chosen = log.protocol.select(len(part))
    todo = _missing(at, log, chosen)
    if isinstance(log, BoundLog):
        whole = _together(chosen, log.protocol.batch)
        shards = iter([part for part in whole if not set(todo).isdisjoint(part)])
    else:
        shards = in_shards(todo, at.pool.room)
    _run(at, log, shards, len(todo))
    at.check_images(part, chosen, log.protocol.data, log.path)
    log.finish()


def bare_path(log: Path, norm: str) -> Path:
    """Returns the file of a log with Cohen's six columns, whose name has the norm of its radii: the
    columns do not.

    Args:
        log: the log.
        norm: of its radii.
    """
    named = norm_in(log.stem) == norm
    return log.parent / "cohen" / (log.name if named else f"{log.stem}_{norm}{log.suffix}")


def _together(chosen: list[int], count: int) -> list[list[int]]:
    """Returns positions in the parts that are computed together: rounding may depend on them."""
    return [chosen[start : start + count] for start in range(0, len(chosen), count)]


def _missing(at: Bench, log: Log, chosen: list[int]) -> list[int]:
    """Returns the positions missing from a log; proves that its rows are of this network."""
    trained = at.trained
    split = getattr(trained.dataset, log.protocol.split)
    positions = {int(split.indices[position]): position for position in chosen}
    log.check_examples({idx: int(split.labels[pos]) for idx, pos in positions.items()})
    if log.rows:
        at.options.echo(f"resuming {log.path.name}: {len(log.rows)} of {len(chosen)} rows are done")

        def recertify(indices: list[int], at_protocol: Header) -> list[Any]:
            examples = _examples(split, [positions[idx] for idx in indices])
            rows = at.call(_shard, trained.network, examples, at_protocol, trained.config)
            return sorted(rows, key=lambda row: indices.index(row.idx))

        if isinstance(log, BoundLog):
            own = log.protocol
            check_bound_rows(log.rows, own, log.path, lambda some: recertify(some, own))
        else:
            check_rows(log.rows, len(chosen), log.protocol, log.path, recertify)
    return [position for idx, position in positions.items() if idx not in log.places]


def _examples(split: Part, positions: list[int]) -> Examples:
    images, labels = split.fetch(positions)
    return images, labels, split.indices[positions]


def recompute(trained: Trained, idx: int, name: str | None = None) -> str:
    """Recomputes one row of an existing log; returns a report.

    Args:
        trained: network, data, configuration.
        idx: index of the example in its dataset.
        name: of the log; derived from the protocol if not given.

    Raises:
        RequestError: no log exists for this protocol, or it has no such row.
        WorkError: the row differs.
    """
    protocol = protocol_of(trained, devices.local().type)
    path = log_path(trained.folder, protocol, name)
    if not path.exists():
        raise RequestError(f"{path}: no certificates with this protocol yet; run without --only")
    rows: list[Any] = open_log(path, protocol).rows
    old = next((row for row in rows if row.idx == idx), None)
    if old is None:
        raise RequestError(f"--only: example {idx} is not in {path}")
    split = getattr(trained.dataset, protocol.split)
    examples = _examples(split, (split.indices == idx).nonzero().flatten().tolist())
    sent = Sent.of(copy.deepcopy(trained.network), trained.dataset.shape)
    (new,) = _shard(sent, examples, protocol, trained.config)
    bounds = isinstance(protocol, BoundProtocol)
    if not (new.agrees(old, protocol) if bounds else new.same(old)):
        raise WorkError(f"row {idx} of {path} was not reproduced: {old} became {new}")
    return f"row {idx} of {path} was reproduced:\n{new.line().rstrip()}"


def protocol_of(trained: Trained, device: str) -> Header:
    """Returns the protocol for certifying a network on a type of device.

    Raises:
        RequestError: the network has a step without bounds, see `check_bounds`.
    """
    dataset, section = trained.dataset, trained.config.certify
    if section.bound == "smoothing":
        return smoothing_of(trained, device)
    check_bounds(trained.network, dataset.shape, section.bound)
    protocol = make_bound_protocol(
        section,
        shape=dataset.shape,
        classes=len(dataset.classes),
        device=device,
        dataset=dataset.name,
    )
    return protocol.about(trained.network, getattr(dataset, protocol.split))


def smoothing_of(trained: Trained, device: str) -> Protocol:
    """Returns the protocol of randomized smoothing of a network on a type of device."""
    dataset, config = trained.dataset, trained.config
    protocol = make_protocol(
        config.certify,
        sigma=smoothing_sigma(config),
        shape=dataset.shape,
        device=device,
        dataset=dataset.name,
    )
    return protocol.about(trained.network, getattr(dataset, protocol.split))


def log_path(folder: Path, protocol: Header, name: str | None = None) -> Path:
    """Returns the file of a protocol's rows, named after the protocol, or as given."""
    return folder / FOLDER / f"{name or protocol.stem}.tsv"


def _run(at: Bench, log: Log, shards: Iterator[list[int]], count: int) -> None:
    """Certifies positions of the split, `count` of which have no row yet."""
    if not count:
        return
    config, protocol = at.trained.config, log.protocol
    split, network = getattr(at.trained.dataset, protocol.split), at.put()
    calls = ((network, _examples(split, part), protocol, config) for part in shards)
    with progress_bar(count, "certified", at.options.echo) as bar:
        for rows in at.pool.run(_shard, calls):
            bar.update(len({row.idx for row in rows} - log.places))
            log.append(rows)


def in_shards(todo: list[int], room: int) -> Iterator[list[int]]:
    """Yields positions in shards that shrink toward the end, an eighth of each task's share of the
    rest (our choice), so that all tasks end together. Shards of one example leave batches unfilled.
    """
    while todo:
        size = max(_SMALLEST_SHARD, min(_LARGEST_SHARD, len(todo) // (8 * room)))
        yield todo[:size]
        todo = todo[size:]


def _shard(sent: Sent, examples: Examples, protocol: Header, config: Config) -> list[Any]:
    """The task: certifies a few examples."""
    devices.set_threads(config.cluster.cpus_per_worker)
    images, labels, indices = examples
    network = sent.on(protocol.device)
    images, labels = images.to(protocol.device), labels.to(protocol.device)
    if isinstance(protocol, BoundProtocol):
        return list(bound_examples(network, images, labels, indices, protocol))
    assert isinstance(protocol, Protocol)
    return list(certify_examples(network, images, labels, indices, protocol))


def _publish(at: Bench, log: Log) -> Certified:
    """Writes curve and table next to the rows and sends everything to MLflow."""
    from raybust.reporting import acr, certificates  # matplotlib, which takes a second

    protocol, path = log.protocol, log.path
    radii = protocol.targets or at.trained.config.certify.columns(protocol.norm)
    prefix = "certified_linf" if isinstance(protocol, BoundProtocol) else "certified"
    metrics, average = summarize(log.rows, radii, prefix), acr(read_log(path))
    metrics |= {f"{prefix}/acr_low": average.low, f"{prefix}/acr_high": average.high}
    metrics[f"{prefix}/acr_understated"] = float(bool(protocol.targets))
    if isinstance(protocol, BoundProtocol):
        metrics[f"{prefix}/passes"] = protocol.passes
    files = {"rows": path, "curve": path.with_suffix(".png"), "table": path.with_suffix(".md")}
    labels = [at.trained.name]
    certificates.draw_curve([path], files["curve"], labels=labels)
    text = certificates.table([path], radii=radii, labels=labels)
    text = f"{text.rstrip()}\n\n{_words(protocol)}; radii in {protocol.norm}.\n"
    files["table"].write_text(text)
    curve = track.picture("certified accuracy", f"{path.parent.name}/{files['curve'].name}")
    note = {track.NOTE: f"Certified accuracy in percent by radius.\n\n{text}\n{curve}\n"}
    own = "certified/" if protocol.norm == "l2" else f"certified/{protocol.norm}/"
    sent = {key.replace("certified/", own, 1): value for key, value in metrics.items()}
    at.publish(path, log.header, sent, files.values(), note)
    details = {
        "log": str(path),
        "curve": str(files["curve"]),
        "acr_interval": [average.low, average.high],
        "acr_of": average.terms,
        "protocol": json.loads(log.header),
    }
    return Certified(text, metrics, files, details, rows=tuple(log.rows), header=protocol)


def _words(protocol: Header) -> str:
    if isinstance(protocol, BoundProtocol):
        return f"Sound bounds of the network itself ({protocol.bound}), without noise or alpha"
    assert isinstance(protocol, Protocol)
    return f"Noise: {protocol.noise}, {protocol.amount}"

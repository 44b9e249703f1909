"""Evaluation under attack over Ray: stateless tasks of one shard each, rows merged by their key.

Shards are cut by the protocol, not by the number of workers, and draws are keyed, so that the table
ends the same for any number of workers, and a driver that died goes on by the same command. A
network with a module in front has a table for each view of it. Stage evaluate.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from raybust import runs, track
from raybust.cluster.launch import Say, locked, open_store, progress_bar, say_if_growing
from raybust.cluster.session import nodes_of, session
from raybust.cluster.tasks import of_one_task, room_for, run_tasks
from raybust.config import Config
from raybust.evaluate import (
    HEADLINE,
    AttackProtocol,
    AttackRow,
    AttackTable,
    Flag,
    Summary,
    attack_examples,
    check_request,
    clean_accuracy,
    curve_points,
    flags_of_network,
    flags_of_transfer,
    make_attack_protocol,
    robustbench_record,
    seen_by,
    side_by_side,
    summarize,
    views_of,
)
from raybust.evaluate.summary import show_eps
from raybust.files import put_aside, replace_text, step_of
from raybust.models import Fronted
from raybust.report.attacks import draw_robust_curve
from raybust.trained import Trained

FOLDER = "attacked"
_PROBE = 32


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation.

    Attributes:
        line: what to print of clean accuracy, or the table of attacks with its flags; before that
            of a network with a module in front, its three protocols side by side.
        metrics: `attacked/*`, or clean accuracy alone.
        result: everything as plain data; of the other protocols under `views`.
        files: rows, summary, curve and RobustBench records; none without attacks.
    """

    line: str
    metrics: dict[str, float]
    result: dict[str, Any]
    files: dict[str, Path]

    def text(self) -> str:
        """Returns what the command line prints."""
        files = [f"{name:<14} {path}" for name, path in self.files.items()]
        return "\n".join([self.line, "", *files]) if files else self.line

    def plain(self) -> dict[str, Any]:
        """Returns the same for --json."""
        files = {name: str(path) for name, path in self.files.items()}
        return {**self.result, "metrics": self.metrics, "files": files}


def evaluate(
    trained: Trained,
    *,
    say: Say,
    address: str | None = None,
    workers: int | None = None,
    resume: bool = True,
    name: str | None = None,
    verbose: bool = False,
) -> Evaluated:
    """Attacks a network at the protocol of its configuration, or goes on with it.

    Args:
        trained: network, data, configuration.
        say: prints a line.
        address: of a Ray cluster; None for the embedded one, or the session that is open.
        workers: tasks at a time; as many as the cluster has room for where not given.
        resume: False moves an earlier table of the same name aside.
        name: of the table; made from the protocol where not given.
        verbose: whether Ray's messages are shown.

    Raises:
        OtherProtocolError: the table there is of another function, images, labels or protocol.
        RequestError: the network cannot be attacked, or another command is at its results.
        WorkError: a task failed for good; the rows that are done are kept.
    """
    config = trained.config
    if not config.evaluate.attacks:
        return _clean(trained)
    uri = open_store(config, runs.out_folder(config), say)
    summaries: list[Summary] = []
    rows: list[list[AttackRow]] = []
    with locked(trained.folder), session(address, verbose=verbose) as ray:
        gpu = nodes_of(ray).gpus(config)
        protocol = protocol_of(trained, "cuda" if gpu else "cpu")
        check_request(trained.network, _probe(trained, protocol), protocol)
        room = room_for(ray, config, workers)
        for one in views_of(trained.network, protocol):
            flags = _flags(trained, one, say)
            table = _table(trained, one, name, resume=resume)
            rows.append(_rows(ray, trained, table, room=room, say=say))
            if one.view == HEADLINE and len(rows) > 1:
                flags += flags_of_transfer(rows[-1], rows[-2], one)
            summaries.append(summarize(rows[-1], one, flags))
        return _publish(trained, summaries, table, uri)


def _clean(trained: Trained) -> Evaluated:
    """Returns clean accuracy, and that of the network without its front where it has one."""
    network, dataset, section = trained.network, trained.dataset, trained.config.evaluate
    found = clean_accuracy(network, dataset, section)
    metrics, lines, result = {"attacked/clean_accuracy": found.accuracy}, [str(found)], vars(found)
    if isinstance(network, Fronted):
        bare = clean_accuracy(network.network, dataset, section)
        metrics["attacked/alone/clean_accuracy"] = bare.accuracy
        lines.append(f"without its front: {bare}")
        result = {**result, "views": {"alone": vars(bare)}}
    return Evaluated("\n".join(lines), metrics, result, {})


def protocol_of(trained: Trained, device: str) -> AttackProtocol:
    """Returns the protocol at which a network is attacked on a type of device."""
    dataset, section = trained.dataset, trained.config.evaluate
    part = getattr(dataset, section.split)
    protocol = make_attack_protocol(
        section, shape=dataset.shape, total=len(part), device=device, dataset=dataset.name
    )
    return protocol.about(trained.network, part)


def table_path(folder: Path, protocol: AttackProtocol, name: str | None = None) -> Path:
    """Returns where the rows of a protocol lie: one file for split, norm, radii, attacks, view; or
    for the name and the view."""
    radii = "-".join(show_eps(eps).replace("/255", "of255") for eps in protocol.eps)
    parts = [name] if name else [protocol.split, protocol.norm, radii, *protocol.attacks]
    parts += [] if protocol.view == HEADLINE else [protocol.view]
    return folder / FOLDER / ("_".join(parts) + ".tsv")


def _probe(trained: Trained, protocol: AttackProtocol) -> Tensor:
    """Returns the first images of the split, on which the network is tried."""
    split = getattr(trained.dataset, protocol.split)
    images: Tensor = split.fetch(range(min(_PROBE, protocol.examples)))[0]
    return images


def _flags(trained: Trained, protocol: AttackProtocol, say: Say) -> list[Flag]:
    """Returns, and tells, what is doubtful about the network that is attacked in a view."""
    if protocol.view == "oblivious":
        return []  # it is the one of `alone`
    attacked, _ = seen_by(trained.network, protocol.view)
    flags = flags_of_network(attacked, _probe(trained, protocol), protocol.eot)
    for flag in flags:
        say(f"warning: {flag.text}")
    return flags


def _table(
    trained: Trained, protocol: AttackProtocol, name: str | None, *, resume: bool
) -> AttackTable:
    """Returns the table of a protocol; its rows, if any, are proven to be of the network at hand
    by what their header records of it."""
    path = table_path(trained.folder, protocol, name)
    if not resume:
        put_aside(path)
    table = AttackTable(path, protocol)
    split = getattr(trained.dataset, protocol.split)
    indices, labels = (part[: protocol.examples].tolist() for part in (split.indices, split.labels))
    table.check_examples(dict(zip(indices, labels, strict=True)))
    return table


def _rows(
    ray: Any, trained: Trained, table: AttackTable, *, room: int, say: Say
) -> list[AttackRow]:
    """Returns all rows of a table; attacks what it lacks, `room` tasks at a time."""
    protocol = table.protocol
    split = getattr(trained.dataset, protocol.split)
    shards = protocol.shards()
    todo = [at for at in shards if not table.has(split.indices[list(at)].tolist())]
    if len(todo) < len(shards):
        done = len(shards) - len(todo)
        say(f"resuming {table.path.name}: {done} of {len(shards)} shards are done")
    if not todo:
        return table.finish()
    config, network = trained.config, ray.put(trained.network)
    say_if_growing(of_one_task(config), ray, say)
    calls = (
        (network, (*split.fetch(list(at)), split.indices[list(at)].tolist()), protocol, config)
        for at in todo
    )
    done = len(table.rows) // len(protocol.threats)
    what = "attacked" if protocol.view == HEADLINE else f"attacked, {protocol.view}"
    with progress_bar(protocol.examples, what, done) as bar:
        for rows in run_tasks(ray, config, room, _shard, calls):
            table.append(rows)
            bar.update(len(rows) // len(protocol.threats))
            _tell(table, protocol, bar, say)
    return table.finish()


def _tell(table: AttackTable, protocol: AttackProtocol, bar: Any, say: Say) -> None:
    """Shows the robust accuracy so far: on the bar, or as a line away from a terminal."""
    parts = []
    for eps in protocol.eps:
        hits = [row.robust for row in table.rows if row.eps == eps]
        parts.append(f"{100 * sum(hits) / len(hits):.1f} % at {show_eps(eps)}")
    text = ", ".join(parts)
    bar.set_postfix_str(text)
    if not sys.stderr.isatty():
        count = len(table.rows) // len(protocol.threats)
        view = "" if protocol.view == HEADLINE else f" ({protocol.view})"
        say(f"attacked {count} of {protocol.examples}{view}: robust so far {text}")


def _shard(
    network: nn.Module,
    examples: tuple[Tensor, Tensor, list[int]],
    protocol: AttackProtocol,
    config: Config,
) -> list[AttackRow]:
    """The task: the rows of one shard."""
    from raybust.cluster.worker import set_threads

    set_threads(config)
    images, labels, indices = examples
    network = network.to(protocol.device).eval()
    images, labels = images.to(protocol.device), labels.to(protocol.device)
    return attack_examples(network, images, labels, indices, protocol)


def _publish(
    trained: Trained, summaries: Sequence[Summary], table: AttackTable, uri: str
) -> Evaluated:
    """Writes summary, curve and records beside the rows and sends all of it to MLflow."""
    headline, others, path = summaries[-1], summaries[:-1], table.path
    files = {"rows": path, "summary": path.with_suffix(".json"), "curve": path.with_suffix(".png")}
    for one in others:
        view = one.protocol.view
        files[f"rows {view}"] = path.with_name(f"{path.stem}_{view}{path.suffix}")
    result = headline.plain()
    if others:
        result["views"] = {one.protocol.view: one.plain() for one in others}
    replace_text(files["summary"], json.dumps(result, indent=1) + "\n")
    label, norm = trained.folder.name, headline.protocol.norm
    curves = {label: curve_points(headline)}
    curves |= {f"{label}, {one.protocol.view}": curve_points(one) for one in others}
    draw_robust_curve(curves, files["curve"], norm=norm)
    files |= _records(trained, headline, path)
    metrics = {key: value for one in summaries for key, value in one.metrics().items()}
    if trained.uid is not None:
        step = step_of(path, table.header)
        flags = ", ".join(flag.name for flag in headline.flags) or "none"
        track.log_to_run(
            path.with_suffix(".journal.jsonl"),
            uri,
            trained.uid,
            trained.config.track.experiment,
            metrics=metrics,
            step=step,
            artifacts=list(files.values()),
            folder=FOLDER,
            tags={"raybust.distrust": flags, f"raybust.{FOLDER}.{step}": path.stem},
        )
    text = headline.text()
    if others:
        doubts = [f"DISTRUST ({f.name}): {f.text}" for one in others for f in one.flags]
        text = "\n".join([side_by_side(summaries), *doubts, "", f"{HEADLINE}:", "", text])
    return Evaluated(text, metrics, result, files)


def _records(trained: Trained, summary: Summary, path: Path) -> dict[str, Path]:
    """Writes RobustBench's record of every radius; returns the files."""
    files = {}
    architecture = trained.config.model.name
    for eps in summary.protocol.eps:
        record = robustbench_record(
            summary, eps, name=trained.folder.name, architecture=architecture
        )
        shown = show_eps(eps).replace("/255", "of255")
        file = path.with_name(f"{path.stem}.robustbench-{shown}.json")
        file.write_text(json.dumps(record, indent=1) + "\n")
        files[f"record {show_eps(eps)}"] = file
    return files

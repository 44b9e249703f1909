"""Evaluation under attack over Ray: stateless tasks of one shard each, rows merged by their key.

Shards are cut by the protocol, not by the number of workers, and draws are keyed, so that the table
ends the same for any number of workers, and a driver that died goes on by the same command. Stage
evaluate.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from raybust import runs, track
from raybust.certify import weights_digest
from raybust.cluster.launch import Say, open_store, progress_bar
from raybust.cluster.session import gpus_per_worker, session
from raybust.cluster.tasks import room_for, run_tasks
from raybust.config import Config
from raybust.evaluate import (
    AttackProtocol,
    AttackRow,
    AttackTable,
    Summary,
    attack_examples,
    check_request,
    clean_accuracy,
    curve_points,
    flags_of_network,
    make_attack_protocol,
    robustbench_record,
    summarize,
)
from raybust.evaluate.summary import show_eps
from raybust.report.attacks import draw_robust_curve
from raybust.runs import Trained

FOLDER = "attacked"
_PROBE = 32


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation.

    Attributes:
        line: what to print of clean accuracy, or the table of attacks with its flags.
        metrics: `attacked/*`, or clean accuracy alone.
        result: everything as plain data.
        files: rows, summary, curve and RobustBench records; none without attacks.
    """

    line: str
    metrics: dict[str, float]
    result: dict[str, Any]
    files: dict[str, Path]

    def text(self) -> str:
        """Returns what the command line prints."""
        files = [f"{name:<11} {path}" for name, path in self.files.items()]
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
    verbose: bool = False,
) -> Evaluated:
    """Attacks a network at the protocol of its configuration, or goes on with it.

    Args:
        trained: network, data, configuration.
        say: prints a line.
        address: of a Ray cluster; None for the embedded one, or the session that is open.
        workers: tasks at a time; as many as the cluster has room for where not given.
        resume: False moves an earlier table of the same name aside.
        verbose: whether Ray's messages are shown.

    Raises:
        RequestError: a table of another protocol lies there, or the network cannot be attacked.
        WorkError: a task failed for good; the rows that are done are kept.
    """
    config = trained.config
    if not config.evaluate.attacks:
        accuracy = clean_accuracy(trained.network, trained.dataset, config.evaluate)
        metrics = {"attacked/clean_accuracy": accuracy.accuracy}
        return Evaluated(str(accuracy), metrics, vars(accuracy), {})
    uri = open_store(config, runs.out_folder(config), say)
    with session(address, verbose=verbose) as ray:
        gpu = gpus_per_worker(config, ray.cluster_resources())
        protocol = protocol_of(trained, "cuda" if gpu else "cpu")
        split = getattr(trained.dataset, protocol.split)
        probe, _ = split.fetch(range(min(_PROBE, protocol.examples)))
        check_request(trained.network, probe, protocol)
        flags = flags_of_network(trained.network, probe, protocol.eot)
        for flag in flags:
            say(f"warning: {flag.text}")
        path = table_path(trained.folder, protocol)
        if not resume and path.exists():
            path.rename(path.with_suffix(f".{int(path.stat().st_mtime)}.tsv"))
        table = AttackTable(path, protocol)
        shards = protocol.shards()
        todo = [at for at in shards if not table.has(split.indices[list(at)].tolist())]
        if len(todo) < len(shards):
            say(f"resuming {path.name}: {len(shards) - len(todo)} of {len(shards)} shards are done")
        room = room_for(ray, config, workers)
        _run(ray, trained, protocol, todo, table, room=room, say=say)
    return _publish(trained, path, summarize(table.finish(), protocol, flags), uri)


def protocol_of(trained: Trained, device: str) -> AttackProtocol:
    """Returns the protocol at which a network is attacked on a type of device."""
    dataset, section = trained.dataset, trained.config.evaluate
    return make_attack_protocol(
        section,
        shape=dataset.shape,
        total=len(getattr(dataset, section.split)),
        device=device,
        dataset=dataset.name,
        data=dataset.digest,
        weights=weights_digest(trained.network),
    )


def table_path(folder: Path, protocol: AttackProtocol) -> Path:
    """Returns where the rows of a protocol lie: one file for split, norm, radii and attacks."""
    radii = "-".join(show_eps(eps).replace("/255", "of255") for eps in protocol.eps)
    parts = [protocol.split, protocol.norm, radii, *protocol.attacks]
    return folder / FOLDER / ("_".join(parts) + ".tsv")


def _run(
    ray: Any,
    trained: Trained,
    protocol: AttackProtocol,
    todo: list[range],
    table: AttackTable,
    *,
    room: int,
    say: Say,
) -> None:
    """Attacks the shards `todo` of the split with `room` tasks at a time."""
    if not todo:
        return
    config = trained.config
    split = getattr(trained.dataset, protocol.split)
    network = ray.put(trained.network)
    calls = (
        (network, (*split.fetch(list(at)), split.indices[list(at)].tolist()), protocol, config)
        for at in todo
    )
    done = len(table.rows) // len(protocol.threats)
    with progress_bar(protocol.examples, "attacked", done) as bar:
        for rows in run_tasks(ray, config, room, _shard, calls):
            table.append(rows)
            bar.update(len(rows) // len(protocol.threats))
            _tell(table, protocol, bar, say)


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
        say(f"attacked {count} of {protocol.examples}: robust so far {text}")


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


def _publish(trained: Trained, path: Path, summary: Summary, uri: str) -> Evaluated:
    """Writes summary, curve and records beside the rows and sends all of it to MLflow."""
    files = {"rows": path, "summary": path.with_suffix(".json"), "curve": path.with_suffix(".png")}
    files["summary"].write_text(json.dumps(summary.plain(), indent=1) + "\n")
    label, norm = trained.folder.name, summary.protocol.norm
    draw_robust_curve({label: curve_points(summary)}, files["curve"], norm=norm)
    for eps in summary.protocol.eps:
        record = robustbench_record(
            summary, eps, name=label, architecture=trained.config.model.name
        )
        shown = show_eps(eps).replace("/255", "of255")
        file = path.with_name(f"{path.stem}.robustbench-{shown}.json")
        file.write_text(json.dumps(record, indent=1) + "\n")
        files[f"record {show_eps(eps)}"] = file
    metrics = summary.metrics()
    if trained.uid is not None:
        track.log_to_run(
            path.with_suffix(".journal.jsonl"),
            uri,
            trained.uid,
            trained.config.track.experiment,
            metrics=metrics,
            artifacts=list(files.values()),
            folder=FOLDER,
            tags={"raybust.distrust": ", ".join(flag.name for flag in summary.flags) or "none"},
        )
    return Evaluated(summary.text(), metrics, summary.plain(), files)

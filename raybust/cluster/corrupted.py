"""Evaluation under corruption over Ray: stateless tasks of a share of the examples each, whose
counts add up.

The shares are cut by the protocol, not by the number of workers, and noise is keyed, so that the
counts end the same for any number of workers. Each share's counts are a line of a file: a driver
that died goes on by the same command. Stage corruptions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raybust import data, methods, runs, track
from raybust.certify import weights_digest
from raybust.cluster.launch import Say, open_store, progress_bar, say_if_growing
from raybust.cluster.session import nodes_of, session
from raybust.cluster.tasks import of_one_task, room_for, run_tasks
from raybust.config import Config, from_dict
from raybust.corruptions import (
    Cell,
    Corrupted,
    check_corruptions,
    evaluate_corruptions,
    merge,
    named_sets,
)
from raybust.data import Part
from raybust.errors import RequestError
from raybust.files import kept_aside, put_aside, read_json, replace_text
from raybust.report.transfer import Training, training_of_metrics
from raybust.runs import Trained

FOLDER = "corrupted"
_VERSION, _SHARES = 1, 16
"""Of the protocol; sixteen are enough for eight workers to end together (our choice)."""


@dataclass(frozen=True)
class Measured:
    """A finished evaluation.

    Attributes:
        found: all counts.
        metrics: as `Corrupted.metrics` has them.
        files: counts by share, metrics, table.
    """

    found: Corrupted
    metrics: dict[str, float]
    files: dict[str, Path]

    def text(self) -> str:
        """Returns what the command line prints."""
        figures = [f"{name:<24} {value:.4f}" for name, value in self.metrics.items()]
        figures = [line for line in figures if not line.startswith(("error/", "generated/error/"))]
        files = [f"{name:<8} {path}" for name, path in self.files.items()]
        notes = [f"note: {text}" for text in self.found.notes()]
        return "\n".join([self.found.table(), *figures, *notes, "", *files])

    def plain(self) -> dict[str, Any]:
        """Returns the same for --json."""
        files = {name: str(path) for name, path in self.files.items()}
        return {"metrics": self.metrics, "notes": self.found.notes(), "files": files}


def evaluate(
    trained: Trained,
    *,
    say: Say,
    address: str | None = None,
    workers: int | None = None,
    resume: bool = True,
    verbose: bool = False,
) -> Measured:
    """Measures a network under the corruptions of its configuration, or goes on with it.

    Args:
        trained: network, data, configuration.
        say: prints a line.
        address: of a Ray cluster; None for the embedded one, or the session that is open.
        workers: tasks at a time; as many as the cluster has room for where not given.
        resume: False moves earlier counts of the same protocol aside.
        verbose: whether Ray's messages are shown.

    Raises:
        RequestError: the corruptions cannot be had, or the file is no file of counts.
        WorkError: a task failed for good; the shares that are done are kept.
    """
    config, section = trained.config, trained.config.corruptions
    part = getattr(trained.dataset, section.split)
    cells = check_corruptions(part, section, trained.dataset.classes)
    uri = open_store(config, runs.out_folder(config), say)
    with session(address, verbose=verbose) as ray:
        device = "cuda" if nodes_of(ray).gpus(config) else "cpu"
        protocol = protocol_of(trained, device)
        path = counts_path(trained.folder, protocol)
        if not resume:
            put_aside(path)
        shares = _read(path, protocol, named_sets(section, part))
        todo = [share for share in range(_SHARES) if share not in shares]
        if len(todo) < _SHARES:
            say(f"resuming {path.name}: {len(shares)} of {_SHARES} shares are done")
        if todo:
            say_if_growing(of_one_task(config), ray, say)
        images, network = ray.put((part, trained.dataset.classes)), ray.put(trained.network)
        calls = ((network, images, share, device, config) for share in todo)
        with progress_bar(_SHARES * cells, "cells", len(shares) * cells) as bar:
            for share, found in run_tasks(ray, config, room_for(ray, config, workers), _do, calls):
                shares[share] = found
                _append(path, {"share": share, "cells": [cell.plain() for cell in found.cells]})
                bar.update(cells)
    return _publish(trained, path, merge([shares[share] for share in range(_SHARES)]), uri)


def protocol_of(trained: Trained, device: str) -> dict[str, Any]:
    """Returns everything that the counts depend on."""
    dataset, section = trained.dataset, dataclasses.asdict(trained.config.corruptions)
    plain: dict[str, Any] = json.loads(
        json.dumps(
            {
                "version": _VERSION,
                "dataset": dataset.name,
                "data": dataset.digest,
                "weights": weights_digest(trained.network),
                "device": device,
                "shares": _SHARES,
                **section,
            }
        )
    )
    return plain


def counts_path(folder: Path, protocol: Mapping[str, Any]) -> Path:
    """Returns where the counts of a protocol lie."""
    digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:8]
    names = [protocol["split"], *protocol["sets"], *(["rows"] if protocol["rows"] else [])]
    names += ["published"] if protocol["folder"] else []
    names += ["generated"] if protocol["generated"] else []
    return folder / FOLDER / ("_".join([*names, digest]) + ".jsonl")


def latest_metrics(folder: Path) -> dict[str, float]:
    """Returns what evaluations of a run found under corruption, the latest of each metric."""
    files = sorted((folder / FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime)
    found: dict[str, float] = {}
    for file in files:
        found |= read_json(file)["metrics"]
    return found


def measured_runs(folders: Sequence[Path]) -> list[Path]:
    """Returns the runs among these, and the trials of the sweeps among them, that were measured
    under corruption."""
    places = [
        place for folder in folders for place in (folder, *sorted((folder / runs.TRIALS).glob("*")))
    ]
    return [place for place in places if any((place / FOLDER).glob("*.json"))]


def trainings_of(folders: Sequence[Path]) -> tuple[list[Training], tuple[int, int, int]]:
    """Returns the columns of the transfer matrix, one a run, and the shape of the images.

    Args:
        folders: runs that `measured_runs` found.

    Raises:
        RequestError: a run was not measured under the set C1, or runs are of several datasets.
    """
    found, datasets = [], {}
    for folder in folders:
        config = from_dict(runs.read_identity(folder).config, methods.get)
        if config.data not in datasets:
            datasets[config.data] = data.load(config.data).shape
        shape = datasets[config.data]
        noisy = getattr(config.method, "noise_set", None)
        rows = noisy(shape).rows if noisy and config.method.clean < 1 else ()
        trial = folder.parent.name == runs.TRIALS
        name = f"{folder.parent.parent.name}/{int(folder.name)}" if trial else folder.name
        found.append(training_of_metrics(name, rows, latest_metrics(folder)))
    if len(datasets) != 1:
        raise RequestError(f"the runs are of {len(datasets)} datasets; compare those of one")
    return found, shape


def _do(
    network: nn.Module,
    images: tuple[Part, tuple[str, ...]],
    share: int,
    device: str,
    config: Config,
) -> tuple[int, Corrupted]:
    """The task: the counts of one share of the examples."""
    from raybust.cluster.worker import set_threads

    set_threads(config)
    (part, classes), where = images, torch.device(device)
    found = evaluate_corruptions(
        network.to(where).eval(),
        part,
        config.corruptions,
        where,
        classes=classes,
        shard=(share, _SHARES),
    )
    return share, found


def _read(path: Path, protocol: Mapping[str, Any], sets: Any) -> dict[int, Corrupted]:
    """Returns the shares that are done; begins the file where it is missing, drops a torn line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if not lines or not lines[0].endswith(b"\n"):
        path.write_text("")
        _append(path, dict(protocol))
        return {}
    if not lines[-1].endswith(b"\n"):
        os.truncate(path, sum(map(len, lines[:-1])))
        lines.pop()
    try:
        header, *done = map(json.loads, lines)
        shares = {
            entry["share"]: Corrupted(cells=tuple(map(Cell.parse, entry["cells"])), sets=sets)
            for entry in done
        }
    except (ValueError, TypeError, KeyError):
        header = None
    if header != protocol:
        raise RequestError(f"{path}: exists and holds other counts; --no-resume moves it aside")
    return shares


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _publish(trained: Trained, path: Path, found: Corrupted, uri: str) -> Measured:
    """Writes metrics and table beside the counts and sends all of it to MLflow."""
    files = {"counts": path, "metrics": path.with_suffix(".json"), "table": path.with_suffix(".md")}
    measured = Measured(found, found.metrics(), files)
    replace_text(files["metrics"], json.dumps(measured.plain(), indent=1) + "\n")
    notes = "".join(f"\n{text}.\n" for text in found.notes())
    files["table"].write_text(found.table() + notes)
    if trained.uid is not None:
        track.log_to_run(
            path.with_suffix(".journal.jsonl"),
            uri,
            trained.uid,
            trained.config.track.experiment,
            metrics=measured.metrics,
            step=kept_aside(path),
            artifacts=list(files.values()),
            folder=FOLDER,
        )
    return measured

"""Evaluation under corruption on Ray: each stateless task counts over a share of the examples, and
the counts add up.

The protocol, not the number of workers, determines the shares, and noise is keyed, so the counts do
not depend on the number of workers. Each share is a line of a file; rerunning the command resumes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from raybust import data, identity, methods
from raybust.config import Config, from_dict
from raybust.corruptions import (
    VERSION,
    CountsLog,
    Share,
    check_corruptions,
    contents,
    evaluate_corruptions,
    merge,
    named_sets,
)
from raybust.data import Part
from raybust.disk import runs
from raybust.disk.files import is_aside, read_json, replace_text
from raybust.errors import RequestError
from raybust.identity import Sent
from raybust.report.transfer import Training, training_of_metrics
from raybust.stages.measurement import Bench, Measurement, Options, bench, warn_of_few_classes
from raybust.stages.progress import progress_bar
from raybust.trained import Trained, is_current

FOLDER = "corrupted"
_SHARES = 16
"""Enough for eight workers to finish together (our choice)."""
_ABOUT = ("data", "labels", "weights", "outputs")


def evaluate(trained: Trained, options: Options) -> Measurement:
    """Measures a network under its configuration's corruptions, or resumes the measurement.

    Args:
        trained: network, data, configuration.
        options: how to run.

    Raises:
        OtherProtocolError: the existing counts are of another function, images, labels or protocol.
        RequestError: the corruptions cannot be applied, or another command is measuring the run.
        WorkError: a task failed every retry; finished counts are kept.
    """
    config, section = trained.config, trained.config.corruptions
    part, classes = getattr(trained.dataset, section.split), trained.dataset.classes
    cells = check_corruptions(part, section, classes)
    warn_of_few_classes(part, range(min(len(part), section.examples or len(part))), options.echo)
    with bench(trained, options) as at:
        protocol = protocol_of(trained, at.device)
        path = at.place(counts_path(trained.folder, protocol, options.name))
        log = CountsLog(path, protocol, named_sets(section, part))
        todo = [share for share in range(_SHARES) if share not in log.shares]
        if len(todo) < _SHARES:
            options.echo(f"resuming {path.name}: {len(log.shares)} of {_SHARES} shares are done")
            log.check_images(part, section, classes)
        images, network = at.ray.put((part, classes)), at.put()
        calls = ((network, images, share, at.device, config) for share in todo)
        with progress_bar(_SHARES * cells, "cells", len(log.shares) * cells) as bar:
            for entry in at.run(_do, calls) if todo else ():
                log.append(entry)
                bar.update(cells)
        chosen = range(min(len(part), section.examples or len(part)))
        at.check_images(part, chosen, protocol["data"], path)
        return _publish(at, log)


def protocol_of(trained: Trained, device: str) -> dict[str, Any]:
    """Returns everything that the counts depend on, as plain data. It names the folder of published
    images; their content is recorded with each share's counts."""
    dataset, section = trained.dataset, trained.config.corruptions
    part = getattr(dataset, section.split)
    chosen = range(min(len(part), section.examples or len(part)))
    settings = dataclasses.asdict(section)
    del settings["batch"]
    if section.folder is not None:
        settings["folder"] = Path(section.folder).resolve().name
    header = {
        "version": VERSION,
        "dataset": dataset.name,
        "data": part.content(chosen),
        "labels": part.labeling(chosen),
        "weights": identity.weights_digest(trained.network),
        "outputs": identity.outputs_of(trained.network, part.fetch(chosen[: identity.PROBES])[0]),
        "device": device,
        "shares": _SHARES,
        **settings,
    }
    plain: dict[str, Any] = json.loads(json.dumps(header))
    return plain


def counts_path(folder: Path, protocol: Mapping[str, Any], name: str | None = None) -> Path:
    """Returns the file of a protocol's counts, independent of network and images."""
    if name is not None:
        return folder / FOLDER / f"{name}.jsonl"
    asked = {key: value for key, value in protocol.items() if key not in _ABOUT}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    names = [protocol["split"], *protocol["sets"], *(["rows"] if protocol["rows"] else [])]
    names += ["published"] if protocol["folder"] else []
    names += ["generated"] if protocol["generated"] else []
    return folder / FOLDER / ("_".join([*names, digest]) + ".jsonl")


def transfer_result(folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns metrics and settings of a run's newest result with the set C1.

    Raises:
        RequestError: the run has none.
    """
    found = [path for path in _results(folder) if "C1" in read_json(path)["protocol"]["sets"]]
    if not found:
        raise RequestError(
            f"{folder.name}: has no accuracy under the set C1; run `raybust evaluate {folder.name}"
            " corruptions.sets=[C1]`"
        )
    whole = read_json(max(found, key=lambda path: path.stat().st_mtime))
    settings = {key: whole["protocol"][key] for key in ("split", "examples", "impulse", "seed")}
    return whole["metrics"], settings


def _results(folder: Path) -> list[Path]:
    return [
        path
        for path in (folder / FOLDER).glob("*.json")
        if not is_aside(path) and is_current(path, read_json(path).get("protocol", {}))
    ]


def measured_runs(folders: Sequence[Path]) -> list[Path]:
    """Returns those of the runs, and of the trials of the sweeps, that were measured under
    corruption."""
    found = [
        path for folder in folders for path in (folder, *sorted((folder / runs.TRIALS).glob("*")))
    ]
    return [path for path in found if _results(path)]


def trainings_of(folders: Sequence[Path]) -> tuple[list[Training], tuple[int, int, int]]:
    """Returns the columns of the transfer matrix, one per run, and the shape of the images.

    Args:
        folders: runs found by `measured_runs`.

    Raises:
        RequestError: a run was not measured under the set C1, or the runs' datasets differ.
    """
    found, datasets = [], {}
    settings: dict[str, dict[str, Any]] = {}
    for folder in folders:
        config = from_dict(runs.read_identity(folder).config, methods.get)
        if config.data not in datasets:
            datasets[config.data] = data.load(config.data).shape
        shape = datasets[config.data]
        noisy = getattr(config.method, "noise_set", None)
        rows = noisy(shape).rows if noisy and config.method.clean < 1 else ()
        trial = folder.parent.name == runs.TRIALS
        name = f"{folder.parent.parent.name}/{int(folder.name)}" if trial else folder.name
        metrics, settings[name] = transfer_result(folder)
        found.append(training_of_metrics(name, rows, metrics))
    first, *others = settings.items()
    for name, other in others:
        if other != first[1]:
            raise RequestError(
                f"{name} and {first[0]} were measured under different protocols ({other},"
                f" {first[1]}); measure both the same way, or choose other runs"
            )
    if len(datasets) != 1:
        raise RequestError(
            f"the runs use {len(datasets)} datasets; compare runs on the same dataset"
        )
    return found, shape


def _do(
    sent: Sent,
    images: tuple[Part, tuple[str, ...]],
    share: int,
    device: str,
    config: Config,
) -> Share:
    """The task: counts over one share of the examples."""
    from raybust.cluster.worker import set_threads

    began = time.perf_counter()
    set_threads(config)
    (part, classes), where, shard = images, torch.device(device), (share, _SHARES)
    found = evaluate_corruptions(
        sent.on(where), part, config.corruptions, where, classes=classes, shard=shard
    )
    seen = dict(contents(part, config.corruptions, classes=classes, shard=shard))
    return Share(share, found, seen, time.perf_counter() - began)


def _publish(at: Bench, log: CountsLog) -> Measurement:
    """Writes metrics and table next to the counts and sends everything to MLflow."""
    path, found = log.path, merge([log.shares[share].found for share in range(_SHARES)])
    files = {"counts": path, "metrics": path.with_suffix(".json"), "table": path.with_suffix(".md")}
    metrics, notes = found.metrics(), found.notes()
    figures = [
        f"{name:<24} {value:.4f}"
        for name, value in metrics.items()
        if not name.startswith(("error/", "generated/error/"))
    ]
    text = "\n".join([found.table(), *figures, *(f"note: {note}" for note in notes)])
    result = Measurement(text, metrics, files, {"notes": notes})
    plain = {**result.plain(), "protocol": json.loads(log.header)}
    replace_text(files["metrics"], json.dumps(plain, indent=1) + "\n")
    files["table"].write_text(found.table() + "".join(f"\n{note}.\n" for note in notes))
    at.publish(path, log.header, metrics, files.values())
    return result

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from raybust import devices, identity
from raybust.config import Config
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
from raybust.disk.files import digest_of, replace_text
from raybust.identity import Sent
from raybust.stages.bars import progress_bar
from raybust.stages.measurement import (
    Bench,
    Measurement,
    Options,
    bench,
    warn_of_few_classes,
    warn_of_instability,
)
from raybust.trained import Trained

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
    warn_of_instability(trained.network, part, options.echo)
    warn_of_few_classes(part, range(min(len(part), section.examples or len(part))), options.echo)
    with bench(trained, options) as at:
        protocol = protocol_of(trained, at.device)
        path = at.place(counts_path(trained.folder, protocol, options.name))
        log = CountsLog(path, protocol, named_sets(section, part))
        todo = [share for share in range(_SHARES) if share not in log.shares]
        if len(todo) < _SHARES:
            options.echo(f"resuming {path.name}: {len(log.shares)} of {_SHARES} shares are done")
            log.check_images(part, section, classes)
        images, network = at.pool.put((part, classes)), at.put()
        calls = ((network, images, share, at.device, config) for share in todo)
        with progress_bar(_SHARES * cells, "cells", options.echo, len(log.shares) * cells) as bar:
            for entry in at.pool.run(_do, calls) if todo else ():
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
        **identity.record([trained.network], part, chosen),
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


def _do(
    sent: Sent,
    images: tuple[Part, tuple[str, ...]],
    share: int,
    device: str,
    config: Config,
) -> Share:
    """The task: counts over one share of the examples."""
    began = time.perf_counter()
    devices.set_threads(config.cluster.cpus_per_worker)
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
    shape = list(at.trained.dataset.shape)
    plain = {**result.plain(), "shape": shape, "protocol": json.loads(log.header)}
    plain["digest"] = digest_of(plain)
    replace_text(files["metrics"], json.dumps(plain, indent=1) + "\n")
    files["table"].write_text(found.table() + "".join(f"\n{note}.\n" for note in notes))
    at.publish(path, log.header, metrics, files.values())
    return result

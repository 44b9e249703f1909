"""Evaluation under attack on Ray: one stateless task per shard, rows merged by their key.

The protocol, not the number of workers, determines the shards, and randomness is keyed, so the
table does not depend on the number of workers, and rerunning the command resumes. A network with a
front module has a table for each view.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raybust import devices
from raybust.config import Config, fraction
from raybust.config.assess import Evaluate
from raybust.data import Part
from raybust.disk.files import digest_of, replace_text
from raybust.disk.rowlog import OtherProtocolError
from raybust.errors import RequestError
from raybust.evaluate import (
    HEADLINE,
    Accuracy,
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
from raybust.evaluate.robustness import show_eps
from raybust.identity import Sent
from raybust.models import Fronted
from raybust.stages.bars import Echo, progress_bar
from raybust.stages.checks import device_before
from raybust.stages.extended import extended
from raybust.stages.measurement import (
    Bench,
    Measurement,
    Options,
    bench,
    warn_of_few_classes,
    warn_of_instability,
)
from raybust.trained import Trained

FOLDER = "attacked"
_PROBE = 32
_TIE = 1e-4
"""Fraction of the larger logit within which two classes tie, because kernels round differently."""


def evaluate(trained: Trained, options: Options) -> Measurement:
    """Attacks a network under its configuration's protocol, or resumes the evaluation. Without
    attacks it only measures clean accuracy.

    Args:
        trained: network, data, configuration.
        options: how to run.

    Raises:
        OtherProtocolError: the existing table is of another function, images, labels or protocol.
        RequestError: the network cannot be attacked, or another command is measuring the run.
        WorkError: a task failed every retry; finished rows are kept.
    """
    section = trained.config.evaluate
    part = getattr(trained.dataset, section.split)
    warn_of_few_classes(part, range(min(len(part), section.examples or len(part))), options.echo)
    if not section.attacks:
        return _clean(trained, options)
    summaries: list[Summary] = []
    rows: list[list[AttackRow]] = []
    with bench(trained, options) as at:
        protocol = protocol_of(trained, at.device)
        check_request(trained.network, _probe(trained, protocol), protocol)
        for one in views_of(trained.network, protocol):
            flags = _flags(trained, one, options.echo)
            table = _table(at, one)
            rows.append(_rows(at, table))
            if one.view == HEADLINE and len(rows) > 1:
                flags += flags_of_transfer(rows[-1], rows[-2], one)
            summaries.append(summarize(rows[-1], one, flags))
        return _publish(at, summaries, table)


def clean(at: Bench, network: nn.Module) -> Accuracy:
    """Measures clean accuracy in a task.

    Args:
        at: the open cluster.
        network: the trained one, or a part of it.
    """
    section = at.trained.config.evaluate
    part = getattr(at.trained.dataset, section.split)
    found: Accuracy = at.call(_accuracy, network, part, section, at.device)
    return found


def _accuracy(sent: Sent, part: Part, section: Evaluate, device: str) -> Accuracy:
    """The task: clean accuracy."""
    return clean_accuracy(sent.on(device), part, section, device)


def _clean(trained: Trained, options: Options) -> Measurement:
    """Measures clean accuracy, also without the front module if the network has one; on this
    machine's CPU without Ray."""
    network, section = trained.network, trained.config.evaluate
    views = [network, *([network.network] if isinstance(network, Fronted) else [])]
    part = getattr(trained.dataset, section.split)
    warn_of_instability(network, part, options.echo)
    if device_before(trained.config, options.address) == devices.CPU:
        shape = trained.dataset.shape
        results = [_accuracy(Sent.of(one, shape), part, section, devices.CPU) for one in views]
    else:
        with bench(trained, options) as at:
            results = [clean(at, one) for one in views]
    found = results[0]
    metrics, lines, result = {"attacked/clean_accuracy": found.accuracy}, [str(found)], vars(found)
    for bare in results[1:]:
        metrics["attacked/alone/clean_accuracy"] = bare.accuracy
        lines.append(f"without its front: {bare}")
        result = {**result, "views": {"alone": vars(bare)}}
    return Measurement("\n".join(lines), metrics, {}, result)


def protocol_of(trained: Trained, device: str) -> AttackProtocol:
    """Returns the protocol for attacking a network on a type of device."""
    dataset, section = trained.dataset, trained.config.evaluate
    part = getattr(dataset, section.split)
    protocol = make_attack_protocol(
        section, shape=dataset.shape, total=len(part), device=device, dataset=dataset.name
    )
    return protocol.about(trained.network, part)


def table_path(folder: Path, protocol: AttackProtocol, name: str | None = None) -> Path:
    """Returns the file of a protocol's rows, named after split, norm, radii, attacks and view; or
    after the given name and the view."""
    radii = "-".join(show_eps(eps).replace("/255", "of255") for eps in protocol.eps)
    parts = [name] if name else [protocol.split, protocol.norm, radii, *protocol.attacks]
    parts += [] if protocol.view == HEADLINE else [protocol.view]
    return folder / FOLDER / ("_".join(parts) + ".tsv")


def _probe(trained: Trained, protocol: AttackProtocol) -> Tensor:
    """Returns the first images of the split, for probing the network."""
    split = getattr(trained.dataset, protocol.split)
    images: Tensor = split.fetch(range(min(_PROBE, protocol.examples)))[0]
    return images


def _flags(trained: Trained, protocol: AttackProtocol, echo: Echo) -> list[Flag]:
    """Returns the doubts about the network attacked in a view, and prints them."""
    if protocol.view == "oblivious":
        return []  # attacks the same network as `alone`
    attacked, _ = seen_by(trained.network, protocol.view)
    flags = flags_of_network(attacked, _probe(trained, protocol), protocol.eot)
    for flag in flags:
        echo(f"warning: {flag.text}")
    return flags


def _table(at: Bench, protocol: AttackProtocol) -> AttackTable:
    """Returns the table of a protocol; its header proves that existing rows are of this network."""
    path = at.place(table_path(at.trained.folder, protocol, at.options.name))
    split = getattr(at.trained.dataset, protocol.split)
    table = extended(
        AttackTable, path, protocol,
        lambda one: one.about(at.trained.network, split),
        lambda one: split.indices[: one.examples // one.shard * one.shard].tolist(),
    )  # fmt: skip
    indices, labels = (part[: protocol.examples].tolist() for part in (split.indices, split.labels))
    table.check_examples(dict(zip(indices, labels, strict=True)))
    if table.rows and protocol.eot == 1:
        _check_predictions(at, table)
    return table


def _check_predictions(at: Bench, table: AttackTable) -> None:
    """Checks that finished rows are of the current network by recomputing the class of every clean
    image: one forward pass, where an attack takes hundreds.

    Raises:
        OtherProtocolError: the network predicts other classes.
    """
    split = getattr(at.trained.dataset, table.protocol.split)
    recorded = {row.idx: row.predict for row in table.rows}
    differ = at.call(_other_classes, at.trained.network, split, recorded, table.protocol)
    if differ:
        raise OtherProtocolError(
            [f"another function ({differ} of {len(recorded)} images have other classes)"],
            table.path,
        )


@torch.no_grad()
def _other_classes(
    sent: Sent, split: Part, recorded: Mapping[int, int], protocol: AttackProtocol
) -> int:
    """The task: counts the images, by index, that are not of their recorded class."""
    _, scored = seen_by(sent.on(protocol.device), protocol.view)
    positions = [at for at, idx in enumerate(split.indices.tolist()) if idx in recorded]
    differ = 0
    for start in range(0, len(positions), protocol.shard):
        part = positions[start : start + protocol.shard]
        logits = scored(split.fetch(part)[0].to(protocol.device))
        classes = [recorded[idx] for idx in split.indices[part].tolist()]
        at = torch.tensor(classes, device=logits.device).clamp(0, logits.shape[1] - 1)
        top, own = logits.amax(1), logits.gather(1, at[:, None]).flatten()
        differ += int((top - own > _TIE * torch.maximum(top.abs(), own.abs())).sum())
    return differ


def _rows(at: Bench, table: AttackTable) -> list[AttackRow]:
    """Returns all rows of a table after computing the missing ones."""
    protocol, echo = table.protocol, at.options.echo
    split = getattr(at.trained.dataset, protocol.split)
    shards = protocol.shards()
    todo = [part for part in shards if not table.has(split.indices[list(part)].tolist())]
    if len(todo) < len(shards):
        done = len(shards) - len(todo)
        echo(f"resuming {table.path.name}: {done} of {len(shards)} shards are done")
    if not todo:
        return table.finish()
    config, network = at.trained.config, at.put()
    calls = (
        (network, (*split.fetch(list(part)), split.indices[list(part)].tolist()), protocol, config)
        for part in todo
    )
    done = len(table.rows) // len(protocol.threats)
    what = "attacked" if protocol.view == HEADLINE else f"attacked, {protocol.view}"
    with progress_bar(protocol.examples, what, at.options.echo, done) as bar:
        for rows in at.pool.run(_shard, calls):
            table.append(rows)
            bar.update(len(rows) // len(protocol.threats))
            _show(table, protocol, bar, echo)
    at.check_images(split, range(protocol.examples), protocol.data, table.path)
    return table.finish()


def _show(table: AttackTable, protocol: AttackProtocol, bar: Any, echo: Echo) -> None:
    """Shows the robust accuracy so far: on the progress bar, or without a terminal as a line."""
    parts = []
    for eps in protocol.eps:
        hits = [row.robust for row in table.rows if row.eps == eps]
        parts.append(f"{100 * sum(hits) / len(hits):.1f} % at {show_eps(eps)}")
    text = ", ".join(parts)
    bar.set_postfix_str(text)
    if not sys.stderr.isatty():
        count = len(table.rows) // len(protocol.threats)
        view = "" if protocol.view == HEADLINE else f" ({protocol.view})"
        echo(f"attacked {count} of {protocol.examples}{view}: robust so far {text}")


def _shard(
    sent: Sent,
    examples: tuple[Tensor, Tensor, list[int]],
    protocol: AttackProtocol,
    config: Config,
) -> list[AttackRow]:
    """The task: computes the rows of one shard."""
    devices.set_threads(config.cluster.cpus_per_worker)
    images, labels, indices = examples
    network = sent.on(protocol.device)
    images, labels = images.to(protocol.device), labels.to(protocol.device)
    return attack_examples(network, images, labels, indices, protocol)


def _publish(at: Bench, summaries: Sequence[Summary], table: AttackTable) -> Measurement:
    """Writes summary, curve and records next to the rows and sends everything to MLflow."""
    headline, others, path = summaries[-1], summaries[:-1], table.path
    files = {"rows": path, "summary": path.with_suffix(".json"), "curve": path.with_suffix(".png")}
    for one in others:
        view = one.protocol.view
        files[f"rows {view}"] = path.with_name(f"{path.stem}_{view}{path.suffix}")
    result = headline.plain()
    if others:
        result["views"] = {one.protocol.view: one.plain() for one in others}
    whole = {**result, "digest": digest_of(result)}
    replace_text(files["summary"], json.dumps(whole, indent=1) + "\n")
    label, norm = at.trained.folder.name, headline.protocol.norm
    curves = {label: curve_points(headline)}
    curves |= {f"{label}, {one.protocol.view}": curve_points(one) for one in others}
    from raybust.reporting.attacks import draw_robust_curve  # matplotlib, which takes a second

    draw_robust_curve(curves, files["curve"], norm=norm)
    files |= _records(at.trained, headline, path)
    metrics = {key: value for one in summaries for key, value in one.metrics().items()}
    flags = ", ".join(flag.name for flag in headline.flags) or "none"
    at.publish(path, table.header, metrics, files.values(), {"raybust.distrust": flags})
    text = headline.text()
    if others:
        doubts = [f"DISTRUST ({f.name}): {f.text}" for one in others for f in one.flags]
        text = "\n".join([side_by_side(summaries), *doubts, "", f"{HEADLINE}:", "", text])
    return Measurement(text, metrics, files, result)


def _records(trained: Trained, summary: Summary, path: Path) -> dict[str, Path]:
    """Writes a RobustBench record for each radius; returns the files. The record has no place for
    flags, so a flagged evaluation has none."""
    files = {}
    architecture = trained.config.model.name
    for eps in summary.protocol.eps:
        record = robustbench_record(
            summary, eps, name=trained.folder.name, architecture=architecture
        )
        shown = show_eps(eps).replace("/255", "of255")
        file = path.with_name(f"{path.stem}.robustbench-{shown}.json")
        if summary.flags:
            file.unlink(missing_ok=True)  # of an earlier version, which wrote it
            continue
        file.write_text(json.dumps(record, indent=1) + "\n")
        files[f"record {show_eps(eps)}"] = file
    return files


def eps_setting(eps: Any) -> str:
    """Returns radii that a program passes as a setting: a number or text such as "8/255", several,
    an array or a tensor.

    Raises:
        RequestError: they are none of these.
    """
    if isinstance(eps, str):
        return f"evaluate.eps={eps}"
    given = [fraction(one) for one in eps] if isinstance(eps, (list, tuple)) else eps
    try:
        radii = torch.as_tensor(given, dtype=torch.float64).flatten().tolist()
    except (TypeError, ValueError, RuntimeError):
        raise RequestError(f"eps: got {eps!r}, expected numbers or text such as '8/255'") from None
    return f"evaluate.eps={radii}"

"""A sweep from start to leaderboard: trials, finalists at publication fidelity, the parent run.

Search sees the validation part alone; the finalists are certified on the test set, once, after the
search. The leaderboard shows both in separate columns. Stage tune.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from raybust import config as configuration
from raybust import data, runs, sources, track
from raybust.cluster import shards, tune
from raybust.cluster.launch import (
    Say,
    check_places,
    check_sweep,
    locked,
    open_store,
    progress_bar,
    sending_rest,
)
from raybust.cluster.session import session, slots
from raybust.cluster.study import Study, TrialRecord
from raybust.cluster.worker import Job, params_of
from raybust.config import Config, Leaf
from raybust.errors import WorkError
from raybust.evaluate import clean_accuracy
from raybust.objective import assemble
from raybust.report import certificates
from raybust.report.leaderboard import NAME, Entry, Leaderboard

_SEARCH = "search"


def run(
    config: Config,
    leaves: Sequence[Leaf],
    block: dict[str, Any],
    *,
    address: str | None,
    resume: bool,
    verbose: bool,
    say: Say,
) -> Leaderboard:
    """Runs a sweep, or goes on with it; returns its leaderboard.

    Args:
        config: the sweep's own configuration.
        leaves: what it was composed from.
        block: the block `search`.
        address: of a Ray cluster; None for the embedded one.
        resume: False moves an earlier sweep of that name aside.
        verbose: whether Ray's messages are shown.
        say: prints a line.

    Raises:
        RequestError: something of the request is wrong; nothing was begun.
        WorkError: no trial finished.
    """
    _, space = check_sweep(leaves, block)
    dataset = data.load(config.data)
    sources.initialize(assemble(config, dataset), config, dataset)
    out = runs.out_folder(config)
    folder = out / (config.name or f"sweep-{configuration.fingerprint(config)}")
    plain = configuration.to_dict(config) | {_SEARCH: block}
    check_places(config, out)
    if resume:
        runs.check_same(folder, "sweep", plain)
    with session(address, verbose=verbose, dashboard=config.cluster.workers > 1) as ray:
        driver = tune.DRIVER_CPUS if config.cluster.workers > 1 else 0.0
        room = slots(config, ray.cluster_resources(), driver)
        uri = open_store(config, out, say)
        with locked(folder), sending_rest(folder, uri, out, say):
            identity = runs.identify(folder, "sweep", plain, resume)
            study = Study(config.tune, space, folder, folder.name, config.seed)
            at_once = min(room, config.tune.concurrent or room)
            say(f"{folder.name}: {config.tune.trials} trials, {at_once} at a time, in {folder}")
            job = Job(identity.config, str(folder), identity.uid, folder.name, uri)
            with _parent(job, config) as journal:
                _search(tune.Sweep(config, leaves, study, folder, job), say)
                board = _leaderboard(config, study, folder, say)
                _note(journal, board, folder)
    return board


def _search(plan: tune.Sweep, say: Say) -> None:
    """Runs the trials that are left, with a line for each that finishes."""
    part, done = plan.config.tune, plan.study.finished()
    if done:
        say(f"resuming {plan.folder.name}: {done} of {part.trials} trials are finished")
    with progress_bar(part.trials, "trials", done) as bar:

        def listener(record: TrialRecord) -> None:
            bar.update(1)
            bar.write(trial_line(record, part.metric), file=sys.stderr)

        tune.run(plan, listener)


def trial_line(record: TrialRecord, metric: str) -> str:
    """Returns a finished trial as one line for a person."""
    state = {"COMPLETE": "finished", "PRUNED": "stopped early", "FAIL": "failed"}[record.state]
    value = "" if record.value is None else f"  {metric} {record.value:.4f}"
    why = f"  ({record.reason})" if record.reason else ""
    point = "  ".join(f"{key}={short(item)}" for key, item in record.point.items())
    return f"trial {record.number:3d}  {state} at epoch {record.epoch}{value}  {point}{why}"


def short(value: Any) -> str:
    """Returns a value of a point with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _leaderboard(config: Config, study: Study, folder: Path, say: Say) -> Leaderboard:
    """Ranks the finished trials and certifies the best ones on the test set."""
    records = study.records()
    sign = -1 if config.tune.mode == "max" else 1
    complete = [r for r in records if r.state == "COMPLETE" and r.value is not None]
    ranked = sorted(complete, key=lambda record: (sign * (record.value or 0.0), record.number))
    if not ranked:
        reasons = sorted({r.reason for r in records if r.reason})
        raise WorkError(f"{folder.name}: no trial trained to its end: {'; '.join(reasons)}")
    entries = []
    for place, record in enumerate(ranked):
        final = place < config.tune.finalists
        entries.append(_entry(config, record, folder, say if final else None))
    others = [r for r in records if r.state in ("PRUNED", "FAIL")]
    board = Leaderboard(
        sweep=folder.name,
        metric=config.tune.metric,
        mode=config.tune.mode,
        entries=tuple(entries),
        others=tuple(_entry(config, record, folder, None) for record in others),
        protocol=_protocol(config) if any(entry.log for entry in entries) else "",
        folder=folder,
        curve=_curve(entries, folder),
    )
    board.write()
    return board


def _curve(entries: Sequence[Entry], folder: Path) -> Path | None:
    """Draws the finalists' certified accuracy in one picture; returns its path."""
    logs = [entry.log for entry in entries if entry.log is not None]
    if not logs:
        return None
    labels = [f"{e.method} (trial {e.trial})" for e in entries if e.log is not None]
    return certificates.draw_curve(logs, folder / f"{NAME}.png", labels)


def _protocol(config: Config) -> str:
    """Returns in one line how the finalists were measured."""
    part = config.certify
    examples = "all" if part.examples is None else f"at most {part.examples}"
    return (
        f"{examples} {part.split} examples, skip {part.skip}; randomized smoothing with n0 ="
        f" {part.n0}, n = {part.n}, alpha = {part.alpha:g}; intervals stand in each trial's table."
    )


def _entry(config: Config, record: TrialRecord, folder: Path, say: Say | None) -> Entry:
    """Returns a trial's line; a finalist, for whom there is something to say, is certified."""
    trial = folder / runs.TRIALS / f"{record.number:04d}"
    method = runs.read_identity(trial).config["method"]["name"]
    entry = Entry(
        record.number, method, record.state, record.point, record.value, record.metrics,
        record.history, reason=record.reason,
    )  # fmt: skip
    if say is None:
        return entry
    plain = configuration.to_dict(config)
    sections = {key: plain[key] for key in ("certify", "evaluate", "cluster", "track", "out")}
    overrides = configuration.leaves_of(sections, "sweep")
    trained = runs.load(trial, overrides)
    say(f"certifying trial {record.number} on the {trained.config.certify.split} set")
    accuracy = clean_accuracy(trained.network, trained.dataset, trained.config.evaluate)
    found = shards.certify(trained, say=say)
    return replace(entry, accuracy=accuracy.accuracy, certified=found.metrics, log=found.log)


@contextmanager
def _parent(job: Job, config: Config) -> Iterator[track.Journal]:
    """The sweep's own run in MLflow: a journal in its folder, flushed while the trials run."""
    journal = track.Journal(Path(job.folder) / runs.JOURNAL)
    tuned = {key: str(value) for key, value in job.config["tune"].items()}
    journal.start(
        job.uid,
        config.track.experiment,
        job.name,
        tags={"raybust.kind": "sweep", "raybust.dataset": config.data.name},
        params={f"tune.{key}": value for key, value in tuned.items()} | params_of(job.config),
    )
    flusher = track.Flusher(journal.path, job.uri)
    try:
        yield journal
        journal.end("FINISHED")
    except WorkError:
        journal.end("FAILED")
        raise
    finally:
        flusher.close(5)
        journal.close()


def _note(journal: track.Journal, board: Leaderboard, folder: Path) -> None:
    for path in sorted(folder.glob(f"{NAME}.*")):
        journal.artifact(path)
    best = board.entries[0]
    values = {"best/" + board.metric: best.value} | (best.certified or {})
    journal.metrics({k: v for k, v in values.items() if v is not None}, step=0)

"""A sweep from start to leaderboard: trials, finalists at publication fidelity, the parent run.

The search sees only the validation part; after it, the finalists are certified and attacked on the
test set, once. The leaderboard shows both in separate columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raybust import config as configuration
from raybust import data, devices, identity, methods, models, track
from raybust.cluster import sweep
from raybust.cluster.runlog import Job, dataset_of, params_of
from raybust.cluster.session import nodes_of, session, slots
from raybust.config import Config, Leaf
from raybust.disk import checkpoint, runs
from raybust.disk.lock import locked
from raybust.errors import RequestError, WorkError
from raybust.reporting.sweep_page import publish
from raybust.search.board import SEARCH, make_board, write_space
from raybust.search.database import check_storage
from raybust.search.goals import scoring_difference
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import FINISHED, TrialRecord
from raybust.search.space import Point, Space
from raybust.search.study import POINT, Study
from raybust.stages import finalists
from raybust.stages.bars import Echo
from raybust.stages.checks import check_class_names, check_finalists, check_sweep, device_before
from raybust.stages.live import Table
from raybust.stages.progress import note_growth, print_data
from raybust.stages.registration import describe_sweep, register
from raybust.stages.space_on_disk import check_space, largest_network
from raybust.stages.tracking import open_store, sending_rest
from raybust.trained import changed_function, check_function
from raybust.training import initial
from raybust.training.objective import assemble, code_of_training

_EARLY = 5
"""Complete trials after which a warning names constraints that none meets."""


def tune(
    config: Config,
    leaves: Sequence[Leaf],
    block: dict[str, Any],
    *,
    address: str | None,
    resume: bool,
    verbose: bool,
    echo: Echo,
) -> Leaderboard:
    """Runs or resumes a sweep; returns its leaderboard.

    Args:
        config: the sweep's own configuration.
        leaves: what it was composed from.
        block: the block `search`.
        address: of a Ray cluster; None for the embedded one.
        resume: False sets an earlier sweep of that name aside.
        verbose: show Ray's messages.
        echo: prints a line.

    Raises:
        RequestError: the request is invalid; nothing was started.
        WorkError: no trial finished, or no finalist could be measured.
    """
    _, space = check_sweep(leaves, block, address=address)
    dataset = data.load(config.data, runs.out_folder(config))
    images = dataset.shape, len(dataset.classes)
    check_finalists(config, *images, device=device_before(config, address))
    size = _check_networks(config, space, dataset, echo)
    out, plain = runs.out_folder(config), configuration.to_dict(config) | {SEARCH: block}
    folder = out / (config.name or f"sweep-{runs.fixed_digits(plain)}")
    inputs = initial.inputs_digest(config, dataset.digest)
    check_storage(config)
    if resume:
        _check_earlier(folder, plain, inputs, dataset)
    earlier, driver = _earlier_study(config, space, out), sweep.driver_cpus(config)
    track.engage()
    with session(address, verbose=verbose, dashboard=driver > 0) as ray:
        room = slots(config, nodes := nodes_of(ray), driver)
        check_finalists(config, *images, device=devices.of_tasks(nodes.gpus(config)))
        uri = open_store(config, out, echo)
        with locked(folder), sending_rest(folder, uri, out, echo):
            own = runs.identify(folder, "sweep", plain, resume, inputs)
            write_space(folder, plain)
            study = Study(config, space, folder, own.uid, _first_points(config, leaves, space))
            _warm_start(study, earlier, config, dataset, echo)
            print_data(config, dataset, echo)
            at_once = min(room, config.tune.concurrent or room)
            check_space(config, size, at_once, folder)
            echo(f"{folder.name}: {config.tune.trials} trials, {at_once} at a time, in {folder}")
            note_growth(config, ray, echo)
            job = Job(plain, str(folder), own.uid, folder.name, inputs=inputs)
            with _parent(job, config, uri) as journal:
                plan = sweep.Sweep(config, leaves, study, folder, job, size, _codes(dataset))
                _search(plan, uri, echo)
                board = _publish(journal, config, _leaderboard(config, study, folder, echo))
                _check_measured(board)
    return board


def _check_networks(config: Config, space: Space, dataset: data.Dataset, echo: Echo) -> int:
    """Builds the sweep's network with its initial weights and prints what they are; returns the
    bytes of the largest one that it may train."""
    for line in initial.initialize(assemble(config, dataset), config, dataset):
        echo(line)
    return largest_network(config, space, dataset.shape, len(dataset.classes))


def _check_earlier(folder: Path, plain: dict[str, Any], inputs: str, dataset: data.Dataset) -> None:
    """Refuses to resume another sweep, or one whose networks no longer compute the same function:
    checks the code of one earlier trial of each network, and one newest checkpoint with weights."""
    runs.check_same(folder, "sweep", plain, inputs)
    check_class_names(folder, dataset)
    seen, asked = set[tuple[str, bool]](), json.dumps(plain)
    for trial in sorted((folder / runs.TRIALS).glob("*"), reverse=True):
        if (newest := checkpoint.newest(trial)) is None:
            continue
        manifest, whole = checkpoint.read_manifest(newest), checkpoint.has_weights(newest)
        earlier, name = manifest["config"], f"trial {runs.trial_of(trial)} of {folder.name}"
        if json.dumps(earlier["model"]["name"]) not in asked:
            models.check_installed(earlier["model"]["name"], name)
        config = configuration.from_dict(earlier, methods.get)
        network = _network(config)
        if {(network, whole), (network, True)} & seen:
            continue
        seen.add((network, whole))
        known, code = manifest.get("code"), code_of_training(config, dataset)
        if known and code and not identity.agree(known, code):
            raise changed_function(name, newest.name)
        if whole:
            check_function(assemble(config, dataset), newest, name)


def _network(config: Config) -> str:
    """Returns what a configuration's network is built from: the model and the front module."""
    return f"{config.model} {config.method.front()}"


def _codes(dataset: data.Dataset) -> Callable[[Config], tuple[float, ...]]:
    """Returns a function from a trial's configuration to the code of its network."""
    known: dict[str, tuple[float, ...]] = {}

    def code_of(config: Config) -> tuple[float, ...]:
        key = _network(config)
        if key not in known:
            try:
                known[key] = code_of_training(config, dataset)
            except RequestError:  # the trial says so
                known[key] = ()
        return known[key]

    return code_of


def _check_measured(board: Leaderboard) -> None:
    """Raises if there are finalists and none could be measured."""
    failed = [entry for entry in board.entries if entry.reason]
    if failed and not board.finalists:
        reasons = "; ".join(f"trial {entry.number}: {entry.reason}" for entry in failed)
        raise WorkError(
            f"{board.sweep}: no finalist could be measured ({reasons}); the leaderboard is written;"
            " rerun the same command to try again"
        )


def _first_points(config: Config, leaves: Sequence[Leaf], space: Space) -> list[Point]:
    """Returns the points to try first; none for a grid, which contains all points."""
    if config.tune.sampler == "grid":
        return []
    return [*space.first_points(leaves, methods.get), *config.tune.points]


def _warm_start(
    study: Study, other: Study | None, config: Config, dataset: data.Dataset, echo: Echo
) -> None:
    """Adds an earlier sweep's trials to a study; warns if its images, labels or splits differ."""
    name = str(config.tune.warm_start)
    if other is not None and (added := study.warm_start(other, name)):
        echo(f"warm start from {added} trials of {name}")
        identity = runs.read_identity(runs.find(name, runs.out_folder(config)))
        if identity.data and identity.data != dataset.digest:
            echo(f"warning: sweep {name} used other data")
        changed = scoring_difference(
            identity.config, configuration.to_dict(config), list(config.tune.directions())
        )
        if changed:
            echo(f"warning: sweep {name} measured its goals differently: {'; '.join(changed)}")


def _earlier_study(config: Config, space: Space, out: Path) -> Study | None:
    """Returns the record of the sweep `tune.warm_start`, if there is one.

    Raises:
        RequestError: the sweep does not exist, has other objectives, or no trial in this space.
    """
    name = config.tune.warm_start
    if name is None:
        return None
    folder = runs.find(name, out)
    identity = runs.read_identity(folder)
    if identity.kind != "sweep":
        raise RequestError(f"tune.warm_start: {name} is a {identity.kind}, expected a sweep")
    plain = {key: value for key, value in identity.config.items() if key != SEARCH}
    earlier = configuration.from_dict(plain, methods.get)
    theirs, ours = (list(part.tune.directions().items()) for part in (earlier, config))
    if theirs != ours:  # Optuna matches values by position
        raise RequestError(
            f"tune.warm_start: {name} optimizes {_goals(theirs)}, expected {_goals(ours)}, in that"
            " order"
        )
    found = Study(earlier, Space.parse(identity.config[SEARCH]), folder, identity.uid, reading=True)
    trials = found.study.get_trials(deepcopy=False)
    if not any(space.contains(trial.user_attrs.get(POINT, {})) for trial in trials):
        raise RequestError(
            f"tune.warm_start: none of the {len(trials)} trials of {name} lies in this space"
        )
    return found


def _goals(directions: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{mode} {metric}" for metric, mode in directions)


def _search(plan: sweep.Sweep, uri: str, echo: Echo) -> None:
    """Runs the remaining trials, printing a row for each that finishes."""
    records, watch = plan.study.records(), _ConstraintWatch(plan, echo)
    done = sum(record.state in FINISHED for record in records)
    if done:
        trials = plan.config.tune.trials
        echo(f"resuming {plan.folder.name}: {done} of {trials} trials are finished")
    with Table(plan.config, echo, records) as table:

        def listener(record: TrialRecord, running: int) -> None:
            if len(record.values) > 1 or record.failed:
                table.seed(record, running)
            else:
                table.row(record, running)
            watch.check()

        sweep.run_trials(plan, uri, listener)


def _leaderboard(config: Config, study: Study, folder: Path, echo: Echo) -> Leaderboard:
    """Ranks the trials and measures the finalists on the test set; returns the leaderboard."""
    board = make_board(config, study, folder, {})
    if not board.entries:
        publish(board)
        why = board.why_empty
        raise WorkError(f"{folder.name}: {why[0].lower()}{why[1:].rstrip('.')}")
    final = finalists.choose(board, config.tune.finalists)
    if not final and config.tune.finalists:
        echo(f"warning: no finalist: no trial meets {' and '.join(config.tune.constraints)}")
    measured = {entry.number: finalists.measure(config, entry, folder, echo) for entry in final}
    return make_board(
        config, study, folder, measured, finalists.protocol(config, list(measured.values()))
    )


class _ConstraintWatch:
    """Warns once, early, if no trial meets the constraints."""

    def __init__(self, plan: sweep.Sweep, echo: Echo) -> None:
        self._config, self._study, self._echo = plan.config, plan.study, echo
        self._warned = False

    def check(self) -> None:
        """Checks the trials that have trained to the end so far."""
        bounds = self._config.tune.bounds()
        if self._warned or not bounds:
            return
        complete = [r for r in self._study.records() if r.state == "COMPLETE"]
        if len(complete) < _EARLY:
            return
        self._warned = True  # or need not
        if any(record.feasible for record in complete):
            return
        for (key, sign, number), text in zip(bounds, self._config.tune.constraints, strict=True):
            values = [r.metrics[key] for r in complete if key in r.metrics]
            best = (max if sign == ">=" else min)(values) if values else None
            if best is None or (best < number if sign == ">=" else best > number):
                reached = "no trial reports it" if best is None else f"the best has {best:.4g}"
                self._echo(
                    f"warning: none of the first {len(complete)} trials meets {text}: {reached}"
                )


@contextmanager
def _parent(job: Job, config: Config, uri: str) -> Iterator[track.Journal]:
    """Opens the sweep's own MLflow run: a journal in its folder, flushed while trials run."""
    journal = track.Journal(Path(job.folder) / runs.JOURNAL)
    tuned = {key: str(value) for key, value in job.config["tune"].items()}
    journal.start(
        job.uid,
        config.track.experiment,
        job.name,
        tags={
            "raybust.kind": "sweep",
            "raybust.dataset": config.data.name,
            "raybust.folder": job.folder,
            **track.source_tags(track.environment()),
        },
        params={f"tune.{key}": value for key, value in tuned.items()} | params_of(job.config),
        dataset=dataset_of(job, config),
    )
    flusher = track.Following(journal.path, uri)
    try:
        yield journal
        journal.end("FINISHED")
    except Exception:
        journal.end("FAILED")
        raise
    finally:
        flusher.close(5)
        journal.close()


def _publish(journal: track.Journal, config: Config, board: Leaderboard) -> Leaderboard:
    """Publishes a leaderboard in the sweep's folder and run; registers the best finalist."""
    for path in publish(board):
        journal.artifact(path)
    best = board.finalists[0] if board.finalists else board.entries[0]
    values = {"best/" + board.metric: best.value}
    certified = attacked = {}
    if best.final:
        certified, attacked = best.certified or {}, best.attacked or {}
        values["best/test_accuracy"] = best.accuracy
    found = {k: v for k, v in (values | certified | attacked).items() if v is not None}
    journal.metrics(found, step=journal.attempt)  # so the last start's best is the newest step
    registered = register(board, config.tune.constraints) is not None
    journal.tags({track.NOTE: describe_sweep(board, registered=registered)})
    return board

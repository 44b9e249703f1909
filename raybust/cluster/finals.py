"""Finalists of a sweep: which trials they are, and what they reach on the test set.

Each is certified and attacked once, by the commands' own protocols, as Ray tasks over the whole
cluster; what an earlier start measured is not measured again. Stage tune.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raybust import config as configuration
from raybust import runs
from raybust.cluster import attacked, shards
from raybust.cluster.launch import Say
from raybust.config import Config
from raybust.errors import RequestError
from raybust.evaluate import clean_accuracy
from raybust.report.leaderboard import Entry, Leaderboard
from raybust.rowlog import OtherProtocolError
from raybust.trained import load_trained

_SECTIONS = ("certify", "evaluate", "cluster", "track", "out")


def choose(board: Leaderboard, most: int) -> list[Entry]:
    """Returns the finalists: the best trials that meet the constraints; of several objectives,
    those of the Pareto set, spread evenly over it by the first metric, both ends included. Where
    the set is smaller, the best others follow, one of each further method first.

    Args:
        board: the trials, ranked.
        most: how many there may be.
    """
    fit = [entry for entry in board.entries if entry.feasible is not False]
    if not board.objectives:
        return fit[:most]
    front = [entry for entry in fit if entry.trial in board.pareto]
    if len(front) <= most or most < 2:
        rest = [entry for entry in fit if entry not in front]
        best = {e.method: e for e in [*reversed(rest), *reversed(front)]}
        ahead = [entry for entry in rest if best[entry.method] is entry]
        rest = [*ahead, *(entry for entry in rest if entry not in ahead)]
        return [*front, *rest][:most]
    last = len(front) - 1
    return [front[round(i * last / (most - 1))] for i in range(most)]


def measure(config: Config, entry: Entry, folder: Path, say: Say) -> Entry:
    """Returns an entry with clean accuracy, certificates and attacks on the test set.

    Args:
        config: the sweep's; its sections `certify` and `evaluate` are the protocol.
        entry: the trial.
        folder: the sweep's.
        say: prints a line.
    """
    plain = configuration.to_dict(config)
    overrides = configuration.leaves_of({key: plain[key] for key in _SECTIONS}, "sweep")
    trained = load_trained(folder / runs.TRIALS / f"{entry.trial:04d}", overrides)
    say(f"certifying trial {entry.trial} on the {trained.config.certify.split} set")
    accuracy = clean_accuracy(trained.network, trained.dataset, trained.config.evaluate)
    attacks = None
    try:
        certified = shards.certify(trained, say=say)
        if config.evaluate.attacks:
            say(f"attacking trial {entry.trial} on the {trained.config.evaluate.split} set")
            attacks = attacked.evaluate(trained, say=say).metrics
    except OtherProtocolError as error:
        name = f"{folder.name}/{entry.trial}"
        raise RequestError(
            f"{error}: as `raybust certify {name} --no-resume`, or evaluate; in this command it"
            " would begin the search anew"
        ) from None
    return replace(
        entry,
        accuracy=accuracy.accuracy,
        examples=accuracy.examples,
        certified=certified.metrics,
        attacked=attacks,
        log=certified.log,
    )

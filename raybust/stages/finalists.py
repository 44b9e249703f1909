"""Chooses a sweep's finalists and measures them on the test set.

Each is certified and attacked once, under the same protocols as `certify` and `evaluate`, on the
whole cluster, and packaged as a model of MLflow; an earlier start's measurements are reused. What
the search bounded in Linf after each epoch is also bounded on the test set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raybust import config as configuration
from raybust.certification import BoundProtocol, Protocol
from raybust.config import Config
from raybust.disk import runs
from raybust.disk.rowlog import OtherProtocolError
from raybust.disk.strip import used_weights
from raybust.reporting import read_log
from raybust.reporting.seeds import SEED_FIGURES, over_seeds
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord
from raybust.stages import attacked, certified
from raybust.stages.bars import Echo
from raybust.stages.measurement import Options, bench
from raybust.stages.packaged import MODEL, package
from raybust.trained import load_trained

_LONGEST = 300
_SECTIONS = ("certify", "evaluate", "cluster", "track", "out")


def choose(board: Leaderboard, most: int) -> list[TrialRecord]:
    """Returns the finalists: the best feasible trials. With several objectives, trials spread
    evenly over the Pareto set by the first metric, both ends included; if the set is too small, the
    best other trials follow, first one of each method not yet included.

    Args:
        board: the ranked trials.
        most: maximum number of finalists.
    """
    fit = [entry for entry in board.entries if entry.feasible is not False]
    if not board.objectives:
        return fit[:most]
    front = [entry for entry in fit if entry.number in board.pareto]
    if len(front) <= most or most < 2:
        rest = [entry for entry in fit if entry not in front]
        best = {e.method: e for e in [*reversed(rest), *reversed(front)]}
        ahead = [entry for entry in rest if best[entry.method] is entry]
        rest = [*ahead, *(entry for entry in rest if entry not in ahead)]
        return [*front, *rest][:most]
    last = len(front) - 1
    return [front[round(i * last / (most - 1))] for i in range(most)]


def measure(config: Config, entry: TrialRecord, folder: Path, echo: Echo) -> TrialRecord:
    """Returns an entry with clean accuracy, certificates and attacks on the test set: of each seed,
    and their means. If one of these fails, the entry has the reason and the results so far.

    Args:
        config: the sweep's; sections `certify` and `evaluate` set the protocol.
        entry: the trial.
        folder: the sweep's.
        echo: prints a line.
    """
    seed, before = 0, entry
    try:
        by_seed = []
        for seed in entry.seeds:
            one: dict[str, Any] = {}
            for found in _figures(config, entry, folder, seed, echo):
                one |= found
                if not seed:
                    entry = replace(entry, **found)
            by_seed.append({key: one[key] for key in SEED_FIGURES if key in one})
        if len(by_seed) > 1:
            entry = replace(entry, **over_seeds(by_seed), by_seed=tuple(by_seed))
    except OtherProtocolError as error:
        name = f"{folder.name}/{runs.trial_name(entry.number, seed)}"
        reason = (
            f"{error}; use `raybust certify {name} --no-resume` (or evaluate) to measure it again,"
            " because --no-resume with this command restarts the search"
        )
    except Exception as error:  # the other finalists are measured regardless
        reason = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
    else:
        return replace(entry, reason=None)
    if seed:  # figures of some seeds are not those of the trial
        entry = before
    name = f"trial {entry.number}" + f", seed {seed}," * bool(seed)
    echo(f"warning: {name} could not be measured: {reason}")
    return replace(entry, reason=reason)


def _figures(
    config: Config, entry: TrialRecord, folder: Path, seed: int, echo: Echo
) -> Iterator[dict[str, Any]]:
    """Yields the results of a finalist's seed, one measurement at a time."""
    name = f"trial {entry.number}" + f", seed {seed}" * (len(entry.seeds) > 1)
    plain = configuration.to_dict(config)
    overrides = configuration.leaves_of({key: plain[key] for key in _SECTIONS}, "sweep")
    trained = load_trained(runs.trial_folder(folder, entry.number, seed), overrides, trusted=True)
    for note in trained.notes:
        echo(note)
    echo(f"certifying {name} on the {trained.config.certify.split} set")
    with bench(trained, Options(echo)) as at:
        accuracy = attacked.clean(at, trained.network)
    yield {"accuracy": accuracy.accuracy, "examples": accuracy.examples}
    found = certified.certify(trained, Options(echo))
    yield {"certified": found.metrics, "log": found.log}
    if config.certified_linf_fast.every and config.certify.bound == "smoothing":
        fast = config.certified_linf_fast
        asked: dict[str, Any] = {"radius": None, "radii": fast.eps, "intent": "radii"}
        section = replace(trained.config.certify, bound=fast.bound, schedule="auto", **asked)
        trained = replace(trained, config=replace(trained.config, certify=section))
        proven = certified.certify(trained, Options(echo))
        yield {"certified": found.metrics | proven.metrics}
    if config.evaluate.attacks:
        echo(f"attacking {name} on the {trained.config.evaluate.split} set")
        yield {"attacked": attacked.evaluate(trained, Options(echo)).metrics}
    saved = used_weights(trained.folder, trained.name)
    package(trained, saved, trained.folder / MODEL)


def _how(config: Config, finalist: TrialRecord) -> str:
    """Returns how a finalist's certificates were made: noise or bounds, norm and early stopping by
    their header."""
    part = config.certify
    made = None if finalist.log is None else read_log(finalist.log).protocol
    wanted = ", ".join(f"{target:g}" for target in made.targets) if made else ""
    early = f"only to decide {wanted}, " * bool(wanted)
    if isinstance(made, BoundProtocol):
        return f"by {made.how}, {early}{made.cost}"
    what = f"{made.noise} noise, {made.norm} radii, " if isinstance(made, Protocol) else ""
    drawn = "drawn " * bool(early)
    return (
        f"by randomized smoothing with {what}{drawn}{early}n0 = {part.n0}, n = {part.n},"
        f" alpha = {part.alpha:g}"
    )


def protocol(config: Config, finalists: Sequence[TrialRecord]) -> str:
    """Describes in one line how the finalists were measured and on how many examples; "" for
    none."""
    measured = [record for record in finalists if record.accuracy is not None]
    if not measured:
        return ""
    part, attack, fast = config.certify, config.evaluate, config.certified_linf_fast
    one = measured[0]
    first = "all" if attack.examples is None else "the first"
    clean = f"{first} {one.examples} {attack.split} examples"
    rows = "" if one.log is None else f"{len(read_log(one.log))} "
    text = (
        f"clean accuracy of {clean}; certificates of {rows}{part.split} examples, skip {part.skip},"
        f" {_how(config, one)};"
    )
    if fast.every and part.bound == "smoothing":
        text += f" on the same examples {fast.bound} bounds of the network itself, linf, no alpha;"
    if attack.attacks:
        radii = ", ".join(f"{eps:.3g}" for eps in attack.eps)
        text += f" attacks on {clean}: {', '.join(attack.attacks)}, {attack.norm} <= {radii};"
    counts = [len(record.by_seed) for record in measured if record.by_seed]
    if counts:
        text += (
            f" means over {' or '.join(str(count) for count in sorted(set(counts)))} seeds, whose"
            " intervals are over seeds and images;"
        )
    return f"{text} each trial's tables show the intervals."

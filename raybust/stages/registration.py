"""Uploads the finalists of a sweep as models, and registers the best one with its certificates.

The search's ranking decides which is best, never the test set. The registration goes through a
journal in the trial's folder, so an unreachable server gets it later.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from raybust import config as configuration
from raybust import methods, track
from raybust.disk import checkpoint, runs
from raybust.reporting import acr, read_log
from raybust.reporting.columns import number, settings
from raybust.reporting.leaderboard import curve_of
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord
from raybust.stages.packaged import ABOUT, MODEL, files_of
from raybust.track import Journal
from raybust.training.objective import smoothing_sigma

REGISTERED = f"registered.{runs.JOURNAL}"
"""Journal of the registration, in the trial's folder."""


def register(board: Leaderboard, bounds: Sequence[str]) -> TrialRecord | None:
    """Queues the finalists' models for upload, and the winner's for registration under the sweep's
    name. Returns the winner, or None if there is none.

    Args:
        board: of a sweep whose finalists have been measured and packaged.
        bounds: the sweep's constraints.
    """
    best = board.winner
    for finalist in board.finalists:
        folder = runs.trial_folder(board.folder, finalist.number)
        model, identity = folder / MODEL, runs.read_identity(folder)
        if not model.is_dir():  # measured by raybust 0.1
            continue
        with Journal(folder / REGISTERED) as journal:
            journal.attach(identity.uid, identity.config["track"]["experiment"])
            if finalist is best:
                _register(journal, board, best, bounds)
                continue
            about = (model / ABOUT).read_text()
            if not journal.has_text(about, f"{MODEL}/{ABOUT}"):
                journal.files(files_of(model), MODEL)
                journal.text(about, f"{MODEL}/{ABOUT}")
    return best


def _register(
    journal: Journal, board: Leaderboard, best: TrialRecord, bounds: Sequence[str]
) -> None:
    folder, seeds = runs.trial_folder(board.folder, best.number), len(best.seeds)
    best = best.first_seed
    identity, model = runs.read_identity(folder), folder / MODEL
    digest = json.loads((model / ABOUT).read_text())["weights"]
    tags = {
        "raybust.sweep": board.sweep,
        "raybust.trial": best.number,
        "raybust.method": best.method,
        track.METRIC: board.metric,
        track.MODE: board.mode,
        track.BOUNDS: ", ".join(bounds),
        track.VALUE: best.value,
        track.DATA: identity.data.partition("+")[0],
        track.FIDELITY: f"{board.search} sigma: {_sigma(best, identity.config)}, mean over {seeds}"
        f" seed{'s' * (seeds != 1)}",
        "raybust.dataset": identity.config["data"]["name"],
        "raybust.clean_accuracy": best.accuracy,
        "raybust.clean_examples": best.examples,
        **certificate(best),
        **{f"raybust.{key}": value for key, value in (best.attacked or {}).items()
           if key.endswith(("/robust_accuracy", "/upper_bound")) or key == "attacked/flags"},
    }  # fmt: skip
    journal.register(
        board.sweep,
        files_of(model),
        folder=MODEL,
        digest=digest,
        description=describe(board, best, digest),
        tags=tags,
    )


def _sigma(best: TrialRecord, plain: dict[str, Any]) -> str:
    """Returns the noise of the search's certificates: that of the training where it is searched,
    as then sweeps compare whatever noise was best in each."""
    if "method.sigma" in best.point and plain["certify"]["sigma"] is None:
        return "searched"
    return f"{smoothing_sigma(configuration.from_dict(plain, methods.get)):g}"


def certificate(entry: TrialRecord) -> dict[str, object]:
    """Returns the summary of an entry's certificates as tags, with its protocol."""
    if entry.log is None:
        return {}
    log = read_log(entry.log)
    found, protocol = acr(log), log.protocol
    tags: dict[str, object] = {
        "raybust.acr": found.value,
        "raybust.acr_low": found.low,
        "raybust.acr_high": found.high,
        "raybust.examples": found.examples,
        "raybust.skip": found.skip,
    }
    if protocol is not None:
        if protocol.targets:
            tags["raybust.acr_understated"] = True
        keys = ("noise", "bound", "norm", "sigma", "n0", "n", "alpha", "split", "weights")
        own = vars(protocol)
        tags |= {f"raybust.{key}": own[key] for key in keys if key in own}
    return tags


def describe_sweep(board: Leaderboard, *, registered: bool) -> str:
    """Returns the description of a sweep's run in Markdown, with links for MLflow's pages.

    Args:
        board: the sweep.
        registered: whether its winner is a registered model.
    """
    best = board.winner or board.entries[0]
    lines = [
        f"{board.state} Best by {board.metric}: trial {best.number}, {best.method},"
        f" {settings(best.point)}: {number(best.value)} on the validation part."
    ]
    figures = best.certified or {}
    if best.by_seed and "certified/acr_low" in figures:
        mean, low, high = (figures[f"certified/acr{end}"] for end in ("", "_low", "_high"))
        lines.append(
            f"On the test set: ACR {mean:.4f} [{low:.4f}, {high:.4f}], mean of"
            f" {len(best.by_seed)} seeds."
        )
    elif best.log is not None:
        lines.append(f"On the test set: ACR {acr(read_log(best.log))}.")
    if registered:
        lines.append(
            f"Registered as a version of the model [{board.sweep}](#/models/{board.sweep}); the tag"
            " `raybust.model` names it. The alias `best` is that of the best version so far."
        )
    if (curve := curve_of(board)) is not None:
        lines.append(track.picture("certified accuracy of the finalists", curve.name))
    lines.append("Artifacts: `leaderboard.md`, `report.html`. Trials: child runs.")
    return "\n\n".join(lines)


def describe(board: Leaderboard, entry: TrialRecord, digest: str) -> str:
    """Returns the description of a registered version in Markdown.

    Args:
        board: the sweep.
        entry: the trial.
        digest: SHA-256 of the weights file.
    """
    several = len(entry.values) > 1
    means = f", the mean of {len(entry.values)} seeds, of which this is the first," * several
    lines = [
        f"Trial {entry.number} of sweep {board.sweep}: {entry.method}, {settings(entry.point)}.",
        f"Selected by {board.metric} {number(entry.value)}{means} on the validation part, not by"
        " the test set.",
    ]
    rank = [e.number for e in board.entries].index(entry.number)
    passed = [e.number for e in board.entries[:rank] if not e.final]
    if passed and entry.feasible is not False:
        trials = ", ".join(map(str, passed))
        lines.append(f"Ranked higher by the search, but not fully measured: trial {trials}.")
    if entry.log is not None:
        log = read_log(entry.log)
        made = log.protocol
        how = f" ({made.how}; {made.split} set)" if made else ""
        lines.append(f"Certificate{how}: ACR {acr(log)}.")
    if entry.accuracy is not None:
        lines.append(
            f"Clean accuracy of the network on {entry.examples} test examples:"
            f" {entry.accuracy:.4f}."
        )
    lines.append(f"SHA-256 of {checkpoint.WEIGHTS}: {digest}.")
    return "\n\n".join(lines)

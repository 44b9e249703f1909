"""Compares results with what their runs have now: is the function, are the images and the labels
of a result still those of its run? Used by `raybust report`.

A header records what made its rows. The network is rebuilt from the checkpoint that the run uses,
and the images are read again. What cannot be rebuilt, because its code or its data is not at hand,
is reported as not compared.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raybust import config as configuration
from raybust import data, identity, methods
from raybust.config import Leaf
from raybust.corruptions import contents
from raybust.disk import checkpoint, runs
from raybust.disk.files import is_aside, read_json
from raybust.errors import RequestError
from raybust.models import Fronted
from raybust.reporting.logs import read_log
from raybust.reporting.seeds import logs_of_seeds
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord
from raybust.stages import attacked
from raybust.trained import Trained, load_trained

_RECORDED = ("data", "labels", "weights", "outputs")


class Current:
    """Networks and data of runs as they are now; each is loaded once."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        """Remembers what the command line says about all runs.

        Args:
            leaves: of the command line; `data.path`, `data.root`, `corruptions.folder`, and
                `model.name`, which names code that may be imported, are used.
        """
        self._data = [leaf for leaf in leaves if leaf.key.startswith("data.")]
        folders = [leaf.value for leaf in leaves if leaf.key == "corruptions.folder"]
        self._published = str(folders[-1]) if folders else None
        self._named = {leaf.value for leaf in leaves if leaf.key == "model.name"}
        self._used: dict[Path, tuple[Path | None, str]] = {}
        self._loaded: dict[Path, Trained | str] = {}

    def with_notes(self, board: Leaderboard) -> Leaderboard:
        """Returns a leaderboard that names the finalists whose results are no longer current."""
        notes = [
            f"Trial {entry.number}: {note}." for entry in board.entries
            for note in self._notes(board, entry)
        ]  # fmt: skip
        known = runs.read_identity(board.folder)
        try:
            digest = self._data_of(known.config)
        except RequestError as error:
            notes.append(f"The data are not compared: {error}.")
        else:
            if known.data and known.data.partition("+")[0] != digest:
                notes.append(
                    "The images, labels or split of its data have changed since the sweep began."
                )
        return dataclasses.replace(board, notes=(*stale(board), *notes))

    def _data_of(self, plain: Mapping[str, Any]) -> str:
        """Returns the digest of a configuration's data as they are now."""
        leaves = configuration.leaves_of({"data": plain["data"]}, "sweep")
        return data.load(configuration.compose([*leaves, *self._data], methods.get).data).digest

    def changes(self, result: Path) -> list[str]:
        """Returns how a result's function, images and labels differ from those that its run has
        now, one phrase each; none for a result outside of a run, or one that cannot be compared.

        Args:
            result: its file with the header, for instance in OUT/NAME/certified.
        """
        (used, weights), header = self._checkpoint(result), _header(result)
        if used is None or not header:
            return []
        if weights and header.get("weights") not in (None, "", weights):
            return ["other weights"]
        trained = self._trained(result)
        if isinstance(trained, str):
            return []
        recorded = {key: header[key] for key in _RECORDED if header.get(key)}
        now = _record(trained, header, result.parent.name == attacked.FOLDER)
        found = identity.differences(recorded, {key: now[key] for key in recorded})
        return found or self._other_published(result, header, trained)

    def obstacle(self, result: Path) -> str | None:
        """Returns why a result cannot be compared with its run, or None."""
        if not (_run_of(result) / runs.IDENTITY).exists():
            return None
        if self._checkpoint(result)[0] is None:
            return f"{_run_of(result).name} has no checkpoint"
        trained = self._trained(result)
        if isinstance(trained, str):
            return trained
        if _header(result).get("folder") and self._published is None:
            return "give its corruptions.folder=... to compare its published images"
        return None

    def _other_published(
        self, result: Path, header: Mapping[str, Any], trained: Trained
    ) -> list[str]:
        """Returns how published corrupted images differ from those of a result."""
        if not header.get("folder") or self._published is None:
            return []
        settings = dataclasses.replace(
            trained.config.corruptions, folder=self._published, names=tuple(header["names"]),
            examples=header["examples"], split=header["split"],
        )  # fmt: skip
        part, classes = getattr(trained.dataset, header["split"]), trained.dataset.classes
        lines = result.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()[1:]
        for share in map(json.loads, lines):
            shard = share["share"], header["shares"]
            for name, digest in contents(part, settings, classes=classes, shard=shard):
                if share["images"].get(name) != digest:
                    return [f"other images or labels ({name})"]
        return []

    def _notes(self, board: Leaderboard, entry: TrialRecord) -> Iterator[str]:
        logs = [] if entry.log is None else logs_of_seeds(board.folder, entry)
        results = [log for log in logs if log.exists()]
        for seed, one in zip(entry.seeds, entry.by_seed or (vars(entry),), strict=False):
            if one.get("attacked") is None:
                continue
            folder = runs.trial_folder(board.folder, entry.number, seed)
            found = [p for p in _summaries(folder) if _agrees(read_json(p), one["attacked"])]
            if not found:
                yield "its results under attack are gone, or changed since the sweep measured them"
            results += found[:1]
        for path in results:
            if changed := self.changes(path):
                yield f"{path.name} is of {', '.join(changed)} than the trial has now"
        if results and (obstacle := self.obstacle(results[0])):
            yield f"its results are not compared with its network and data: {obstacle}"

    def _checkpoint(self, result: Path) -> tuple[Path | None, str]:
        """Returns the checkpoint that a result's run uses, None for a result outside of a run, and
        the digest of its weights, "" if they were not kept."""
        run = _run_of(result)
        if run not in self._used:
            used = checkpoint.used(run) if (run / runs.IDENTITY).exists() else None
            weights = ""
            if used is not None and checkpoint.has_weights(used):
                weights = identity.state_digest(checkpoint.read_weights(used))
            self._used[run] = used, weights
        return self._used[run]

    def _trained(self, result: Path) -> Trained | str:
        """Returns the network and data of a result's run, or why they cannot be had."""
        run = _run_of(result)
        if run not in self._loaded:
            config = runs.read_identity(run).config
            trusted = config["model"]["name"] in self._named
            try:
                self._loaded[run] = load_trained(run, self._data, trusted=trusted)
            except RequestError as error:
                self._loaded[run] = str(error)
        return self._loaded[run]


def stale(board: Leaderboard) -> list[str]:
    """Returns a sentence for each finalist, and each of its seeds, whose certificates have changed
    since the sweep measured them, or whose file of them was changed by hand."""
    found = []
    for entry in board.entries:
        if entry.log is None:
            continue
        logs = logs_of_seeds(board.folder, entry)
        for seed, log, one in zip(entry.seeds, logs, entry.by_seed or (vars(entry),), strict=False):
            figures = one.get("certified") or {}
            recorded = figures.get("certified/acr", figures.get("certified_linf/acr"))
            if recorded is None or (now := _changed(log, recorded)) is None:
                continue
            name = f"Trial {entry.number}" + f", seed {seed}" * bool(entry.by_seed)
            found.append(
                f"{name}: its certificates {now}, not {recorded:.4f} as when the sweep measured it;"
                " rerun `raybust tune` to measure it again."
            )
    return found


def _changed(path: Path, recorded: float) -> str | None:
    """Returns what certificates give now if it is not the recorded ACR, else None."""
    if not path.exists():
        return "are gone"
    log = read_log(path)
    value = float((log.radius * log.correct).mean())
    if math.isclose(recorded, value, rel_tol=1e-6, abs_tol=1e-9):
        return None
    return f"now give ACR {value:.4f}"


def changes_of(trained: Trained, result: Path) -> list[str]:
    """Returns how a result's function, images and labels differ from those of a network and its
    data, one phrase each.

    Args:
        trained: the network with its data.
        result: its file with the header, in a folder of certificates or attacks.
    """
    header = _header(result)
    recorded = {key: header[key] for key in _RECORDED if header.get(key)}
    if "weights" not in recorded:
        return ["an unproven origin"]
    if recorded["weights"] != identity.weights_digest(trained.network):
        return ["other weights"]
    now = _record(trained, header, result.parent.name == attacked.FOLDER)
    return identity.differences(recorded, {key: now[key] for key in recorded})


def _record(trained: Trained, header: Mapping[str, Any], attacks: bool) -> dict[str, Any]:
    """Returns what the header of a result would record now."""
    part, network = getattr(trained.dataset, header["split"]), trained.network
    bare = [network.network] if attacks and isinstance(network, Fronted) else []
    chosen = range(0, len(part), header.get("skip") or 1)[: header["examples"]]
    return identity.record([network, *bare], part, chosen, gradients=attacks)


def _summaries(folder: Path) -> list[Path]:
    """Returns the files of a run's evaluations under attack."""
    found = sorted((folder / attacked.FOLDER).glob("*.json"))
    return [path for path in found if not is_aside(path) and "points" in read_json(path)]


def _agrees(summary: Mapping[str, Any], found: Mapping[str, float]) -> bool:
    """Returns whether a finalist's metrics under attack are those of a summary."""
    norm, asked = summary["protocol"]["norm"], summary["protocol"]["eps"]
    stated = {"attacked/clean_accuracy": summary["clean"]}
    for point in summary["points"]:
        if point["eps"] in asked:
            stated[f"attacked/{norm}_{point['eps']:.6g}/robust_accuracy"] = point["robust"]
    return all(found.get(key) == value for key, value in stated.items())


def _header(result: Path) -> dict[str, Any]:
    """Returns a result's record of what made it; empty for somebody else's log."""
    if result.suffix == ".json":
        return read_json(result).get("protocol") or {}
    with result.open(encoding="utf-8", errors="replace") as file:
        line = file.readline()
    try:
        return identity.fields_of(line.removeprefix("# "))
    except ValueError:
        return {}


def _run_of(result: Path) -> Path:
    return result.parent.parent

"""Shared by the cluster tests: configurations, contents of a store, our processes."""

import collections
import json
import shutil
import sqlite3

import psutil

from raybust import config as configuration
from raybust import methods
from raybust.config import Leaf
from raybust.track.client import open_client

TINY = (
    "method.name=gaussian", "method.sigma=0.25", "model.width=4", "train.batch_size=128",
    "train.epochs=3", "train.lr=0.05", "certified_fast.examples=20", "certified_fast.n=100",
    "certify.examples=30", "certify.n=200", "certify.radii=[0,0.25,0.5]", "evaluate.attacks=[]",
)  # fmt: skip
ACTORS = ("ray::TrialActor", "ray::ResourceTrainable")
"""Titles of trial processes, between and during epochs."""

RESULTS = ("certified", "attacked", "corrupted")
"""Folders of results in a run."""

CLOCKS = ("train/seconds", "train/images_per_second", "train/waited", "validation/seconds")


def leaves(out, *settings, **values):
    """The configuration of a tiny run; values that are not text go by keyword."""
    given = configuration.leaves_of_arguments([*TINY, f"out={out}", *settings])
    return given + [Leaf(key.replace("__", "."), value, "test") for key, value in values.items()]


def config(out, *settings, **values):
    return configuration.compose(leaves(out, *settings, **values), methods.get)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def journal_metrics(folder):
    """Step to metrics without times; fails on duplicate points."""
    found = collections.defaultdict(dict)
    for entry in lines(folder / "journal.jsonl"):
        if entry["e"] == "metrics":
            for key, value in entry["values"].items():
                assert key not in found[entry["step"]], f"{key} at {entry['step']} is there twice"
                found[entry["step"]][key] = value
    return {
        step: {key: value for key, value in values.items() if key not in CLOCKS}
        for step, values in found.items()
    }


def uri(out):
    return f"sqlite:///{out / 'mlflow.db'}"


def runs_of(out):
    """The runs of the store by name; fails on duplicate names."""
    client = open_client(uri(out))
    found = client.search_runs([client.get_experiment_by_name("raybust").experiment_id])
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names), f"duplicate runs: {sorted(names)}"
    return dict(zip(names, found, strict=True))


def points_of(out, run):
    """(key, step) of each of a run's points in the store; fails on duplicates."""
    with sqlite3.connect(out / "mlflow.db") as connection:
        rows = connection.execute(
            "select key, step from metrics where run_uuid = ?", (run.info.run_id,)
        ).fetchall()
    assert len(set(rows)) == len(rows), "duplicate points"
    return set(rows)


def artifacts_of(out, run, folder=None):
    client = open_client(uri(out))
    return {item.path for item in client.list_artifacts(run.info.run_id, folder)}


def descendants(*titles, pid=None):
    """Live descendants of a process (default: this one) whose title begins with a text."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(titles):
                found.append(process)
        except psutil.Error:
            continue
    return found


def move_copy(run, place, *ignored):
    """Copies a run, as if it had been trained where the copy is."""
    shutil.copytree(run, place, ignore=shutil.ignore_patterns(*ignored))
    journal = place / "journal.jsonl"
    journal.write_text(journal.read_text().replace(json.dumps(str(run)), json.dumps(str(place))))

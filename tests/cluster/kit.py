"""What the cluster tests share: configurations, what is in a store, which processes are ours."""

import collections
import json
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
"""Titles of the processes of trials, between two epochs and in one."""

CLOCKS = ("train/seconds", "train/images_per_second", "validation/seconds")


def leaves(out, *settings, **values):
    """What a user of the tiny setting would have set; values by keyword for what is no text."""
    given = configuration.leaves_of_arguments([*TINY, f"out={out}", *settings])
    return given + [Leaf(key.replace("__", "."), value, "test") for key, value in values.items()]


def config(out, *settings, **values):
    return configuration.compose(leaves(out, *settings, **values), methods.get)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def journal_metrics(folder):
    """Step to metrics, times left out; a point that is there twice fails."""
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
    """The runs of the store, by name; a name that is there twice fails."""
    client = open_client(uri(out))
    found = client.search_runs([client.get_experiment_by_name("raybust").experiment_id])
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names), f"a run is there twice: {sorted(names)}"
    return dict(zip(names, found, strict=True))


def points_of(out, run):
    """(key, step) of every row that the store has of a run; one that is there twice fails."""
    with sqlite3.connect(out / "mlflow.db") as connection:
        rows = connection.execute(
            "select key, step from metrics where run_uuid = ?", (run.info.run_id,)
        ).fetchall()
    assert len(set(rows)) == len(rows), "points are there twice"
    return set(rows)


def artifacts_of(out, run, folder=None):
    client = open_client(uri(out))
    return {item.path for item in client.list_artifacts(run.info.run_id, folder)}


def descendants(*titles, pid=None):
    """Living processes under a process (this one if not given) whose title begins with a text."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(titles):
                found.append(process)
        except psutil.Error:
            continue
    return found

"""What a sweep costs beyond the training of its trials, in one process tree of this machine."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
from _figures import figure

from raybust.disk import checkpoint, runs

TRIALS, RUNS = 16, int(sys.argv[1]) if sys.argv[1:] else 3
SECONDS = 10
"""Of training a trial, from which its epochs follow on any machine."""
SPACE = "search: {train.lr: {float: [0.01, 0.1], log: true}}\n"
TRAINED = [
    "data.name=digits", "method.name=gaussian", "model.width=32", "tune.scheduler=none",
    "tune.finalists=0", "certified_fast.examples=50", "certified_fast.n=300", "train.batch_size=32",
]  # fmt: skip


def main() -> None:
    """Prints overhead of a sweep, seconds per trial on both paths, seconds to the first step."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "space.yaml").write_text(SPACE)
        command(root, "doctor")
        epochs = round(SECONDS / pace(root))
        factors, lengths, starts = [], [], []
        for run in range(RUNS):
            began = time.time()
            command(root, *sweep(f"long{run}", epochs, TRIALS))
            wall = time.time() - began
            trained = sum(spent(root, f"long{run}", n) for n in range(TRIALS))
            factors.append(wall / (trained / slots()))
            lengths.append(trained / TRIALS)
        name = f"sweep: wall time over training seconds per slot, {TRIALS} trials"
        figure(name, factors, "ratio", "<= 1.25")
        figure("sweep: seconds of training a trial", lengths, "s")
        for path, workers, trials, goal in (("one worker", 1, 6, "<= 1.5"), ("nested", 2, 3, "")):
            command(
                root,
                *sweep(path[:3], 2, trials),
                "tune.concurrent=1",
                "--workers",
                str(workers),
                "cluster.cpus_per_worker=0.5",
            )
            figure(
                f"sweep: seconds per trial beyond training, {path}",
                beyond(root, path[:3]),
                "s",
                goal,
            )
        for run in range(RUNS):
            began = time.time()
            command(root, "train", *TRAINED, "train.epochs=1", "--name", f"first{run}")
            starts.append(first_step(root / "runs" / f"first{run}") - began)
        figure("train: seconds from command to first training step", starts, "s")


def pace(root: Path) -> float:
    """Returns the seconds of training an epoch, two at a time, in processes that have trained."""
    epochs, warm = 4, range(slots(), 3 * slots())
    command(root, *sweep("pace", epochs, warm.stop))
    return sum(spent(root, "pace", number) for number in warm) / len(warm) / epochs


def sweep(name: str, epochs: int, trials: int) -> list[str]:
    """Returns the arguments of a sweep."""
    return [
        "tune",
        "space.yaml",
        *TRAINED,
        f"train.epochs={epochs}",
        f"tune.trials={trials}",
        "--name",
        name,
    ]


def command(root: Path, *arguments: str) -> None:
    """Runs raybust in a folder; its output is shown only where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "raybust", *arguments], cwd=root, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"raybust {' '.join(arguments)} failed:\n{done.stderr}")


def slots() -> int:
    """Returns the trials that run at a time: one a CPU."""
    return len(os.sched_getaffinity(0))


def metrics(root: Path, sweep_name: str, trial: int) -> dict[str, float]:
    """Returns the last metrics of a trial."""
    newest = checkpoint.newest(root / "runs" / sweep_name / runs.TRIALS / f"{trial:04d}")
    assert newest is not None
    return checkpoint.read_manifest(newest)["metrics"]


def spent(root: Path, sweep_name: str, trial: int) -> float:
    """Returns the seconds that a trial trained and validated."""
    found = metrics(root, sweep_name, trial)
    return found["train/seconds"] + found["validation/seconds"]


def beyond(root: Path, sweep_name: str) -> list[float]:
    """Returns for each trial after the first the seconds from the end of the one before it to its
    own end that it neither trained nor validated. The trials ran one at a time."""
    storage = f"sqlite:///{root / 'runs' / sweep_name / 'study.db'}"
    trials = optuna.load_study(study_name=sweep_name, storage=storage).get_trials()
    ends = [trial.datetime_complete for trial in trials]
    return [
        (after - before).total_seconds() - spent(root, sweep_name, number)
        for number, (before, after) in enumerate(itertools.pairwise(ends), 1)
        if before is not None and after is not None
    ]


def first_step(folder: Path) -> float:
    """Returns the time at which a run's first epoch began."""
    for line in (folder / runs.JOURNAL).read_text().splitlines():
        entry = json.loads(line)
        if entry["e"] == "metrics":
            took = entry["values"]["train/seconds"] + entry["values"]["validation/seconds"]
            return entry["t"] / 1000 - took
    raise RuntimeError(f"{folder} has no epoch")


if __name__ == "__main__":
    main()

"""What a sweep of many short trials costs: 100, 300 and 1,000 trials of one epoch on 256 digits.

Two at a time, random search, no finalists. Prints seconds a trial, and for the largest sweep the
memory of the command, seconds of a report, bytes on disk, and epoch results a second that a study
takes. A cost that grows faster than linearly shows as more seconds a trial in the larger sweeps.

    python benchmarks/many_trials.py [TRIALS ...]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from _figures import figure

from raybust import config as configuration
from raybust import methods
from raybust.disk import runs
from raybust.search.space import Space
from raybust.search.study import Study

SIZES = [int(text) for text in sys.argv[1:]] or [100, 300, 1000]
SPACE = "search: {train.lr: {float: [0.01, 0.1], log: true}}\n"
SETTINGS = (
    "data.name=digits", "data.limit=256", "model.width=8", "method.name=standard",
    "train.epochs=1", "train.batch_size=64", "certified_fast.every=0",
    "tune.metric=validation/accuracy", "tune.scheduler=none", "tune.sampler=random",
    "tune.finalists=0", "tune.concurrent=2",
)  # fmt: skip
RESULTS = 2000


def watched(root: Path, *words: str) -> tuple[float, float]:
    """Runs a command; returns its seconds and the largest memory of its own process in GiB."""
    command = [sys.executable, "-m", "raybust", *words]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    largest = 0
    while process.poll() is None:
        try:
            largest = max(largest, psutil.Process(process.pid).memory_info().rss)
        except psutil.Error:
            break
        time.sleep(0.5)
    if process.wait():
        raise SystemExit(f"{' '.join(words)}: exit code {process.returncode}")
    return time.perf_counter() - began, largest / 2**30


def results(root: Path) -> float:
    """Returns the epoch results a second that a study on disk takes."""
    leaves = configuration.leaves_of_arguments([*SETTINGS, "name=direct", f"out={root}"])
    config = configuration.compose(leaves, methods.get)
    block = {"train.lr": {"float": [0.01, 0.1]}}
    folder = root / "direct"
    identity = runs.identify(folder, "sweep", configuration.to_dict(config) | {"search": block})
    study = Study(config, Space.parse(block), folder, identity.uid)
    began = time.perf_counter()
    for _ in range(RESULTS // 20):
        number, _ = study.ask()
        for epoch in range(1, 21):
            study.report(number, epoch, 0.5, {"validation/accuracy": 0.5, "passes/forward": 1.0})
        study.complete(number)
    return RESULTS / (time.perf_counter() - began)


def main() -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "space.yaml").write_text(SPACE)
        for size in SIZES:
            name = f"many{size}"
            seconds, memory = watched(
                root, "tune", "space.yaml", *SETTINGS, f"tune.trials={size}", "--name", name
            )
            figure(f"{size} trials: seconds a trial, start and end included", [seconds / size], "s")
            figure(f"{size} trials: memory of the command", [memory], "GiB")
            told, _ = watched(root, "report", name)
            figure(f"{size} trials: seconds of `raybust report`", [told], "s")
            files = (path for path in (root / "runs" / name).rglob("*") if path.is_file())
            size_mb = sum(path.stat().st_size for path in files) / 2**20
            figure(f"{size} trials: disk", [size_mb], "MiB")
            page = (root / "runs" / name / "report.html").stat().st_size / 2**20
            figure(f"{size} trials: report.html", [page], "MiB")
        figure("epoch results a second of a study", [results(root)], "1/s", ">= 200")


if __name__ == "__main__":
    main()

"""How long commands take from the shell to their end, each in a process of its own.

Digits and defaults but for n. Prints one JSON line a figure.

    python benchmarks/startup.py [RUNS]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _figures import figure

RUNS = int(sys.argv[1]) if sys.argv[1:] else 5
TRAINED = ("train", "method.name=gaussian", "train.epochs=1")
MEASURED = ("certify.n=1000", "certify.examples=20", "evaluate.examples=20")
GOALS = {
    "--help": "<= 0.15",
    "methods": "<= 1",
    "tune quickstart --dry-run": "<= 1.2",
    "train, one epoch": "<= 8",
    "certify, 20 examples": "<= 7",
    "evaluate, 20 examples": "<= 7",
    "report of one run": "<= 2.5",
}


def seconds(root: Path, *arguments: str) -> float:
    """Returns how long a command takes."""
    command = [sys.executable, "-m", "raybust", *arguments]
    began = time.perf_counter()
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Prints the median of every command."""
    found: dict[str, list[float]] = {name: [] for name in GOALS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        seconds(root, *TRAINED, "--name", "first")  # also makes the store
        for run in range(RUNS):
            name = f"run{run}"
            for label, command in {
                "--help": ("--help",),
                "methods": ("methods",),
                "tune quickstart --dry-run": ("tune", "quickstart", "--dry-run"),
                "train, one epoch": (*TRAINED, "--name", name),
                "certify, 20 examples": ("certify", name, *MEASURED),
                "evaluate, 20 examples": ("evaluate", name, *MEASURED),
                "report of one run": ("report", name),
            }.items():
                found[label].append(seconds(root, *command))
    for label, values in found.items():
        figure(f"startup: {label}", values, "s", GOALS[label])


if __name__ == "__main__":
    main()

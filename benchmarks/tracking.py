"""What training pays for an MLflow server that is away: epochs against those with a server that
answers, each way of being away in turns with it, in one process."""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _figures import figure

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/track"))
from faulty import MODES, Faulty
from tracking import Server

from raybust import config as configuration
from raybust import data, methods
from raybust.cluster.runlog import Job, RunLog
from raybust.track import prepare
from raybust.track.client import open_client
from raybust.training.fit import fit

RUNS, EPOCHS = int(sys.argv[1]) if sys.argv[1:] else 7, 6
SETTINGS = [
    "method.name=gaussian", "method.sigma=0.25", "model.width=32", f"train.epochs={EPOCHS}",
    "certified_fast.examples=20", "certified_fast.n=100",
]  # fmt: skip


def main() -> None:
    """Prints the median epoch with a server that is away over that with one that answers."""
    torch.set_num_threads(1)
    config = configuration.compose(configuration.leaves_of_arguments(SETTINGS), methods.get)
    dataset = data.load(config.data)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        template = root / "template.db"
        open_client(f"sqlite:///{template}").search_experiments()
        (root / "server").mkdir()
        server = Server(root / "server", template)
        server.start()
        try:
            for mode in MODES:
                ratios = []
                for run in range(RUNS):
                    pair = {}
                    for away in (None, mode) if run % 2 else (mode, None):
                        name = f"{mode}-{run}-{away}"
                        pair[away] = epoch(config, dataset, server, root / name, away)
                    ratios.append(pair[mode] / pair[None])
                figure(f"tracking: epoch with a server {mode} over one that answers",
                       ratios, "ratio", "<= 1.05")  # fmt: skip
        finally:
            server.kill()


def epoch(config: Any, dataset: Any, server: Server, folder: Path, away: str | None) -> float:
    """Returns the median seconds of an epoch, its journal included; the first one is left out."""
    faulty = Faulty(server.port)
    try:
        prepare(faulty.uri, folder, config.track.experiment)
        faulty.mode = away
        job = Job(configuration.to_dict(config), str(folder), folder.name, folder.name)
        log, ends = RunLog(job, config, faulty.uri), []
        for progress in fit(config, dataset, torch.device("cpu")):
            log.epoch(progress)
            ends.append(time.perf_counter())
        log.close(0.1)
        return statistics.median(b - a for a, b in itertools.pairwise(ends))
    finally:
        faulty.stop()


if __name__ == "__main__":
    main()

"""Two one-thread workers against one: images per second of DDP training, examples per second of
certification. What is compared runs in turns, so that a busy machine meets both.

Training: each process is bound to a core of its own, and trains 64 images a step. Certification:
`raybust.stages.certified` in one open Ray session, with one task at a time and with two.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from _figures import figure, paired

from raybust import config as configuration
from raybust import methods
from raybust.data import load

RUNS = int(sys.argv[1]) if sys.argv[1:2] and len(sys.argv) == 2 else 5
STEPS, BATCH, EXAMPLES, DRAWS = 12, 64, 64, 1000


def main() -> None:
    """Prints both ratios."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ratios = []
        for run in range(RUNS):
            pair = {}
            for workers in (1, 2) if run % 2 else (2, 1):
                pair[workers] = training(workers, root / f"{run}-{workers}")
            ratios.append(pair[2] / pair[1])
        figure("scaling: DDP training, gaussian, resnet20, two workers over one",
               ratios, "ratio", ">= 1.7")  # fmt: skip
        one, two = certification(root)
        figure("scaling: certification, resnet20, two tasks over one at a time",
               [a / b for a, b in zip(one, two, strict=True)], "ratio", ">= 1.8")  # fmt: skip


def settings(folder: Path, workers: int) -> Any:
    """Returns configuration and data: random images in CIFAR-10's shape, `STEPS` a worker."""
    count = STEPS * BATCH * workers
    folder.mkdir(exist_ok=True)
    file, rng = folder / "images.npz", np.random.default_rng(0)
    if not file.exists():
        images = rng.integers(0, 256, (count * 10 // 8, 32, 32, 3), dtype=np.uint8)
        np.savez(file, x_train=images, y_train=np.arange(len(images)) % 10,
                 x_test=images[:EXAMPLES], y_test=np.arange(EXAMPLES) % 10)  # fmt: skip
    given = [
        "method.name=gaussian", "method.sigma=0.25", "model.name=resnet20", "data.name=npz",
        f"data.path={file}", f"data.limit={count}", f"train.batch_size={BATCH * workers}",
        "train.epochs=2", f"certify.n={DRAWS}", f"out={folder}",
    ]  # fmt: skip
    config = configuration.compose(configuration.leaves_of_arguments(given), methods.get)
    return config, load(config.data)


def training(workers: int, folder: Path) -> float:
    """Returns the images per second of so many processes."""
    settings(folder, workers)
    cores = sorted(os.sched_getaffinity(0))
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(workers), str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CORE": str(cores[rank % len(cores)])},
        )
        for rank in range(workers)
    ]
    rates = [float(process.communicate()[0].split()[-1]) for process in started]
    return min(rates)


def worker(rank: int, workers: int, folder: Path) -> None:
    """One process: prints the images per second of all of them in the second of two epochs."""
    os.sched_setaffinity(0, {int(os.environ["CORE"])})
    from raybust.training.loop import Trainer

    torch.set_num_threads(1)
    if workers > 1:
        store = f"file://{folder}/group"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=workers)
    config, dataset = settings(folder, workers)
    trainer = Trainer(config, dataset, torch.device("cpu"))
    trainer.train_epoch()
    before = trainer.metrics["train/seconds"]
    trainer.train_epoch()
    print(STEPS * BATCH * workers / (trainer.metrics["train/seconds"] - before))


def certification(root: Path) -> tuple[list[float], list[float]]:
    """Returns the seconds of certifications with one task at a time and with two."""
    from raybust.cluster.session import session
    from raybust.stages import certified
    from raybust.stages.measurement import Options
    from raybust.trained import Trained
    from raybust.training.objective import assemble

    torch.set_num_threads(1)
    config, dataset = settings(root / "certify", 1)
    config = replace(config, track=replace(config.track, uri=f"sqlite:///{root}/mlflow.db"))
    trained = Trained(
        root / "certify", config, dataset, assemble(config, dataset).eval(), 0.25, None
    )

    def certify(tasks: int) -> None:
        certified.certify(trained, Options(echo=lambda _: None, workers=tasks, resume=False))

    with session(None, verbose=False):
        return paired(lambda: certify(1), lambda: certify(2), RUNS)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        worker(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()

"""What a training step of each method asks of a GPU: kernels, reads by the host, graph breaks.

Counted, not timed, on the device that the tests pretend (`tests/device`), so any machine with a C++
compiler gives the same numbers. Reads and waiting copies stall the host until the GPU is done.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/device"))

import pretend
from loop import random_images

from raybust import config as configuration
from raybust import methods
from raybust.data import Dataset
from raybust.training.loop import Trainer

BATCH = 40


def trainer_of(method: str, dataset: Dataset, device: str) -> Trainer:
    """Returns the trainer of a method at its defaults, ResNet-20, ready for a step."""
    settings = (f"method.name={method}", "model.name=resnet20", f"train.batch_size={BATCH}")
    config = configuration.compose(configuration.leaves_of_arguments(settings), methods.get)
    made = Trainer(config, dataset, torch.device(device))
    made.objective.train()
    made.generator.manual_seed(1)
    return made


def graphs(method: str, dataset: Dataset) -> dict[str, int]:
    """Returns graph breaks of the compiled network in two steps, and graphs compiled later."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    trainer = trainer_of(method, dataset, "cpu")
    trainer.network.compile(backend="eager")
    batches = [*trainer.batches.epoch(0)] * 2
    for number, (images, labels) in enumerate(batches[:2]):
        trainer.step(images, labels, number / 4)
    breaks = sum(counters["graph_break"].values())
    early = counters["stats"]["unique_graphs"]
    for images, labels in batches[2:4]:
        trainer.step(images, labels, 0.75)
    return {
        "graph_breaks": breaks,
        "graphs": early,
        "recompiled": counters["stats"]["unique_graphs"] - early,
    }


def main() -> None:
    """Prints one JSON line per method, of its second step."""
    pretend.build()
    pretend.load()
    dataset = random_images(2 * BATCH)
    for method in methods.names():
        trainer = trainer_of(method, dataset, "pretend")
        batches = list(trainer.batches.epoch(0))
        for number, (images, labels) in enumerate(batches):
            with pretend.counted() as counts:
                trainer.step(images, labels, 0.5 + number / 4)
        record = {"kernels": counts.kernels, "reads": counts.reads, "writes": counts.writes}
        print(json.dumps({"method": method, **record, **graphs(method, dataset)}), flush=True)


if __name__ == "__main__":
    main()

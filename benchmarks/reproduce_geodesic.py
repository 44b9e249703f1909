"""Geodesic augmentation on scikit-learn's digits beside its controls, at equal passes: three seeds.

Each run gets as many forward and backward passes (images) as its base alone in `EPOCHS` epochs, not
as many epochs: a step with augmentation costs several. Certified accuracy for the base `gaussian`,
robust accuracy of the ensemble for the base `pgd`. Prints one Markdown table a base.

    python benchmarks/reproduce_geodesic.py [SEEDS]
"""

from __future__ import annotations

import sys

import torch
from reproduce_attacks import EPS, RADII, SIGMA, attacked, certified, interval
from torch import nn

from raybust import config as configuration
from raybust import data, methods
from raybust.data import Dataset
from raybust.train import Trainer

BASES = {
    "gaussian": (("name=gaussian", f"sigma={SIGMA}"), 100, certified),
    "pgd": (("name=pgd", f"eps={EPS[0]}", "steps=5"), 20, attacked),
}
HEADS = {
    "gaussian": ["ACR", *(f"r = {radius:g}" for radius in RADII)],
    "pgd": ["clean", *(f"eps {eps:g}" for eps in EPS)],
}
ARMS: dict[str, tuple[str, ...] | None] = {
    "base": None,
    "geodesic": (),
    "geodesic, no penalty": ("penalty=0",),
    "random pairing": ("pairing=random",),
    "k-mixup": ("pairing=kmixup",),
    "random location": ("location=random",),
}
SHARED = ("model.width=16", "train.batch_size=128")


def trainer(
    base: tuple[str, ...], arm: tuple[str, ...] | None, epochs: int, seed: int
) -> tuple[Trainer, Dataset]:
    """Returns a trainer of the base, or of the base with augmentation, for some epochs."""
    if arm is None:
        method = [f"method.{text}" for text in base]
    else:
        method = ["method.name=geodesic", "method.warmup=0", "method.ramp=0"]
        method += [f"method.base.{text}" for text in base] + [f"method.{text}" for text in arm]
    settings = [*SHARED, *method, f"train.epochs={epochs}", f"seed={seed}"]
    config = configuration.compose(configuration.leaves_of_arguments(settings), methods.get)
    dataset = data.load(config.data)
    return Trainer(config, dataset, torch.device("cpu")), dataset


def passes(one: Trainer) -> int:
    """Returns the images that went forward or backward so far."""
    counted = one.objective.network
    return counted.forward_passes + counted.backward_passes


def train(
    base: tuple[str, ...], arm: tuple[str, ...] | None, budget: int, seed: int
) -> tuple[nn.Module, Dataset, int]:
    """Returns the network at the end of its budget, its data, and the passes that it took."""
    probe, _ = trainer(base, arm, 1, seed)
    probe.train_epoch()
    one, dataset = trainer(base, arm, max(1, round(budget / passes(probe))), seed)
    while not one.done:
        failure = one.train_epoch()
        assert failure is None, failure
    return one.network.eval(), dataset, passes(one)


def main(arguments: list[str]) -> None:
    """Prints both tables."""
    torch.set_num_threads(1)
    seeds = range(int(arguments[0]) if arguments else 3)
    for name, (base, epochs, measure) in BASES.items():
        probe, _ = trainer(base, None, 1, 0)
        probe.train_epoch()
        budget = epochs * passes(probe)
        heads = ["passes", *HEADS[name]]
        print(f"\n| {name} | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}", flush=True)
        for label, arm in ARMS.items():
            found, taken = [], 0
            for seed in seeds:
                network, dataset, taken = train(base, arm, budget, seed)
                found.append(measure(network, dataset))
            cells = [interval(list(column)) for column in zip(*found, strict=True)]
            print(f"| {label} | {taken / 1e6:.2f} M | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

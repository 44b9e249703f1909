"""Training against attacks on scikit-learn's digits: three seeds, intervals, two Markdown tables.

The first asks what `pgd` and `trades` (Madry et al., 2018; Zhang et al., 2019) do to clean and
robust accuracy; the second what `smoothadv` (Salman et al., 2019) does to certificates beside
Gaussian training at the same sigma. About five minutes on one core.

    python benchmarks/reproduce_attacks.py [SEEDS]
"""

from __future__ import annotations

import statistics
import sys

import torch
from torch import nn

from raybust import config as configuration
from raybust import data, methods
from raybust.certification import fast_certificate
from raybust.config import Config
from raybust.config.assess import Evaluate, FastCertify
from raybust.data import Dataset
from raybust.evaluate import attack_examples, make_attack_protocol, summarize
from raybust.training.loop import Trainer

EPS = (0.1,)
ATTACKED = {
    "standard": (),
    "pgd, eps 0.1": ("method.name=pgd", "method.eps=0.1", "method.warmup=0.3"),
    "trades, beta 1": ("method.name=trades", "method.eps=0.1", "method.beta=1"),
    "trades, beta 6": ("method.name=trades", "method.eps=0.1", "method.beta=6"),
}
SIGMA, RADII = 0.5, (0.0, 0.25, 0.5, 0.75, 1.0)
CERTIFIED = {
    "gaussian": ("method.name=gaussian", f"method.sigma={SIGMA}"),
    "smoothadv, eps 0.5": (
        "method.name=smoothadv", f"method.sigma={SIGMA}", "method.eps=0.5", "method.samples=2",
    ),
    "smoothadv, eps 1": (
        "method.name=smoothadv", f"method.sigma={SIGMA}", "method.eps=1.0", "method.samples=2",
    ),
}  # fmt: skip
STUDENT = {1: 12.71, 2: 4.303, 4: 2.776}
"""97.5 % quantiles of Student's t by degrees of freedom."""


def train(settings: tuple[str, ...], seed: int) -> tuple[nn.Module, Dataset]:
    """Returns the network that some settings train, in eval mode, and its data."""
    shared = (
        "model.width=16", "train.epochs=30", "train.batch_size=64", "train.lr=0.05",
        "train.clip_norm=null", f"seed={seed}",
    )  # fmt: skip
    leaves = configuration.leaves_of_arguments([*shared, *settings])
    config: Config = configuration.compose(leaves, methods.get)
    dataset = data.load(config.data)
    trainer = Trainer(config, dataset, torch.device("cpu"))
    while not trainer.done:
        failure = trainer.train_epoch()
        assert failure is None, failure
    return trainer.network.eval(), dataset


def attacked(network: nn.Module, dataset: Dataset) -> list[float]:
    """Returns clean accuracy and the ensemble's at each eps, in per cent, on the test set."""
    protocol = make_attack_protocol(
        Evaluate(eps=EPS, queries=1000, shard=400), shape=dataset.shape, total=len(dataset.test),
        device="cpu", dataset="digits"
    )  # fmt: skip
    rows = []
    for at in protocol.shards():
        images, labels = dataset.test.fetch(list(at))
        rows += attack_examples(network, images, labels, list(at), protocol)
    summary = summarize(rows, protocol)
    for flag in summary.flags:
        print(f"distrust ({flag.name}): {flag.text}", file=sys.stderr)
    return [100 * value for value in (summary.clean, *(p.robust for p in summary.points[:-1]))]


def certified(network: nn.Module, dataset: Dataset) -> list[float]:
    """Returns the ACR and certified accuracy in per cent at each radius, on the test set."""
    images, labels = dataset.test.fetch(range(len(dataset.test)))
    config = FastCertify(examples=len(labels), n=1000, radii=RADII)
    found = fast_certificate(
        network, images, labels, dataset.test.indices, sigma=SIGMA, config=config, seed=0
    )
    accuracies = [found[f"certified_fast/accuracy_at/{radius:g}"] for radius in RADII]
    return [found["certified_fast/acr"], *(100 * value for value in accuracies)]


def interval(values: list[float]) -> str:
    """Returns mean and half the 95 % interval of Student's t over the seeds."""
    if len(values) < 2:
        return f"{values[0]:.3g}"
    half = STUDENT[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    digits = 3 if max(values) < 5 else 1
    return f"{statistics.mean(values):.{digits}f} +- {half:.{digits}f}"


def main(arguments: list[str]) -> None:
    """Prints both tables."""
    torch.set_num_threads(1)
    seeds = range(int(arguments[0]) if arguments else 3)
    plans = (
        (ATTACKED, attacked, ["clean", *(f"eps {eps:g}" for eps in EPS)]),
        (CERTIFIED, certified, ["ACR", *(f"r = {radius:g}" for radius in RADII)]),
    )
    for runs, measure, heads in plans:
        print(f"\n| method | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}", flush=True)
        for label, settings in runs.items():
            found = [measure(*train(settings, seed)) for seed in seeds]
            cells = [interval(list(column)) for column in zip(*found, strict=True)]
            print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

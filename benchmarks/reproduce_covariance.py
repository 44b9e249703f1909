"""Covariance propagation and its rivals at equal budgets of time: the tables of docs.

Every run trains the same network for the same CPU seconds of one thread (wall-clock on a core of
its own, whatever else the machine does), its schedule in shares of that budget, and is certified on
test images. Prints one JSON line a run, and with --table the Markdown of such lines. CIFAR-10 is
the subset in ../shared/data beside the checkout.

    python benchmarks/reproduce_covariance.py digits > digits.jsonl
    python benchmarks/reproduce_covariance.py --table digits.jsonl
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from raybust.certification import Protocol, Row, certify_examples
from raybust.config.schema import Data
from raybust.data import Batches, Dataset, load
from raybust.methods import Method
from raybust.methods.consistency import Consistency
from raybust.methods.covariance import Covariance
from raybust.methods.gaussian import Gaussian
from raybust.methods.macer import Macer
from raybust.models import Normalize, Normalized, cifar
from raybust.numerics.moments import SCREENING, Rules, screening_radii
from raybust.training.objective import Objective

CIFAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-subset.npz"
SEEDS = (0, 1, 2)


class Setting(NamedTuple):
    """One dataset's part of the comparison; `seconds` of training, `radii` of the table."""

    data: Data
    sigma: float
    seconds: float
    images: int
    draws: int
    radii: tuple[float, ...]
    rate: float = 0.05


SETTINGS = {
    "digits": Setting(Data(name="digits"), 0.5, 12.0, 180, 1000, (0.0, 0.5, 1.0, 1.25)),
    "cifar10": Setting(
        Data(name="npz", path=str(CIFAR), augment="crop_flip"),
        0.25, 30.0, 150, 500, (0.0, 0.25, 0.5),
    ),
}  # fmt: skip


def contestants(sigma: float) -> dict[str, Method]:
    """Returns the methods by name, at the defaults of their authors' smallest sigma."""
    return {
        "gaussian": Gaussian(sigma=sigma),
        "consistency": Consistency(sigma=sigma, weight=10.0 if sigma >= 0.5 else 20.0),
        "macer": Macer(sigma=sigma, weight=4.0 if sigma >= 0.5 else 12.0),
        "covariance": Covariance(sigma=sigma),
        "covariance, E relu": Covariance(sigma=sigma, expected_relu=True),
        "covariance, exact": Covariance(sigma=sigma, mode="channel_exact"),
    }


def network_for(dataset: Dataset) -> nn.Module:
    """Returns an ordinary network with batch norm: pre-activation, three stages, eight layers."""
    classes = len(dataset.classes)
    body = cifar.PreActResNet(dataset.shape[0], classes, stem=16, widths=(16, 32, 64), blocks=1)
    return Normalized(Normalize(dataset.mean, dataset.std), body)


def train(method: Method, dataset: Dataset, setting: Setting, seed: int) -> tuple[nn.Module, dict]:
    """Trains within the budget; returns the network in eval mode, and what was spent."""
    torch.manual_seed(seed)
    network = network_for(dataset)
    objective = Objective(network, method)
    objective.prepare(*dataset.train.fetch(torch.arange(64)))
    optimizer = torch.optim.SGD(
        network.parameters(), lr=setting.rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    batches = Batches(
        dataset.train, batch_size=64, device="cpu", seed=seed, augment=dataset.augment
    )
    generator = torch.Generator().manual_seed(seed)
    began, epoch, steps, progress = time.process_time(), 0, 0, 0.0
    while progress < 1:
        for images, labels in batches.epoch(epoch):
            progress = (time.process_time() - began) / setting.seconds
            if progress >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = setting.rate * (1 - progress)
            optimizer.zero_grad()
            objective(images, labels, generator, progress).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            steps += 1
        epoch += 1
    passes = objective.network.forward_passes
    return network.eval(), {"steps": steps, "epochs": epoch, "passes": passes}


def certificates(network: nn.Module, images: Tensor, labels: Tensor, setting: Setting) -> list[Row]:
    channels, height, width = images.shape[1:]
    protocol = Protocol(
        sigma=setting.sigma, shape=(channels, height, width), n0=100, n=setting.draws
    )
    return list(certify_examples(network, images, labels, torch.arange(len(images)), protocol))


def result(name: str, method: Method, seed: int, at: str, dataset: Dataset) -> dict[str, Any]:
    """Returns the figures of one run, ready for JSON."""
    setting = SETTINGS[at]
    network, spent = train(method, dataset, setting, seed)
    chosen = torch.arange(0, len(dataset.test), len(dataset.test) // setting.images)
    images, labels = dataset.test.fetch(chosen[: setting.images])
    rows = sorted(certificates(network, images, labels, setting), key=lambda row: row.idx)
    certified = torch.tensor([row.radius * row.correct for row in rows])
    with torch.no_grad():
        clean = float((network(images).argmax(1) == labels).float().mean())
    found = {
        "data": at, "method": name, "seed": seed, **spent, "clean": clean,
        "acr": float(certified.mean()),
        "accuracy": {
            str(radius): mean(row.correct and row.radius >= radius for row in rows)
            for radius in setting.radii
        },
    }  # fmt: skip
    for label, rules in (("screening", SCREENING), ("paper", Rules())):
        radii, classes = screening_radii(network, images, setting.sigma, rules=rules)
        radii = radii * (classes == labels)
        found[f"{label} acr"] = float(radii.mean())
        found[f"{label} rank correlation"] = float(spearmanr(radii, certified).statistic)
    return found


def table(lines: list[dict[str, Any]]) -> str:
    """Returns Markdown: mean over the seeds, and the standard deviation of the ACR."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["method"]].append(line)
    radii = list(lines[0]["accuracy"])
    heads = ["method", "seeds", "passes", "clean", *radii, "ACR", "rank corr.", "paper's rule"]
    text = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name, runs in groups.items():
        shares = [[run["clean"], *run["accuracy"].values()] for run in runs]
        spread = stdev(run["acr"] for run in runs) if len(runs) > 1 else float("nan")
        text.append([
            name, str(len(runs)), f"{mean(run['passes'] for run in runs):,.0f}",
            *(f"{100 * mean(column):.1f}" for column in zip(*shares, strict=True)),
            f"{mean(run['acr'] for run in runs):.3f} +- {spread:.3f}",
            f"{mean(run['screening rank correlation'] for run in runs):.2f}",
            f"{mean(run['paper rank correlation'] for run in runs):.2f}",
        ])  # fmt: skip
    trials = [
        (label, float(spearmanr([run[f"{label} acr"] for run in lines],
                                [run["acr"] for run in lines]).statistic))
        for label in ("screening", "paper")
    ]  # fmt: skip
    rows = "".join(f"| {' | '.join(line)} |\n" for line in text)
    return rows + "".join(
        f"\nRank correlation over the {len(lines)} networks, {label} against ACR: {value:.2f}.\n"
        for label, value in trials
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="digits, cifar10, or with --table a file of JSON lines")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--methods", nargs="*", help="some of the contestants")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    given = parser.parse_args()
    if given.table:
        lines = Path(given.source).read_text().splitlines()
        print(table([json.loads(line) for line in lines]))
        return 0
    setting = SETTINGS[given.source]
    if setting.data.path and not Path(setting.data.path).exists():
        print(f"skipped: {setting.data.path} is not there", file=sys.stderr)
        return 0
    torch.set_num_threads(1)
    dataset = load(setting.data)
    every = contestants(setting.sigma)
    for seed in given.seeds:
        for name in given.methods or every:
            found = result(name, every[name], seed, given.source, dataset)
            print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Covariance propagation and its rivals at equal budgets: the tables of docs.

Every run trains the same network for the same CPU seconds of one thread, or the same number of
forward and backward passes for each training image, its schedule in shares of that budget, and is
certified on test images. Prints one JSON line a run, and with --table the Markdown of such lines.
--margins compares the variance of the margin, propagated and sampled, on networks trained with
noise. MNIST and the CIFAR-10 subset lie in ../shared/data beside the checkout.

    python benchmarks/reproduce_covariance.py mnist > mnist.jsonl
    python benchmarks/reproduce_covariance.py --table mnist.jsonl
    python benchmarks/reproduce_covariance.py mnist --margins small_cnn lenet resnet8
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from scipy.stats import t as student
from torch import Tensor, fx, nn

from raybust.certification import Protocol, Row, certify_examples
from raybust.config.inputs import Data, Model
from raybust.data import Batches, Dataset, load
from raybust.methods import Method
from raybust.methods.consistency import Consistency
from raybust.methods.covariance import Covariance
from raybust.methods.gaussian import Gaussian
from raybust.methods.macer import Macer
from raybust.models import Normalize, Normalized, build, cifar
from raybust.numerics.moments import (
    SCREENING,
    Rules,
    contenders,
    linear_score,
    propagate,
    screening_radii,
    trace,
)
from raybust.training.objective import Objective

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SEEDS = (0, 1, 2)


class Setting(NamedTuple):
    """One dataset's part of the comparison: what it trains, `seconds` of training or `passes`
    forward and backward for each training image, `radii` of the table."""

    data: Data
    sigma: float
    images: int
    draws: int
    radii: tuple[float, ...]
    network: str = "preact"
    seconds: float = math.inf
    passes: float = math.inf
    rate: float = 0.05
    arms: tuple[str, ...] = ()


SETTINGS = {
    "digits": Setting(
        Data(name="digits"), 0.25, 359, 1000, (0.0, 0.25, 0.5, 0.6), network="small_cnn",
        passes=60.0,
        arms=("gaussian", "margin, tuned", "covariance", "covariance, tuned",
              "covariance, E relu", "diagonal, tuned", "linear", "linear, tuned",
              "linear, radius", "linear, radius, tuned", "macer"),
    ),
    "cifar10": Setting(
        Data(name="npz", path=str(SHARED / "cifar10-subset.npz"), augment="crop_flip"),
        0.25, 150, 500, (0.0, 0.25, 0.5), seconds=30.0,
        arms=("gaussian", "consistency", "macer", "covariance"),
    ),
    "mnist": Setting(
        Data(name="npz", path=str(SHARED / "mnist.npz")),
        0.25, 200, 1000, (0.0, 0.25, 0.5, 0.6), network="lenet", passes=5.0,
        arms=("gaussian", "margin, tuned", "covariance", "covariance, tuned", "linear, tuned",
              "linear, radius, tuned", "diagonal, tuned", "macer"),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Margin(Covariance):
    """The control: the hinges with a standard deviation of 1 in place of the propagated one."""

    def setup(self, network: nn.Module, images: Tensor, targets: Tensor) -> None:
        """Needs nothing."""

    def _scored(
        self, network: nn.Module, inputs: Tensor, graph: fx.Graph | None, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = network(inputs)
        first, second = logits.gather(1, contenders(logits)).unbind(1)
        return logits, first - second


def contestants(sigma: float) -> dict[str, Method]:
    """Returns the methods by name, at the defaults of their authors' smallest sigma; "tuned": the
    weight of 0.02, 0.1, 0.5 and 2.5 with the greatest ACR on validation images of digits."""
    return {
        "gaussian": Gaussian(sigma=sigma),
        "consistency": Consistency(sigma=sigma, weight=10.0 if sigma >= 0.5 else 20.0),
        "macer": Macer(sigma=sigma, weight=4.0 if sigma >= 0.5 else 12.0),
        "covariance": Covariance(sigma=sigma),
        "covariance, E relu": Covariance(sigma=sigma, expected_relu=True),
        "covariance, exact": Covariance(sigma=sigma, mode="channel_exact"),
        "covariance, tuned": Covariance(sigma=sigma, weight=0.02),
        "diagonal": Covariance(sigma=sigma, mode="diagonal"),
        "diagonal, tuned": Covariance(sigma=sigma, mode="diagonal", weight=0.1),
        "linear": Covariance(sigma=sigma, mode="linear"),
        "linear, tuned": Covariance(sigma=sigma, mode="linear", weight=0.02),
        "linear, radius": Covariance(sigma=sigma, mode="linear", hinge="radius"),
        "linear, radius, tuned": Covariance(sigma=sigma, mode="linear", hinge="radius", weight=0.1),
        "margin": Margin(sigma=sigma),
        "margin, tuned": Margin(sigma=sigma, weight=0.02),
    }


def network_for(dataset: Dataset, name: str) -> nn.Module:
    """Returns a network by name; `preact`: an ordinary one with batch norm, pre-activation, three
    stages, eight layers."""
    classes = len(dataset.classes)
    if name != "preact":
        return build(
            Model(name=name, width=16),
            shape=dataset.shape, num_classes=classes, mean=dataset.mean, std=dataset.std,
        )  # fmt: skip
    body = cifar.PreActResNet(dataset.shape[0], classes, stem=16, widths=(16, 32, 64), blocks=1)
    return Normalized(Normalize(dataset.mean, dataset.std), body)


def train(method: Method, dataset: Dataset, setting: Setting, seed: int) -> tuple[nn.Module, dict]:
    """Trains within the budget; returns the network in eval mode, and what was spent."""
    torch.manual_seed(seed)
    network = network_for(dataset, setting.network)
    objective = Objective(network, method)
    objective.prepare(*dataset.train.fetch(torch.arange(64)))
    optimizer = torch.optim.SGD(
        network.parameters(), lr=setting.rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    batches = Batches(
        dataset.train, batch_size=64, device="cpu", seed=seed, augment=dataset.augment
    )
    generator = torch.Generator().manual_seed(seed)
    counted, most = objective.network, setting.passes * len(dataset.train)
    began, epoch, steps, progress = time.process_time(), 0, 0, 0.0
    while progress < 1:
        for images, labels in batches.epoch(epoch):
            spent = counted.forward_passes + counted.backward_passes
            progress = max((time.process_time() - began) / setting.seconds, spent / most)
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
    seconds = time.process_time() - began
    return network.eval(), {
        "steps": steps, "epochs": epoch, "passes": counted.forward_passes, "seconds": seconds,
    }  # fmt: skip


def certificates(network: nn.Module, images: Tensor, labels: Tensor, setting: Setting) -> list[Row]:
    channels, height, width = images.shape[1:]
    protocol = Protocol(
        sigma=setting.sigma, shape=(channels, height, width), n0=100, n=setting.draws
    )
    return list(certify_examples(network, images, labels, torch.arange(len(images)), protocol))


def result(
    name: str, method: Method, seed: int, setting: Setting, dataset: Dataset
) -> dict[str, Any]:
    """Returns the figures of one run, ready for JSON."""
    network, spent = train(method, dataset, setting, seed)
    chosen = torch.arange(0, len(dataset.test), len(dataset.test) // setting.images)
    images, labels = dataset.test.fetch(chosen[: setting.images])
    rows = sorted(certificates(network, images, labels, setting), key=lambda row: row.idx)
    certified = torch.tensor([row.radius * row.correct for row in rows])
    with torch.no_grad():
        clean = float((network(images).argmax(1) == labels).float().mean())
    found = {
        "method": name, "seed": seed, **spent, "clean": clean,
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
    """Returns Markdown: means over the seeds, of the ACR with half of a 95 % t interval, also of
    its difference from the first method, seed by seed."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["method"]].append(line)
    radii = list(lines[0]["accuracy"])
    heads = [
        "method",
        "seeds",
        "passes",
        "clean",
        *radii,
        "ACR",
        "difference",
        "rank corr.",
        "paper's rule",
    ]
    text = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name, runs in groups.items():
        shares = [[run["clean"], *run["accuracy"].values()] for run in runs]
        reference = {run["seed"]: run["acr"] for run in next(iter(groups.values()))}
        gains = [run["acr"] - reference.get(run["seed"], math.nan) for run in runs]
        text.append([
            name, str(len(runs)), f"{mean(run['passes'] for run in runs):,.0f}",
            *(f"{100 * mean(column):.1f}" for column in zip(*shares, strict=True)),
            interval([run["acr"] for run in runs]), interval(gains),
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


def interval(values: list[float]) -> str:
    """Returns mean and half of the 95 % t interval."""
    if len(values) < 2:
        return f"{mean(values):.3f}"
    half = student.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):.3f} +- {half:.3f}"


MARGINS = {
    "channel": Rules(expected_relu=False),
    "channel, r_max 0, ridge 0": Rules(expected_relu=False, r_max=0.0, ridge=0.0),
    "channel_exact": Rules(mode="channel_exact", expected_relu=False),
    "channel_exact, r_max 0": Rules(mode="channel_exact", expected_relu=False, r_max=0.0),
    "diagonal": Rules(mode="diagonal", expected_relu=False),
}


def margins(
    network: nn.Module, images: Tensor, sigma: float, draws: int = 1000
) -> Iterator[dict[str, Any]]:
    """Yields for each mode the ratios of the margin's variance, propagated from noisy images as in
    training, over the sampled one around the images."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        pair = contenders(network(images))
        truth = torch.stack([
            _gap(network(image + sigma * torch.randn(draws, *image.shape, generator=noise)),
                 one.expand(draws, 2)).var()
            for image, one in zip(images, pair, strict=True)
        ])  # fmt: skip
    given = images + sigma * torch.randn(images.shape, generator=noise)
    given.requires_grad_()
    logits = network(given)
    found = {"linear": (_gap(logits, pair) / linear_score(logits, pair, given, sigma)).square()}
    for name, rules in MARGINS.items():
        with torch.no_grad():
            moments = propagate(trace(network), network, given, sigma, rules, labels=pair[:, 0])
            q = moments.covariance
            found[name] = q[:, 0, 0] + q[:, 1, 1] - 2 * q[:, 0, 1]
    for name, variance in found.items():
        ratio = (variance.detach() / truth).log()
        yield {
            "mode": name, "ratio": float(ratio.mean().exp()),
            "within 2": float((ratio.abs() < math.log(2)).double().mean()),
            "rank correlation": float(spearmanr(variance.detach(), truth).statistic),
        }  # fmt: skip


def _gap(logits: Tensor, pair: Tensor) -> Tensor:
    first, second = logits.gather(1, pair).unbind(1)
    return first - second


def compare_margins(setting: Setting, dataset: Dataset, names: list[str], most: float) -> None:
    """Prints a JSON line for each network, untrained and trained with noise, and mode."""
    images, _ = dataset.test.fetch(torch.arange(0, len(dataset.test), len(dataset.test) // 24)[:24])
    for name in names:
        torch.manual_seed(0)
        network = network_for(dataset, name).eval()
        for line in margins(network, images, setting.sigma):
            print(json.dumps({"network": name, "steps": 0, **line}), flush=True)
        changed = setting._replace(network=name, passes=most, seconds=math.inf)
        network, spent = train(Gaussian(sigma=setting.sigma), dataset, changed, 0)
        for line in margins(network, images, setting.sigma):
            print(json.dumps({"network": name, **spent, **line}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="digits, cifar10, mnist, or with --table JSON lines")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--margins", nargs="*", help="networks whose margins to compare")
    parser.add_argument("--passes", type=float, help="another budget")
    parser.add_argument("--sigma", type=float, help="another noise")
    parser.add_argument("--methods", nargs="*", help="some of the contestants")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    given = parser.parse_args()
    if given.table:
        lines = Path(given.source).read_text().splitlines()
        print(table([json.loads(line) for line in lines]))
        return 0
    setting = SETTINGS[given.source]
    if given.passes:
        setting = setting._replace(passes=given.passes, seconds=math.inf)
    if given.sigma:
        setting = setting._replace(sigma=given.sigma)
    if setting.data.path and not Path(setting.data.path).exists():
        print(f"skipped: {setting.data.path} is not there", file=sys.stderr)
        return 0
    torch.set_num_threads(1)
    dataset = load(setting.data)
    if given.margins:
        compare_margins(setting, dataset, given.margins, given.passes or 2.0)
        return 0
    every = contestants(setting.sigma)
    for seed in given.seeds:
        for name in given.methods or setting.arms or every:
            found = result(name, every[name], seed, setting, dataset)
            print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Geodesic augmentation beside its controls at equal passes: digits and the CIFAR-10 subset.

Every run has the same budget of forward and backward passes of the network, so an arm whose step
costs more takes fewer steps. Clean accuracy, robust accuracy of the ensemble, and certificates by
smoothing for both bases: at the sigma of training for `gaussian`, at half of it for `pgd`, which
never saw noise. Balanced batches for all. One JSON line a run into FILE; runs that are in it are
left out, so a killed study goes on. CIFAR-10 is the subset in ../shared/data beside the checkout,
averaged down to 16 x 16 pixels to be affordable.

    python benchmarks/reproduce_geodesic.py study.jsonl [--data digits] [--seconds 240]
    python benchmarks/reproduce_geodesic.py study.jsonl --table
"""

import argparse
import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from reproduce_attacks import interval
from torch import nn

from raybust import config as configuration
from raybust import data, methods
from raybust.certification import fast_certificate
from raybust.config.assess import Evaluate, FastCertify
from raybust.data import Dataset, Split
from raybust.evaluate import attack_examples, make_attack_protocol, summarize
from raybust.training.loop import Trainer

CIFAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-subset.npz"
SEEDS = (0, 1, 2)
DATA = {
    "digits": {
        "settings": ("data.name=digits", "method.latent=32"),
        "passes": {"gaussian": 120, "pgd": 160},
        "sigma": 0.5,
        "steps": 3,
        "eps": 0.1,
        "certified": (180, 500),
        "attacked": 180,
    },
    "cifar10": {
        "settings": ("data.name=npz", f"data.path={CIFAR}", "data.augment=crop_flip",
                     "data.limit=4000", "train.batch_size=80", "train.optimizer=adamw",
                     "train.lr=0.003", "train.schedule=one_cycle"),
        "passes": {"gaussian": 120, "pgd": 180},
        "sigma": 0.25,
        "steps": 2,
        "eps": 2 / 255,
        "certified": (200, 500),
        "attacked": 200,
    },
}  # fmt: skip
RADII = (0.0, 0.25, 0.5)
SHARED = (
    "model.width=16", "train.batch_size=160", "train.batch_classes=10", "train.lr=0.05",
    "train.clip_norm=null",
)  # fmt: skip
GEODESIC = ("penalty=0", "warmup=0", "points=3")
ARMS: dict[str, tuple[str, ...] | None] = {
    "base": None,
    "geodesic": GEODESIC,
    "geodesic, penalty 0.1": ("warmup=0", "ramp=0", "points=3"),
    "random pairing": (*GEODESIC, "pairing=random"),
    "k-mixup": (*GEODESIC, "pairing=kmixup"),
    "random location": (*GEODESIC, "location=random"),
    "cost of features": (*GEODESIC, "space=feature_cost"),
    "latent": (*GEODESIC, "space=latent"),
    "reconstruction only": (*GEODESIC, "space=latent", "location=fixed", "at=0"),
}
LATENT = ("latent", "reconstruction only")
VARIANTS = ("geodesic, penalty 0.1", "cost of features")
"""Arms on digits alone: they are settings of the method and no controls."""


def train(at: str, base: str, arm: str, seed: int) -> tuple[Trainer, Dataset]:
    """Returns a trainer at the end of its budget, and its data."""
    plan = DATA[at]
    own = {"gaussian": ("name=gaussian", f"sigma={plan['sigma']}"),
           "pgd": ("name=pgd", f"eps={plan['eps']}", f"steps={plan['steps']}")}[base]  # fmt: skip
    settings = ARMS[arm]
    if settings is None:
        method = [f"method.{text}" for text in own]
        shared = [text for text in plan["settings"] if not text.startswith("method.")]
    else:
        method = ["method.name=geodesic", *(f"method.base.{text}" for text in own)]
        method += [f"method.{text}" for text in settings]
        shared = list(plan["settings"])
    leaves = [*SHARED, *shared, *method, f"train.passes={plan['passes'][base]}", f"seed={seed}"]
    config = configuration.compose(configuration.leaves_of_arguments(leaves), methods.get)
    dataset = data.load(config.data)
    if at == "cifar10":
        dataset = halved(dataset)
    trainer = Trainer(config, dataset, torch.device("cpu"))
    while not trainer.done:
        failure = trainer.train_epoch()
        assert failure is None, failure
    return trainer, dataset


def halved(dataset: Dataset) -> Dataset:
    """Returns CIFAR-10 at 16 x 16: each square of four pixels averaged."""

    def of(part: Split) -> Split:
        images = F.avg_pool2d(part.images.float(), 2).round().to(part.images.dtype)
        return Split(images, part.labels, part.indices, part.scale)

    parts = {name: of(getattr(dataset, name)) for name in ("train", "validation", "test")}
    return dataclasses.replace(dataset, shape=(3, 16, 16), **parts)


def robust(network: nn.Module, dataset: Dataset, at: str) -> dict[str, float]:
    """Returns the accuracies under the ensemble and under FGSM alone, the paper's attack on
    CIFAR-100 and Tiny ImageNet, at one Linf radius, in per cent."""
    protocol = make_attack_protocol(
        Evaluate(eps=(DATA[at]["eps"],),
                 attacks=("fgsm", "pgd", "apgd-ce", "apgd-t", "square"), steps=20, targets=3,
                 queries=200, shard=100, sanity=False, examples=DATA[at]["attacked"]),
        shape=dataset.shape, total=len(dataset.test), device="cpu", dataset=at,
    )  # fmt: skip
    spread = torch.linspace(0, len(dataset.test) - 1, protocol.examples).long()
    part = dataset.test.select(spread)
    rows = []
    for shard in protocol.shards():
        images, labels = part.fetch(list(shard))
        rows += attack_examples(network, images, labels, list(shard), protocol)
    summary = summarize(rows, protocol)
    for flag in summary.flags:
        print(f"distrust ({flag.name}): {flag.text}", file=sys.stderr)
    point = summary.points[0]
    return {"robust": 100 * point.robust, "FGSM": 100 * point.own["fgsm"]}


def certified(network: nn.Module, dataset: Dataset, at: str, base: str) -> dict[str, float]:
    """Returns the ACR and certified accuracy in per cent at each radius."""
    sigma = DATA[at]["sigma"] / (2 if base == "pgd" else 1)
    examples, n = DATA[at]["certified"]
    spread = torch.linspace(0, len(dataset.test) - 1, examples).long()
    images, labels = dataset.test.fetch(spread)
    found = fast_certificate(
        network, images, labels, dataset.test.indices[spread], sigma=sigma,
        config=FastCertify(examples=examples, n=n, radii=RADII), seed=0,
    )  # fmt: skip
    accuracies = {f"r = {r:g}": 100 * found[f"certified_fast/accuracy_at/{r:g}"] for r in RADII}
    return {"ACR": found["certified_fast/acr"], **accuracies}


def result(at: str, base: str, arm: str, seed: int) -> dict[str, Any]:
    """Returns the figures of one run, ready for JSON."""
    began = time.process_time()
    trainer, dataset = train(at, base, arm, seed)
    seconds = time.process_time() - began
    network = trainer.network.eval()
    images, labels = dataset.test.fetch(range(len(dataset.test)))
    with torch.no_grad():
        clean = float((network(images).argmax(1) == labels).float().mean())
    found = {"clean": 100 * clean, **robust(network, dataset, at)}
    found |= certified(network, dataset, at, base)
    coder = getattr(trainer.objective.prepared, "coder", None)
    if coder is not None:
        with torch.no_grad():
            right = network(coder(images)).argmax(1) == labels
        found["reconstructed"] = 100 * float(right.float().mean())
    spent = {"passes": trainer.metrics["passes/per_image"], "epochs": trainer.epoch}
    return {"data": at, "base": base, "arm": arm, "seed": seed, **spent,
            "seconds": round(seconds, 1), "figures": found}  # fmt: skip


def table(lines: list[dict[str, Any]]) -> str:
    """Returns Markdown: a table for each dataset and base, mean and half the 95 % t interval."""
    text = ""
    for at, base in itertools.product(DATA, ("gaussian", "pgd")):
        runs = [line for line in lines if (line["data"], line["base"]) == (at, base)]
        if not runs:
            continue
        heads = [key for key in runs[0]["figures"] if key != "reconstructed"]
        text += f"\n| {at}, {base} | seeds | passes | CPU s | {' | '.join(heads)} |\n"
        text += f"|{'---|' * (len(heads) + 4)}\n"
        for arm in ARMS:
            of = [line for line in runs if line["arm"] == arm]
            if not of:
                continue
            cells = [interval([line["figures"][head] for line in of]) for head in heads]
            spent = [f"{mean(line[key] for line in of):.0f}" for key in ("passes", "seconds")]
            text += f"| {' | '.join([arm, str(len(of)), *spent, *cells])} |\n"
        coded = [line for line in runs if "reconstructed" in line["figures"]]
        for arm in LATENT:
            values = [line["figures"]["reconstructed"] for line in coded if line["arm"] == arm]
            if values:
                text += f"\nClean accuracy on reconstructions, {arm}: {interval(values)}.\n"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--data", nargs="*", default=list(DATA))
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run later")
    given = parser.parse_args()
    lines = []
    if given.file.exists():
        lines = [json.loads(line) for line in given.file.read_text().splitlines()]
    if given.table:
        print(table(lines))
        return 0
    torch.set_num_threads(1)
    done = {(line["data"], line["base"], line["arm"], line["seed"]) for line in lines}
    began = time.perf_counter()
    for at, seed, base, arm in itertools.product(
        given.data, given.seeds, ("gaussian", "pgd"), given.arms
    ):
        if (at, base, arm, seed) in done or (at == "cifar10" and arm in VARIANTS):
            continue
        if at == "cifar10" and not CIFAR.exists():
            print(f"skipped: {CIFAR} is not there", file=sys.stderr)
            return 0
        if time.perf_counter() - began > given.seconds:
            return 3
        with given.file.open("a") as file:
            file.write(json.dumps(result(at, base, arm, seed)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The barycenter defense and adversarially optimized mixup at small size, three seeds.

CIFAR-10 is the subset in ../shared/data beside the checkout, 1,000 images averaged down to 16 x 16.
First, training at equal passes: `pgd` beside `adversarial_mixup` (Bunk et al., 2021), `mixup` with
it for a base, `interpolated_adversarial` and `avmixup`; robust accuracy on the test set at the
epoch that is best on the validation part, and at the last one. Then `beckman` (Subramanyam, 2023):
one epoch from the best checkpoint of `pgd`, by the three protocols. Checkpoints and figures stay in
OUT, so a killed run goes on.

    python benchmarks/reproduce_adversarial.py digits|cifar [OUT] [SEEDS]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from reproduce_attacks import interval
from reproduce_geodesic import halved
from torch import nn

from raybust import config as configuration
from raybust import data, methods
from raybust.config import Config
from raybust.config.assess import Evaluate
from raybust.data import Dataset
from raybust.disk import checkpoint
from raybust.evaluate import attack_examples, make_attack_protocol, summarize, views_of
from raybust.training.fit import fit
from raybust.training.objective import assemble

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-subset.npz"


class Setting(NamedTuple):
    """Settings of a data set, radius of all attacks, steps of those of training, budget in passes
    an image, test images."""

    settings: tuple[str, ...]
    eps: float
    steps: int
    passes: int
    examples: int


SETTINGS = {
    "digits": Setting(
        ("data.name=digits", "model.width=16", "train.batch_size=64"), 0.1, 5, 360, 359
    ),
    "cifar": Setting(
        ("data.name=npz", f"data.path={SHARED}", "data.augment=flip", "data.limit=1000",
         "model.width=16", "train.batch_size=50", "train.optimizer=adamw", "train.lr=0.002"),
        4 / 255, 3, 900, 500,
    ),
}  # fmt: skip
ARMS = {
    "pgd": ("name=pgd",),
    "adversarial_mixup": ("name=adversarial_mixup",),
    "mixup, base pgd": ("name=mixup", "base.name=pgd"),
    "interpolated_adversarial": ("name=interpolated_adversarial",),
    "avmixup": ("name=avmixup",),
}
TUNED = {
    "not fine-tuned": None,
    "fine-tuned, attack adaptive": "adaptive",
    "fine-tuned, attack oblivious": "oblivious",
}
METRIC = "attacked_fast/robust_accuracy"


def composed(setting: Setting, method: tuple[str, ...], seed: int, *more: str) -> Config:
    """Returns the configuration of a training; attacks of equal steps, whoever makes them."""
    inner = "method.base." if any("base.name" in text for text in method) else "method."
    attack = (f"{inner}eps={setting.eps}", f"{inner}steps={setting.steps}", f"{inner}warmup=0.3")
    chosen = [f"method.{text}" for text in method]
    fast = ["attacked_fast.every=1", f"attacked_fast.eps={setting.eps}", "certified_fast.every=0"]
    plain = ["train.lr=0.05", "train.clip_norm=null"]  # as published: no clipping
    settings = [*plain, *setting.settings, *chosen, *attack, *fast, f"seed={seed}", *more]
    return configuration.compose(configuration.leaves_of_arguments(settings), methods.get)


def train(config: Config, dataset: Dataset, folder: Path) -> None:
    """Trains; leaves the checkpoints best (on the validation part, under attack) and last."""
    best = -1.0
    for progress in fit(config, dataset, torch.device("cpu")):
        assert progress.failure is None, progress.failure
        if progress.metrics[METRIC] > best:
            best = progress.metrics[METRIC]
            checkpoint.commit(folder / "best", checkpoint.folder_name(1), progress.save, 1)
    checkpoint.commit(folder / "last", checkpoint.folder_name(1), progress.save, 1)


def network_of(config: Config, dataset: Dataset, run: Path) -> nn.Module:
    """Returns a trained network in eval mode; the bare one of `run` where the method has a front
    that was not trained."""
    network = assemble(config, dataset)
    stored = checkpoint.read_weights(checkpoint.folders(run)[0])
    target = network
    if stored.keys() != network.state_dict().keys():
        target = network.get_submodule("network")
    target.load_state_dict(stored)
    return network.eval()


def measured(
    network: nn.Module, dataset: Dataset, setting: Setting, file: Path
) -> dict[str, list[float]]:
    """Returns clean and robust accuracy in per cent by view, from `file` where it is there."""
    if file.exists():
        found: dict[str, list[float]] = json.loads(file.read_text())
        return found
    section = Evaluate(
        attacks=("pgd", "apgd-ce", "apgd-t", "square"), eps=(setting.eps,), steps=20, targets=2,
        queries=200, examples=setting.examples, sanity=False,
    )  # fmt: skip
    protocol = make_attack_protocol(
        section, shape=dataset.shape, total=len(dataset.test), device="cpu", dataset=dataset.name
    )  # fmt: skip
    found = {}
    for one in views_of(network, protocol):
        rows = []
        for at in one.shards():
            images, labels = dataset.test.fetch(list(at))
            rows += attack_examples(network, images, labels, list(at), one)
        summary = summarize(rows, one)
        found[one.view] = [100 * summary.clean, 100 * summary.points[0].robust]
        for flag in summary.flags:
            print(f"distrust, {file.stem}, {one.view} ({flag.name}): {flag.text}", file=sys.stderr)
    file.write_text(json.dumps(found))
    return found


def compare(name: str, setting: Setting, dataset: Dataset, out: Path, seeds: range) -> None:
    """Trains all arms at equal passes and prints their table."""
    heads = ["clean, best", "robust, best", "clean, last", "robust, last", "best - last",
             "robust, best, less pgd's", "robust, last, less pgd's"]  # fmt: skip
    print(f"\n| {name} | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}", flush=True)
    base: list[list[float]] = []
    for arm, method in ARMS.items():
        found = []
        for seed in seeds:
            config = composed(setting, method, seed, f"train.passes={setting.passes}")
            folder = out / f"{name}-{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
            if not (folder / "last").exists():
                train(config, dataset, folder)
            row = []
            for which in ("best", "last"):
                network = network_of(config, dataset, folder / which)
                row += measured(network, dataset, setting, folder / f"{which}.json")["adaptive"]
            found.append([*row, row[1] - row[3]])
        base = base or found
        rows = [[*a, a[1] - b[1], a[3] - b[3]] for a, b in zip(found, base, strict=True)]
        print(f"| {arm} | {' | '.join(map(interval, columns(rows)))} |", flush=True)


def defend(name: str, setting: Setting, dataset: Dataset, out: Path, seeds: range) -> None:
    """Fine-tunes pgd's best checkpoint behind the barycenter and prints the three protocols."""
    heads = [f"{view}: {what}" for view in ("alone", "oblivious", "adaptive")
             for what in ("clean", "robust")]  # fmt: skip
    print(f"\n| {name} | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}", flush=True)
    for arm, attack in TUNED.items():
        found = []
        for seed in seeds:
            best = out / f"{name}-pgd-{seed}" / "best"
            method = ("name=beckman", "base.name=pgd", f"init={checkpoint.newest(best)}",
                      f"attack={attack or 'adaptive'}")  # fmt: skip
            more = (
                "method.base.warmup=0",
                "train.epochs=1",
                "train.optimizer=sgd",
                "train.lr=0.01",
            )
            config = composed(setting, method, seed, *more, "train.schedule=one_cycle")
            folder = out / f"{name}-beckman-{attack}-{seed}"
            if attack is not None and not (folder / "last").exists():
                train(config, dataset, folder)
            folder.mkdir(exist_ok=True)
            network = network_of(config, dataset, best if attack is None else folder / "last")
            views = measured(network, dataset, setting, folder / "views.json")
            found.append([*views["alone"], *views["oblivious"], *views["adaptive"]])
        print(f"| {arm} | {' | '.join(map(interval, columns(found)))} |", flush=True)


def columns(rows: list[list[float]]) -> list[list[float]]:
    """Returns the columns of a table, a list of each."""
    return [list(column) for column in zip(*rows, strict=True)]


def main(arguments: list[str]) -> None:
    """Prints both tables of a data set."""
    torch.set_num_threads(1)
    name, out, seeds = [*arguments, *("digits", "runs/adversarial", "3")[len(arguments) :]]
    setting, folder = SETTINGS[name], Path(out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    dataset = data.load(composed(setting, ARMS["pgd"], 0).data)
    if name == "cifar":
        dataset = halved(dataset)
    for table in (compare, defend):
        table(name, setting, dataset, folder, range(int(seeds)))


if __name__ == "__main__":
    main(sys.argv[1:])

"""The barycenter defense and adversarially optimized mixup at small size.

CIFAR-10 is the subset in ../shared/data beside the checkout, `cifar` 1,000 images of it averaged
down to 16 x 16. First, training at equal passes: `pgd` beside `adversarial_mixup` (Bunk et al.,
2021), on digits also `mixup` with it for a base, `interpolated_adversarial` and `avmixup`; accuracy
on the test set under each attack at the epoch that is best on the validation part and at the last
one, and differences by the test of `raybust compare`. Then `beckman` (Subramanyam, 2023) by the
three protocols, with two views and with the released code's identical ones, without and with one
epoch of fine-tuning: on digits from the best checkpoint of `pgd`; `cnn_a_adv` is a network that
others trained, in ../shared/checkpoints. Checkpoints and figures stay in OUT, so a killed run goes
on.

    python benchmarks/reproduce_adversarial.py digits|cifar|cnn_a_adv [OUT] [SEEDS]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
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
from raybust.evaluate.table import NOTHING
from raybust.significance import compare_seeds, compare_shares, decide
from raybust.training.fit import fit
from raybust.training.initial import initialize
from raybust.training.objective import assemble

SHARED = Path(__file__).resolve().parents[2] / "shared"
CIFAR = SHARED / "data" / "cifar10-subset.npz"
GIVEN = SHARED / "checkpoints" / "cnn_a_adv" / "cifar_cnn_a_adv.model"


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
        ("data.name=npz", f"data.path={CIFAR}", "data.augment=flip", "data.limit=1000",
         "model.width=16", "train.batch_size=50", "train.optimizer=adamw", "train.lr=0.002"),
        4 / 255, 3, 900, 500,
    ),
    "cnn_a_adv": Setting(
        ("data.name=npz", f"data.path={CIFAR}", "data.augment=crop_flip",
         "model.name=compare_autoattack:cnn_a", "model.mean=[0.4914,0.4822,0.4465]",
         "model.std=[0.2023,0.1994,0.2010]", "train.batch_size=128", "train.clip_norm=1.0"),
        8 / 255, 10, 0, 500,
    ),
}  # fmt: skip
ARMS = {
    "pgd": ("name=pgd",),
    "adversarial_mixup": ("name=adversarial_mixup",),
    "mixup, base pgd": ("name=mixup", "base.name=pgd"),
    "interpolated_adversarial": ("name=interpolated_adversarial",),
    "avmixup": ("name=avmixup",),
}
COMPARED = {"digits": tuple(ARMS), "cifar": ("pgd", "adversarial_mixup"), "cnn_a_adv": ()}
FRONTS = {"two views": "spread=true", "identical views": "spread=false"}
DEFENDED = {"digits": ("identical views",), "cnn_a_adv": tuple(FRONTS)}
"""On digits all views are the image: four degrees move no pixel of 8 x 8."""
ATTACKS = ("fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "square")
ALL = "all"
METRIC = "attacked_fast/robust_accuracy"


def composed(setting: Setting, method: tuple[str, ...], seed: int, *more: str) -> Config:
    """Returns the configuration of a training; attacks of equal steps, whoever makes them."""
    inner = "method.base." if any("base.name" in text for text in method) else "method."
    attack = (f"{inner}eps={setting.eps}", f"{inner}steps={setting.steps}", f"{inner}warmup=0.3")
    chosen = [f"method.{text}" for text in method]
    fast = ["attacked_fast.every=1", f"attacked_fast.eps={setting.eps}", "certified_fast.every=0"]
    plain = ["train.lr=0.05", "train.clip_norm=null"]  # as published: no clipping
    settings = [*plain, *fast, *setting.settings, *chosen, *attack, f"seed={seed}", *more]
    return configuration.compose(configuration.leaves_of_arguments(settings), methods.get)


def train(config: Config, dataset: Dataset, folder: Path) -> None:
    """Trains; leaves the checkpoints best (on the validation part, under attack) and last."""
    best = -1.0
    for progress in fit(config, dataset, torch.device("cpu")):
        assert progress.failure is None, progress.failure
        if progress.metrics.get(METRIC, -1) > best:
            best = progress.metrics[METRIC]
            checkpoint.commit(folder / "best", checkpoint.folder_name(1), progress.save, 1)
    checkpoint.commit(folder / "last", checkpoint.folder_name(1), progress.save, 1)


def network_of(config: Config, dataset: Dataset, run: Path) -> nn.Module:
    """Returns a trained network in eval mode."""
    network = assemble(config, dataset)
    network.load_state_dict(checkpoint.read_weights(checkpoint.folders(run)[0]))
    return network.eval()


def measured(
    network: nn.Module, dataset: Dataset, setting: Setting, file: Path, *, every: bool
) -> dict[str, dict[str, list[int]]]:
    """Returns, by view, which images are right under nothing (`clean`), each attack, and `all` of
    them; from `file` where it is there. Unless `every`, some attacks see only unbroken images."""
    if file.exists():
        found: dict[str, dict[str, list[int]]] = json.loads(file.read_text())
        return found
    section = Evaluate(
        attacks=ATTACKS, eps=(setting.eps,), every=every, steps=20, targets=3, queries=200,
        examples=setting.examples, sanity=False,
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
        right = {name: [int(dict(row.attacks).get(name) == -1) for row in rows] for name in ATTACKS}
        right["clean"] = [int(row.predict == row.label) for row in rows]
        right[ALL] = [int(row.broken_by == NOTHING) for row in rows]
        found[one.view] = right
        for flag in summarize(rows, one).flags:
            print(f"distrust, {file.stem}, {one.view} ({flag.name}): {flag.text}", file=sys.stderr)
    file.write_text(json.dumps(found))
    return found


def compare(name: str, setting: Setting, dataset: Dataset, out: Path, seeds: range) -> None:
    """Trains the arms at equal passes; prints their accuracies and their differences to `pgd`."""
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    head(f"{name}: epoch", ["clean", *ATTACKS, ALL])
    for arm in COMPARED[name]:
        for which in ("best", "last"):
            views = []
            for seed in seeds:
                config = composed(setting, ARMS[arm], seed, f"train.passes={setting.passes}")
                folder = out / f"{name}-{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
                if not (folder / "last").exists():
                    train(config, dataset, folder)
                network, file = network_of(config, dataset, folder / which), folder / which
                views.append(
                    measured(network, dataset, setting, file.with_suffix(".json"), every=True)[
                        "adaptive"
                    ]
                )
            at = {key: np.array([view[key] for view in views], float) for key in views[0]}
            found[arm, which] = at
            line(f"{arm}, {which}", [shown(at[key]) for key in ("clean", *ATTACKS, ALL)])
    head(f"{name}: minus pgd", ["clean", *ATTACKS, ALL])
    for (arm, which), at in found.items():
        if arm != "pgd" and len(seeds) > 1:
            line(f"{arm}, {which}", differences(at, found["pgd", which]))


def differences(ours: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> list[str]:
    """Returns the difference in each column with its interval and the verdict after Holm."""
    keys = ("clean", *ATTACKS, ALL)
    pairs = [compare_seeds(ours[key], base[key], 0.01, paired=True) for key in keys]
    return [
        f"{100 * (p.a - p.b):+.1f} [{100 * p.low:.1f}, {100 * p.high:.1f}] {decision.verdict}"
        for p, decision in zip(pairs, decide(pairs), strict=True)
    ]


def defend(name: str, setting: Setting, dataset: Dataset, out: Path, seeds: range) -> None:
    """Puts the barycenter in front of an adversarially trained network, without and with one epoch
    of fine-tuning, and prints the three protocols."""
    heads = ["clean", "fgsm", "pgd", ALL]
    head(f"{name}: front, epochs, protocol", [*heads, f"{ALL}, minus alone"])
    found: dict[tuple[str, int, str], dict[str, np.ndarray]] = {}
    for front in DEFENDED[name]:
        for epochs in (0, 1):
            count = seeds if epochs or name == "digits" else seeds[:1]
            views = [defended(name, setting, dataset, out, (front, epochs, seed)) for seed in count]
            for view in views[0]:
                at = {key: np.array([one[view][key] for one in views], float) for key in heads}
                found[front, epochs, view] = at
                gain = difference(at[ALL], found[front, epochs, "alone"][ALL])
                line(f"{front}, {epochs}, {view}", [*(shown(at[key]) for key in heads), gain])
    if len(DEFENDED[name]) > 1:
        head(f"{name}: two views minus identical views", heads)
        for (front, epochs, view), at in found.items():
            if front == "two views" and view != "alone":
                other = found["identical views", epochs, view]
                line(f"{epochs}, {view}", [difference(at[key], other[key]) for key in heads])


def defended(
    name: str, setting: Setting, dataset: Dataset, out: Path, arm: tuple[str, int, int]
) -> dict[str, dict[str, list[int]]]:
    """Returns the figures of a front, epochs of fine-tuning and seed, by view."""
    front, epochs, seed = arm
    start = GIVEN
    if name == "digits":
        start = checkpoint.newest(out / f"digits-pgd-{seed}" / "best")
    method = ("name=beckman", "base.name=pgd", "base.warmup=0", FRONTS[front])
    more = ("train.epochs=1", "train.optimizer=sgd", "train.schedule=one_cycle", "train.lr=0.01")
    config = composed(setting, method, seed, *more, f"train.init={start}")
    folder = out / f"{name}-{FRONTS[front].replace('=', '-')}-{epochs}-{seed}"
    if epochs:
        if not (folder / "last").exists():
            train(config, dataset, folder)
        network = network_of(config, dataset, folder / "last")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        network = assemble(config, dataset)
        initialize(network, config, dataset)
    return measured(network.eval(), dataset, setting, folder / "views.json", every=False)


def difference(a: np.ndarray, b: np.ndarray) -> str:
    """Returns the difference in points with its interval: over images (Tango's) of one network
    each, over seeds and images (t) of several."""
    if len(a) == 1:
        pair = compare_shares(a[0].astype(bool), b[0].astype(bool), 0.01)
    else:
        pair = compare_seeds(a, b, 0.01, paired=True)
    return f"{100 * (pair.a - pair.b):+.1f} [{100 * pair.low:.1f}, {100 * pair.high:.1f}]"


def shown(right: np.ndarray) -> str:
    """Returns the accuracy in percent of networks on images (S, N) with half its interval."""
    return interval([100 * float(value) for value in right.mean(1)])


def head(first: str, others: list[str]) -> None:
    """Prints the head of a table."""
    print(f"\n| {first} | {' | '.join(others)} |\n|{'---|' * (len(others) + 1)}", flush=True)


def line(first: str, cells: list[str]) -> None:
    """Prints a row of a table."""
    print(f"| {first} | {' | '.join(cells)} |", flush=True)


def main(arguments: list[str]) -> None:
    """Prints the tables of a setting."""
    torch.set_num_threads(1)
    name, out, seeds = [*arguments, *("digits", "runs/adversarial", "5")[len(arguments) :]]
    setting, folder = SETTINGS[name], Path(out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    dataset = data.load(composed(setting, ARMS["pgd"], 0).data)
    if name == "cifar":
        dataset = halved(dataset)
    if COMPARED[name]:
        compare(name, setting, dataset, folder, range(int(seeds)))
    if name in DEFENDED:
        defend(name, setting, dataset, folder, range(int(seeds)))


if __name__ == "__main__":
    main(sys.argv[1:])

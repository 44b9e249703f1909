"""Does geodesic augmentation on top of a smoothing method beat it at large radii, as Zhu et
al. (2023) claim? MNIST, LeNet, sigma 1.0, learning rate 0.01, stored rounds that double the set.

Two comparisons: at equal epochs, the paper's, in which the arm takes twice as many steps' worth of
passes, and at equal forward and backward passes. Control: the same rounds with random pairs. One
JSON line a run into FILE, with the radius of every image; runs that are in it are left out, so a
killed study goes on. `--table` prints means, and the differences with 95 % intervals over seeds and
images, with Holm's adjustment over all differences of the table.

    python benchmarks/reproduce_geodesic_mnist.py study.jsonl --mnist mnist.npz [--seconds 500]
    python benchmarks/reproduce_geodesic_mnist.py study.jsonl --table

The whole of what the paper reports, for a larger machine (days on two cores): all 60,000 images, 90
epochs, all bases, all arms, n = 100,000:

    python benchmarks/reproduce_geodesic_mnist.py whole.jsonl --mnist mnist.npz --images 54000 \
        --epochs 90 --batch 128 --certified 10000 --draws 100000 \
        --bases gaussian smoothadv consistency \
        --arms base longer geodesic random pairs16 copies3 printed vae
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raybust import config as configuration
from raybust import data, devices, methods
from raybust.certification.engine import certify_examples
from raybust.certification.protocol import Protocol, default_batch
from raybust.significance.seeds import compare_seeds
from raybust.significance.verdicts import decide
from raybust.training.loop import Trainer

SIGMA = 1.0
RADII = (0.0, 0.5, 1.0, 1.5)
BASES = {
    "gaussian": ("name=gaussian",),
    "smoothadv": ("name=smoothadv", "eps=1.0", "steps=2", "samples=1"),
    "consistency": ("name=consistency",),
}
ROUNDS = ("refresh=5", "searched=16", "penalty=0", "warmup=0", "synthetic=base", "location=grid")
ARMS: dict[str, tuple[str, ...] | None] = {
    "base": None,
    "geodesic": ROUNDS,
    "random": (*ROUNDS, "pairing=random"),
    "longer": None,
    "pairs16": (*ROUNDS, "pair_images=16"),
    "copies3": (*ROUNDS, "copies=3"),
    "printed": (*ROUNDS, "penalty=5", "estimate=printed", "ramp=0"),
    "vae": (*ROUNDS, "space=latent", "latent=32", "beta=1", "pairing=sinkhorn"),
}
"""`longer` is the base with the passes of `geodesic` at the same seed."""
PAIRS = (
    ("geodesic", "base"), ("geodesic", "longer"), ("geodesic", "random"), ("longer", "base"),
    ("pairs16", "geodesic"), ("copies3", "geodesic"), ("printed", "geodesic"), ("vae", "geodesic"),
)  # fmt: skip


def result(
    given: argparse.Namespace, base: str, arm: str, seed: int, passes: float | None
) -> dict[str, Any]:
    """Returns the figures of one run, ready for JSON."""
    own = [*BASES[base], f"sigma={SIGMA}"]
    settings = ARMS[arm]
    if settings is None:
        method = [f"method.{text}" for text in own]
    else:
        method = ["method.name=geodesic", *(f"method.base.{text}" for text in own)]
        method += [f"method.{text}" for text in settings]
    budget = f"train.epochs={given.epochs}" if passes is None else f"train.passes={passes}"
    leaves = [
        "data.name=npz", f"data.path={given.mnist}", f"data.limit={given.images}",
        "model.name=lenet", f"train.batch_size={given.batch}", "train.lr=0.01",
        "certified_fast.every=0", budget, f"seed={seed}", *method,
    ]  # fmt: skip
    config = configuration.compose(configuration.leaves_of_arguments(leaves), methods.get)
    dataset = data.load(config.data)
    trainer = Trainer(config, dataset, torch.device("cpu"))
    began = time.process_time()
    while not trainer.done:
        failure = trainer.train_epoch()
        assert failure is None, failure
    seconds = time.process_time() - began
    network, test = trainer.network.eval(), dataset.test
    images, labels = test.fetch(range(len(test)))
    with torch.no_grad():
        clean = float((network(images).argmax(1) == labels).float().mean())
    chosen = torch.linspace(0, len(test) - 1, given.certified).long()
    protocol = Protocol(
        sigma=SIGMA, shape=dataset.shape, n0=50, n=given.draws, alpha=0.001, seed=0,
        batch=default_batch(dataset.shape, "cpu"), precision=devices.float32("cpu"), device="cpu",
    )  # fmt: skip
    rows = certify_examples(network, images[chosen], labels[chosen], test.indices[chosen], protocol)
    radii = [round(row.radius, 4) if row.correct else -1.0 for row in rows]
    return {
        "base": base, "arm": arm, "seed": seed, "passes": trainer.metrics["passes/per_image"],
        "epochs": trainer.epoch, "seconds": round(seconds, 1), "clean": 100 * clean, "radii": radii,
    }  # fmt: skip


def values(lines: list[dict[str, Any]], radius: float | None) -> np.ndarray:
    """Returns (seeds, images): radii of correct images, or whether they reach a radius, in %."""
    radii = np.array([line["radii"] for line in lines])
    return np.maximum(radii, 0) if radius is None else 100.0 * (radii >= radius)


def table(lines: list[dict[str, Any]]) -> str:
    """Returns Markdown: means of every arm, and the differences of `PAIRS`."""
    heads = ["ACR", *(f"r = {radius:g}" for radius in RADII)]
    text = f"| base | arm | seeds | passes | clean | {' | '.join(heads)} |\n"
    text += f"|{'---|' * (len(heads) + 5)}\n"
    runs = {(base, arm): [line for line in lines if (line["base"], line["arm"]) == (base, arm)]
            for base, arm in itertools.product(BASES, ARMS)}  # fmt: skip
    for (base, arm), of in runs.items():
        if of:
            cells = [f"{values(of, None).mean():.3f}"]
            cells += [f"{values(of, radius).mean():.1f}" for radius in RADII]
            spent = [f"{np.mean([line[key] for line in of]):.1f}" for key in ("passes", "clean")]
            text += f"| {' | '.join([base, arm, str(len(of)), *spent, *cells])} |\n"
    asked, names = [], []
    for base, (one, two) in itertools.product(BASES, PAIRS):
        both = [{line["seed"]: line for line in runs[base, arm]} for arm in (one, two)]
        seeds = sorted(both[0].keys() & both[1].keys())
        if len(seeds) < 2:
            continue
        for radius in (None, *RADII):
            a, b = (values([of[seed] for seed in seeds], radius) for of in both)
            margin = 0.02 if radius is None else 2.0
            asked.append(compare_seeds(a, b, margin, paired=True))
            names.append((base, f"{one} - {two}", "ACR" if radius is None else f"r = {radius:g}"))
    text += "\n| base | difference | at | value | 95 % interval | adjusted p | verdict |\n"
    text += f"|{'---|' * 7}\n"
    for name, one in zip(names, decide(asked), strict=True):
        digits = 3 if name[2] == "ACR" else 1
        low, high = one.found.low, one.found.high
        span = f"[{low:.{digits}f}, {high:.{digits}f}]"
        cells = [*name, f"{one.found.difference:+.{digits}f}", span, f"{one.adjusted:.2g}"]
        text += f"| {' | '.join([*cells, one.verdict])} |\n"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--mnist", type=Path, default=Path("mnist.npz"))
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--certified", type=int, default=250)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seeds", nargs="*", type=int, default=range(5))
    parser.add_argument("--bases", nargs="*", default=["gaussian", "consistency"])
    parser.add_argument("--arms", nargs="*", default=["geodesic", "base", "longer", "random"])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run later")
    given = parser.parse_args()
    lines = []
    if given.file.exists():
        lines = [json.loads(line) for line in given.file.read_text().splitlines()]
    if given.table:
        print(table(lines))
        return 0
    torch.set_num_threads(1)
    passes = {(line["base"], line["arm"], line["seed"]): line["passes"] for line in lines}
    began = time.perf_counter()
    order = [arm for arm in given.arms if arm != "longer"]
    order += [arm for arm in given.arms if arm == "longer"]  # it needs the passes of `geodesic`
    for base, seed, arm in itertools.product(given.bases, given.seeds, order):
        if (base, arm, seed) in passes:
            continue
        if time.perf_counter() - began > given.seconds:
            return 3
        budget = passes[base, "geodesic", seed] if arm == "longer" else None
        line = result(given, base, arm, seed, budget)
        passes[base, arm, seed] = line["passes"]
        with given.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Two epochs of robust training from a clean network against training from scratch, on MNIST.

For `gaussian` and `pgd`: two epochs from the weights of a clean network (`train.init`), two epochs
from scratch, and from scratch with as many forward and backward passes as the clean network and its
two epochs took together. All arms have the same learning rate. MNIST is in ../shared/data beside
the checkout. Checkpoints and figures stay in OUT, so a killed run goes on.

    python benchmarks/reproduce_starts.py [gaussian|pgd] [OUT] [SEEDS]
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import torch
from reproduce_attacks import interval
from torch import nn

from raybust import config as configuration
from raybust import data, methods
from raybust.certification import fast_certificate
from raybust.config import Config
from raybust.config.assess import Evaluate, FastCertify
from raybust.data import Dataset
from raybust.disk import checkpoint
from raybust.evaluate import attack_examples, make_attack_protocol, summarize
from raybust.training.fit import fit
from raybust.training.objective import assemble

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist.npz"
SIGMA, EPS = 0.5, 0.2
CLEAN = 20
"""Passes an image of the clean network: ten epochs."""
RATES = {"gaussian": 0.1, "pgd": 0.05}
ATTACKED, CERTIFIED, RADII = 300, 200, (0.0, 0.5)
METHODS = {
    "gaussian": ("method.name=gaussian", f"method.sigma={SIGMA}"),
    "pgd": ("method.name=pgd", f"method.eps={EPS}", "method.steps=5", "method.warmup=0.3"),
}
TUNING = {"gaussian": 4, "pgd": 24}
"""Passes an image of two epochs."""


def arms(method: str) -> dict[str, tuple[bool, int]]:
    """Returns whether each arm starts from the clean network, and its passes an image."""
    two = TUNING[method]
    return {
        "clean, then two epochs": (True, two),
        "scratch, two epochs": (False, two),
        "scratch, equal passes": (False, CLEAN + two),
    }


loaded = functools.cache(data.load)


def trained(settings: tuple[str, ...], seed: int, folder: Path) -> tuple[nn.Module, Dataset]:
    """Returns the network that some settings train, in eval mode, and its data; it stays in
    `folder`."""
    shared = (
        "data.name=npz", f"data.path={MNIST}", "data.limit=2000", "model.width=16",
        "train.batch_size=64", "certified_fast.every=0", f"seed={seed}",
    )  # fmt: skip
    leaves = configuration.leaves_of_arguments([*shared, *settings])
    config: Config = configuration.compose(leaves, methods.get)
    dataset = loaded(config.data)
    if not folder.exists():
        for progress in fit(config, dataset, torch.device("cpu")):
            assert progress.failure is None, progress.failure
        checkpoint.commit(folder, checkpoint.folder_name(1), progress.save, 1)
    network = assemble(config, dataset)
    network.load_state_dict(checkpoint.read_weights(checkpoint.newest(folder)))
    return network.eval(), dataset


def robust(network: nn.Module, dataset: Dataset) -> list[float]:
    """Returns robust and clean accuracy in percent on test images."""
    part = dataset.test
    protocol = make_attack_protocol(
        Evaluate(eps=(EPS,), attacks=("pgd", "apgd-ce", "apgd-t"), steps=20, targets=3,
                 sanity=False, examples=ATTACKED),
        shape=dataset.shape, total=len(part), device="cpu", dataset="mnist",
    )  # fmt: skip
    rows = []
    for at in protocol.shards():
        images, labels = part.fetch(list(at))
        rows += attack_examples(network, images, labels, list(at), protocol)
    summary = summarize(rows, protocol)
    return [100 * summary.points[0].robust, 100 * summary.clean]


def certified(network: nn.Module, dataset: Dataset) -> list[float]:
    """Returns the ACR, and certified accuracy in percent at each radius, on test images."""
    part = dataset.test
    images, labels = part.fetch(range(CERTIFIED))
    fast = FastCertify(examples=CERTIFIED, n=300, radii=RADII)
    found = fast_certificate(
        network, images, labels, part.indices[:CERTIFIED], sigma=SIGMA, config=fast, seed=0
    )
    radii = [100 * found[f"certified_fast/accuracy_at/{radius:g}"] for radius in RADII]
    return [found["certified_fast/acr"], *radii]


MEASURES = {"gaussian": certified, "pgd": robust}
HEADS = {"gaussian": ["ACR", *(f"r = {radius:g}" for radius in RADII)], "pgd": ["robust", "clean"]}


def start(seed: int, out: Path) -> Path:
    """Returns the folder of the clean network, which it trains where it is missing."""
    folder = out / f"clean-{seed}"
    trained((f"train.passes={CLEAN}", "train.lr=0.05"), seed, folder)
    return checkpoint.newest(folder)


def row(method: str, arm: str, seed: int, out: Path) -> list[float]:
    """Returns what an arm's network of one seed reaches on the test set."""
    (clean, passes), rate = arms(method)[arm], RATES[method]
    folder = out / f"{method}-{'clean' if clean else 'scratch'}-{passes}-{rate:g}-{seed}"
    settings = [*METHODS[method], f"train.passes={passes}", f"train.lr={rate}"]
    if clean:
        settings.append(f"train.init={start(seed, out)}")
    network, dataset = trained(tuple(settings), seed, folder)
    file = folder / "test.json"
    if not file.exists():
        file.write_text(json.dumps(MEASURES[method](network, dataset)))
    found: list[float] = json.loads(file.read_text())
    return found


def main(arguments: list[str]) -> None:
    """Prints the table of a method; each arm's difference is to the first, by seed."""
    torch.set_num_threads(1)
    method, folder, seeds = [*arguments, *("gaussian", "runs/starts", "5")[len(arguments) :]]
    out = Path(folder).absolute()
    out.mkdir(parents=True, exist_ok=True)
    heads = ["passes", *HEADS[method], "minus the first arm"]
    print(f"\n| {method} | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}", flush=True)
    first: list[list[float]] = []
    for arm, (clean, passes) in arms(method).items():
        found = [row(method, arm, seed, out) for seed in range(int(seeds))]
        first = first or found
        cells = [interval(list(column)) for column in zip(*found, strict=True)]
        gap = interval([one[0] - other[0] for one, other in zip(found, first, strict=True)])
        spent = f"{CLEAN} + {passes}" if clean else f"{passes}"
        print(f"| {arm} | {spent} | {' | '.join(cells)} | {gap} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

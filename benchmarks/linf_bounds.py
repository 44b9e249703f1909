"""What the bounds of the Linf methods prove on digits, and what they cost.

    python benchmarks/linf_bounds.py METHOD [SETTING ...]    # three seeds of a method
    python benchmarks/linf_bounds.py --attack METHOD [SETTING ...]   # one seed, attacked
    python benchmarks/linf_bounds.py --cost                   # time over that of plain passes

Test accuracy and the share proven by intervals, CROWN and either; attacked, also the accuracy left
by PGD of 200 steps and 20 restarts on up to 1,000 test and training images, which no proof may
exceed, image by image.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _figures import figure
from torch import Tensor, nn

from raybust import data, methods
from raybust.config import Config, compose, leaves_of_arguments
from raybust.numerics.attacks import ascend, attacked
from raybust.numerics.balls import Threat
from raybust.numerics.relaxation import certified_margin, trace
from raybust.training.fit import fit
from raybust.training.loop import Trainer

CPU = torch.device("cpu")
EPS, SEEDS, STEPS, RESTARTS, MOST = 0.1, 3, 200, 20, 1000
COMMON = (
    "model.width=16", "data.augment=none", "certified_fast.every=0",
    "train.optimizer=adamw", "train.lr=0.01", "train.epochs=40",
    f"method.eps={EPS}", "train.clip_norm=10",
)  # fmt: skip


def config_of(settings: list[str]) -> Config:
    """Returns the configuration of a run."""
    return compose(leaves_of_arguments([*COMMON, *settings]), methods.get)


def unbroken(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Returns which images (N,) PGD does not break."""
    left = network(images).argmax(1) == labels
    threat = Threat("linf", EPS)
    with attacked(network):
        for restart in range(RESTARTS):
            at = left.nonzero().flatten()
            if not len(at):
                break
            start = threat.sample(images[at], torch.Generator().manual_seed(restart))
            found = ascend(
                network, images[at], threat,
                lambda z, y=labels[at]: F.cross_entropy(z, y, reduction="sum"),
                start=start, steps=STEPS, step=EPS / 10,
            )  # fmt: skip
            left[at] &= network(found).argmax(1) == labels[at]
    return left


def measure(settings: list[str], attack: bool = False) -> dict[str, float]:
    """Trains one network and returns its shares of the test images, in percent."""
    config = config_of(settings)
    dataset = data.load(config.data)
    (*_, last) = fit(config, dataset, CPU)
    network = last.save.__self__.average.eval()  # type: ignore[attr-defined]
    images, labels = dataset.test.fetch(range(len(dataset.test)))
    if attack:
        more = dataset.train.fetch(range(MOST - len(images)))
        images, labels = torch.cat([images, more[0]]), torch.cat([labels, more[1]])
    graph = trace(network)
    proven = {
        bound: certified_margin(graph, network, images, labels, eps=EPS, bound=bound) > 0
        for bound in ("ibp", "crown", "best")
    }
    shares = {"accuracy": network(images).argmax(1) == labels, **proven}
    if attack:
        shares["attacked"] = unbroken(network, images, labels)
        shares["broken proofs"] = proven["best"] & ~shares["attacked"]
    found = {name: 100 * float(part.double().mean()) for name, part in shares.items()}
    return {**found, "passes": last.metrics["passes/per_image"]}


def of_method(settings: list[str]) -> None:
    """Prints the shares of three seeds."""
    found = []
    for seed in range(SEEDS):
        found.append(measure([*settings, f"seed={seed}"]))
        print(f"seed {seed}:", {k: round(v, 1) for k, v in found[-1].items()}, flush=True)
    for name in found[0]:
        figure(f"digits, Linf {EPS}, {' '.join(settings)}: {name}", [f[name] for f in found], "%")


def seconds(run: Callable[[], object]) -> float:
    """Returns the processor time of a call, which other work on the machine hardly changes."""
    began = time.process_time()
    run()
    return time.process_time() - began


def cost() -> None:
    """Prints times over that of plain passes, or of a step of `pgd`, interleaved."""
    torch.set_num_threads(1)
    config = config_of(["method.name=ibp"])
    dataset = data.load(config.data)
    network = Trainer(config, dataset, CPU).network.eval()
    images, labels = dataset.test.fetch(range(200))
    graph = trace(network)

    def bounds(bound: str) -> Callable[[], object]:
        return lambda: certified_margin(graph, network, images, labels, eps=EPS, bound=bound)  # type: ignore[arg-type]

    def plain() -> None:
        with torch.no_grad():
            network(images)

    runs = {"plain": plain, **{bound: bounds(bound) for bound in ("ibp", "crown")}}
    for name in ("pgd", "mtl_ibp", "ibp", "sabr", "crown_ibp"):
        own = ["method.steps=1"] if name in ("pgd", "mtl_ibp", "sabr") else []
        trainer = Trainer(config_of([f"method.name={name}", *own]), dataset, CPU)
        trainer.objective.train()
        runs[f"step of {name}"] = lambda t=trainer: t.step(images[:128], labels[:128], 0.4)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(12):
        for name, run in runs.items():
            found[name].append(seconds(run))
    for name in runs:
        over = "step of pgd" if name.startswith("step") else "plain"
        ratios = [a / b for a, b in zip(found[name][2:], found[over][2:], strict=True)]
        figure(f"{name} over {over}", [statistics.median(ratios)], "times")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["--cost"]:
        cost()
    elif sys.argv[1] == "--attack":
        print(measure([f"method.name={sys.argv[2]}", *sys.argv[3:]], attack=True))
    else:
        of_method([f"method.name={sys.argv[1]}", *sys.argv[2:]])

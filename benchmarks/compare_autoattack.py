"""raybust's ensemble beside pyautoattack's standard suite: same networks, images and radii.

The networks: two small CNNs that this script trains on MNIST (against Linf 0.3 and L2 1.5, at fixed
seeds; their checkpoints are kept in the folder given), and one that others trained on CIFAR-10
against Linf, in ../shared/checkpoints. Each is attacked in norms that it was and was not trained
against. One thread each, one after the other; seconds are of the processor. Prints a Markdown row
as each is done.

    python benchmarks/compare_autoattack.py FOLDER [IMAGES] [NETWORK:NORM:EPS ...]
"""

from __future__ import annotations

import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raybust import config as configuration
from raybust import data, methods
from raybust.config.assess import Evaluate
from raybust.evaluate import attack_examples, make_attack_protocol, summarize
from raybust.evaluate.autoattack import standard_attack, standard_version
from raybust.models import load_weights
from raybust.models.normalize import Normalize, Normalized
from raybust.numerics.balls import Threat
from raybust.training.fit import fit
from raybust.training.objective import assemble

SHARED = Path(__file__).resolve().parents[2] / "shared"
SHARD = 100
SETTINGS = (
    "mnist_linf:linf:0.3", "mnist_linf:l2:1.5", "mnist_linf:l1:10",
    "mnist_l2:linf:0.1", "mnist_l2:l2:1.5", "mnist_l2:l1:10",
    "cnn_a_adv:linf:2/255", "cnn_a_adv:l2:1/2", "cnn_a_adv:l1:8",
)  # fmt: skip
TRAINED = {
    "mnist_linf": (
        "data.limit=20000", "method.norm=linf", "method.eps=0.3", "method.steps=20",
        "method.step=0.03", "method.warmup=0.25", "train.epochs=10", "train.lr=0.002",
        "train.weight_decay=0.0", "train.warmup=0.05", "train.batch_size=64",
    ),
    "mnist_l2": (
        "data.limit=10000", "method.norm=l2", "method.eps=1.5", "method.steps=7",
        "method.warmup=0.5", "train.epochs=6", "train.lr=0.001", "train.warmup=0.1",
    ),
}  # fmt: skip


def mnist(name: str, home: Path) -> tuple[nn.Module, Path]:
    """Returns a small CNN trained on MNIST against one norm, and where its images are."""
    path = SHARED / "data" / "mnist.npz"
    leaves = configuration.leaves_of_arguments([
        "data.name=npz", f"data.path={path}", "model.width=16", "method.name=pgd",
        "train.optimizer=adamw", "certified_fast.every=0", *TRAINED[name],
    ])  # fmt: skip
    config = configuration.compose(leaves, methods.get)
    folder = home / name
    dataset = data.load(config.data)
    if not folder.exists():
        for progress in fit(config, dataset, torch.device("cpu")):
            if progress.done:
                folder.mkdir(parents=True)
                progress.save(folder)
    network = assemble(config, dataset)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network, path


def cnn_a() -> nn.Module:
    """Returns the architecture of the adversarially trained CIFAR-10 network."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def cnn_a_adv() -> nn.Module:
    """Returns the adversarially trained CIFAR-10 network in shared/checkpoints."""
    whole = Normalized(Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), cnn_a())
    load_weights(whole, SHARED / "checkpoints" / "cnn_a_adv" / "cifar_cnn_a_adv.model")
    return whole


def load(name: str, home: Path, count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Returns a network in eval mode, the first test images (N, C, H, W) and their labels."""
    if name in TRAINED:
        network, path = mnist(name, home)
    else:
        network, path = cnn_a_adv(), SHARED / "data" / "cifar10-subset.npz"
    with np.load(path) as archive:
        images, labels = archive["x_test"][:count], archive["y_test"][:count]
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    pixels = torch.from_numpy(images.copy()).float() / 255
    return network.eval().requires_grad_(False), pixels, torch.from_numpy(labels.astype(np.int64))


def compare(name: str, threat: Threat, home: Path, count: int) -> str:
    """Returns the row of one network and threat model."""
    network, images, labels = load(name, home, count)
    config = Evaluate(norm=threat.norm, eps=(threat.eps,), shard=SHARD)
    protocol = make_attack_protocol(
        config, shape=tuple(images.shape[1:]), total=count, device="cpu", dataset=name
    )
    rows, hits = [], []
    began = time.process_time()
    for at in protocol.shards():
        part = slice(at.start, at.stop)
        rows += attack_examples(network, images[part], labels[part], list(at), protocol)
    ours, began = time.process_time() - began, time.process_time()
    summary = summarize(rows, protocol)
    point = summary.points[0]
    for at in protocol.shards():
        part = slice(at.start, at.stop)
        found = standard_attack(network, images[part], labels[part], threat, seed=0)
        hits.append(network(found).argmax(1) == labels[part])
    theirs = time.process_time() - began
    standard = float(torch.cat(hits).float().mean())
    after = " / ".join(
        f"{100 * point.after[attack]:.1f}"
        for attack in ("apgd-ce", "apgd-t", "fab-t", "square", "further")
        if attack in point.after
    )
    flags = ", ".join(flag.name for flag in summary.flags) or "none"
    eps = str(Fraction(threat.eps).limit_denominator(1000))
    return (
        f"| {name} | {threat.norm} {eps} | {100 * summary.clean:.1f} | {after} |"
        f" **{100 * point.robust:.1f}** | **{100 * standard:.1f}** |"
        f" {100 * (point.robust - standard):+.1f} | {ours:.0f} | {theirs:.0f} |"
        f" {ours / theirs:.2f} | {flags} |"
    )


def main(arguments: list[str]) -> None:
    """Prints the table of some networks and threat models."""
    if not SHARED.exists():
        print(f"skipped: no {SHARED}", file=sys.stderr)
        return
    torch.set_num_threads(1)
    home, count = Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 200
    print(f"{count} images, pyautoattack {standard_version()}, torch {torch.__version__}\n")
    heads = ["network", "attacked in", "clean",
             "after APGD-CE / APGD-T / FAB-T / Square / further rounds", "raybust",
             "AutoAttack", "difference", "raybust, s", "AutoAttack, s", "ratio",
             "flags"]  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    for setting in arguments[2:] or SETTINGS:
        name, norm, radius = setting.split(":")
        threat = Threat(norm, float(Fraction(radius)))  # type: ignore[arg-type]
        print(compare(name, threat, home, count), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

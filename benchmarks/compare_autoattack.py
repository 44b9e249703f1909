"""raybust's ensemble beside pyautoattack's standard suite: same network, images and radii.

The network is the small adversarially trained CNN in shared/checkpoints/cnn_a_adv beside the
checkout, the images are the first of the CIFAR-10 subset there. Each side runs with one thread, one
after the other; seconds are of the processor, beside those of the clock. Prints a Markdown table.

    python benchmarks/compare_autoattack.py [IMAGES] [NORM:EPS ...]
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raybust.config.assess import Evaluate
from raybust.evaluate import attack_examples, make_attack_protocol, summarize
from raybust.evaluate.standard import standard_attack, standard_version
from raybust.models import load_weights
from raybust.models.normalize import Normalize, Normalized
from raybust.numerics.balls import Threat

SHARED = Path(__file__).resolve().parents[2] / "shared"
WEIGHTS = SHARED / "checkpoints" / "cnn_a_adv" / "cifar_cnn_a_adv.model"
IMAGES = SHARED / "data" / "cifar10-subset.npz"
SETTINGS = ("linf:2/255", "linf:8/255", "l2:1/2")
SHARD = 250


def load_network() -> nn.Module:
    """Returns cnn_a_adv in eval mode, its normalization in front."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    normalize = Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    whole = Normalized(normalize, network)
    load_weights(whole, WEIGHTS)
    return whole.eval().requires_grad_(False)


def load_images(count: int) -> tuple[Tensor, Tensor]:
    """Returns the first images (N, 3, 32, 32) in [0, 1] and their labels."""
    with np.load(IMAGES) as archive:
        images, labels = archive["x_test"][:count], archive["y_test"][:count]
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255
    return pixels, torch.from_numpy(labels.astype(np.int64))


def compare(network: nn.Module, images: Tensor, labels: Tensor, threat: Threat) -> str:
    """Returns the row of one threat model."""
    config = Evaluate(norm=threat.norm, eps=(threat.eps,), shard=SHARD)
    protocol = make_attack_protocol(
        config, shape=(3, 32, 32), total=len(images), device="cpu", dataset="cifar10"
    )  # fmt: skip
    rows, ours = [], (0.0, 0.0)
    for at in protocol.shards():
        part = slice(at.start, at.stop)
        began = time.perf_counter(), time.process_time()
        rows += attack_examples(network, images[part], labels[part], list(at), protocol)
        ours = ours[0] + time.perf_counter() - began[0], ours[1] + time.process_time() - began[1]
    summary = summarize(rows, protocol)
    point = summary.points[0]
    began = time.perf_counter(), time.process_time()
    hits = []
    for at in replace(protocol, shard=SHARD).shards():
        part = slice(at.start, at.stop)
        found = standard_attack(network, images[part], labels[part], threat, seed=0)
        hits.append(network(found).argmax(1) == labels[part])
    theirs = time.perf_counter() - began[0], time.process_time() - began[1]
    after = " / ".join(f"{100 * point.after[name]:.1f}" for name in ("apgd-ce", "apgd-t", "square"))
    flags = ", ".join(flag.name for flag in summary.flags) or "none"
    cells = [
        f"{threat.norm} {Fraction(threat.eps).limit_denominator(255)}",
        f"{100 * summary.clean:.1f}",
        f"{100 * point.own['fgsm']:.1f}",
        f"{100 * point.own['pgd']:.1f}",
        after,
        f"**{100 * point.robust:.1f}**",
        f"**{100 * float(torch.cat(hits).float().mean()):.1f}**",
        f"{ours[1]:.0f} ({ours[0]:.0f})",
        f"{theirs[1]:.0f} ({theirs[0]:.0f})",
        flags,
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str]) -> None:
    """Prints the table of some threat models."""
    if not WEIGHTS.exists():
        print(f"skipped: no {WEIGHTS}", file=sys.stderr)
        return
    torch.set_num_threads(1)
    count = int(arguments[0]) if arguments else 1000
    network, (images, labels) = load_network(), load_images(count)
    print(f"{count} images, pyautoattack {standard_version()}, torch {torch.__version__}\n")
    heads = ["threat", "clean", "FGSM", "PGD-20", "after APGD-CE / APGD-T / Square", "raybust",
             "pyautoattack", "raybust s, processor (clock)", "pyautoattack s", "flags"]  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    for setting in arguments[1:] or SETTINGS:
        norm, _, radius = setting.partition(":")
        threat = Threat(norm, float(Fraction(radius)))  # type: ignore[arg-type]
        print(compare(network, images, labels, threat), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Speed of `certify` against plain forward passes and against the original one-image loop, one run.

CIFAR-10 ResNet-20 of ../shared/checkpoints/akamaster_resnet20 beside the checkout, on the GPU where
there is one. What is compared runs in turns, so that a busy machine slows all alike; values are
medians over the turns. Prints one JSON line a figure.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from raybust.certification import Protocol, certify_examples
from raybust.certification.protocol import default_batch
from raybust.config.inputs import Model
from raybust.models import build, load_weights

SHARED = Path(__file__).resolve().parents[2] / "shared"
WEIGHTS = SHARED / "checkpoints" / "akamaster_resnet20" / "resnet20-12fca82f.th"
DATA = SHARED / "data" / "cifar10-subset.npz"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGMA, RUNS = 0.25, 15
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DRAWS, BATCHES = (2_000, (50, 100, 200, 400))
if DEVICE.type == "cuda":
    DRAWS, BATCHES = 100_000, (1000, 2000, 4000, 8000)
"""Draws of a contestant in a turn, and batch sizes at which plain passes are tried."""

Turn = Callable[[], int]
"""Does some draws and returns their number."""


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def rate(work: Turn) -> float:
    """Returns the draws per second of a piece of work that returns its draws."""
    wait()
    began = time.perf_counter()
    done = work()
    wait()
    return done / (time.perf_counter() - began)


@torch.inference_mode()
def plain(network: nn.Module, image: Tensor, batch: int, total: int) -> int:
    """Forward passes alone, of one batch that is already there."""
    images = image.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    passes = -(-total // batch)
    for _ in range(passes):
        network(images)
    return passes * batch


@torch.no_grad()
def original(network: nn.Module, image: Tensor, batch: int) -> int:
    """One image at a time, as Cohen et al.'s script: repeat, randn_like, a counting loop."""
    counts, left = np.zeros(10, dtype=int), DRAWS
    while left > 0:
        size = min(batch, left)
        left -= size
        images = image.repeat((size, 1, 1, 1))
        noise = torch.randn_like(images) * SIGMA
        for chosen in network(images + noise).argmax(1).cpu().numpy():
            counts[chosen] += 1
    return int(counts.sum())


def engine(network: nn.Module, images: Tensor, labels: Tensor, **changes: object) -> Turn:
    """The engine at work on one example after another; a turn is up to the next finished row."""
    values = {
        "sigma": SIGMA,
        "shape": (3, 32, 32),
        "n": DRAWS,
        "batch": default_batch((3, 32, 32), DEVICE.type),
        "device": DEVICE.type,
    }
    protocol = Protocol(**(values | changes))  # type: ignore[arg-type]
    rows = certify_examples(network, images, labels, range(len(images)), protocol)

    def turn() -> int:
        row = next(rows)
        return row.draws + protocol.n0

    turn()  # what is done once: probes, the first lanes
    return turn


def contestants(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Turn]:
    image = images[0]
    return {
        **{f"plain {b}": lambda b=b: plain(network, image, b, DRAWS) for b in BATCHES},
        "engine": engine(network, images, labels),
        "bf16": engine(network, images, labels, precision="bf16"),
        "original 100": lambda: original(network, image, 100),
        "original 1000": lambda: original(network, image, 1000),
    }


def best_plain(rates: dict[str, list[float]]) -> str:
    name = max((n for n in rates if n.startswith("plain")), key=lambda n: median(rates[n]))
    print(f"plain passes are fastest at batches of {name.split()[1]}", file=sys.stderr)
    return name


def main() -> int:
    for path in (WEIGHTS, DATA):
        if not path.exists():
            print(f"skipped: {path} is not here", file=sys.stderr)
            return 0
    network = build(Model(name="resnet20"), shape=(3, 32, 32), num_classes=10, mean=MEAN, std=STD)
    load_weights(network, WEIGHTS)
    network = network.eval().to(DEVICE)
    with np.load(DATA) as data:
        images = (
            torch.tensor(data["x_test"][: RUNS + 3]).permute(0, 3, 1, 2).float().to(DEVICE) / 255
        )
        labels = torch.tensor(data["y_test"][: RUNS + 3]).long().to(DEVICE)
    work = contestants(network, images, labels)
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(RUNS):
        for name, piece in work.items():
            rates[name].append(rate(piece))
    fastest = best_plain(rates)

    def over(name: str, other: str) -> list[float]:
        return [a / b for a, b in zip(rates[name], rates[other], strict=True)]

    figures = [
        ("certify over plain passes", over("engine", fastest), "ratio", 0.95),
        ("certify over the original, batches of 100", over("engine", "original 100"), "ratio", 1.0),
        (
            "certify over the original, batches of 1000",
            over("engine", "original 1000"),
            "ratio",
            1.0,
        ),
        ("certify, bf16 over float32", over("bf16", "engine"), "ratio", 1.0),
        ("certify, float32", rates["engine"], "draws per second", None),
        ("certify, bf16", rates["bf16"], "draws per second", None),
        ("plain passes, float32", rates[fastest], "draws per second", None),
    ]
    held = True
    for name, values, unit, goal in figures:
        value = median(values)
        holds = goal is None or value >= goal
        held &= holds
        line = {
            "name": f"{name} ({DEVICE.type})",
            "value": round(value, 3),
            "unit": unit,
            "goal": f">= {goal}" if goal else "none",
            "holds": holds,
            "runs": RUNS,
        }
        print(json.dumps(line), flush=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())

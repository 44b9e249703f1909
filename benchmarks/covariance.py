"""Time and memory of covariance propagation against Gaussian training and MACER, in one run.

Steps (loss and gradient) on CIFAR shapes, one thread; what is compared runs in turns. Peak memory
is the high-water mark of two steps in a process of their own. Depth and width are measured at a
smaller batch and drawn into docs/covariance_growth.png with --plot. Prints one JSON line a figure.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _figures import figure
from torch import nn

from raybust.config.inputs import Model
from raybust.methods import Method, StepContext
from raybust.methods.covariance import Covariance
from raybust.methods.gaussian import Gaussian
from raybust.methods.macer import Macer
from raybust.models import Normalize, Normalized, build, cifar
from raybust.training.objective import CountedNetwork

BATCH, RUNS, SMALL = 128, 5, 32
SHAPE, MEAN, STD = (3, 32, 32), (0.5,) * 3, (0.25,) * 3
METHODS: dict[str, Method] = {
    "gaussian": Gaussian(),
    "covariance": Covariance(warmup=0.0),
    "covariance, E relu": Covariance(warmup=0.0, expected_relu=True),
    "covariance, exact": Covariance(warmup=0.0, mode="channel_exact"),
    "covariance, diagonal": Covariance(warmup=0.0, mode="diagonal"),
    "covariance, linear": Covariance(warmup=0.0, mode="linear"),
    "macer": Macer(k=16),
}
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "covariance_growth.png"


def resnet(depth: int) -> nn.Module:
    return build(Model(name=f"resnet{depth}"), shape=SHAPE, num_classes=10, mean=MEAN, std=STD)


def wide(factor: int) -> nn.Module:
    """Returns a pre-activation network of eight layers, `factor` times as wide as ResNet-20."""
    widths = tuple(factor * width for width in (16, 32, 64))
    body = cifar.PreActResNet(3, 10, stem=16, widths=widths, blocks=1)
    return Normalized(Normalize(MEAN, STD), body)


def stepper(network: nn.Module, method: Method, batch: int) -> Callable[[], None]:
    """Returns a function that computes one step's loss and gradient."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, *SHAPE, generator=generator)
    labels = torch.randint(0, 10, (batch,), generator=generator)
    prepared = method.setup(network, images, labels)
    counted = CountedNetwork(network.train())

    def step() -> None:
        network.zero_grad()
        method.loss(counted, images, labels, StepContext(generator, 0.5, prepared)).backward()

    return step


def turns(network: nn.Module, names: list[str], batch: int, runs: int) -> dict[str, list[float]]:
    """Returns CPU seconds of each method's steps, taken in turns after one warm-up of each."""
    steps = {name: stepper(network, METHODS[name], batch) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for run in range(runs + 1):
        for name, step in steps.items():
            began = time.process_time()
            step()
            if run:
                seconds[name].append(time.process_time() - began)
    return seconds


def ratio(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def peak(name: str) -> float:
    """Returns MiB by which two steps raise the high-water mark of this process's memory."""
    torch.set_num_threads(1)
    network = resnet(20)
    stepper(network, METHODS["gaussian"], 2)()
    Path("/proc/self/clear_refs").write_text("5")  # what getrusage tells was the parent's already
    before = high_water()
    step = stepper(network, METHODS[name], BATCH)
    step(), step()
    return high_water() - before


def high_water() -> float:
    """Returns the most MiB that this process had in memory since it was last reset (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def memory() -> None:
    peaks: dict[str, list[float]] = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in list(METHODS)[:-1]:
            peaks[name] = pool.map(peak, [name] * 3, chunksize=1)
    for name in list(peaks)[1:]:
        goal = "<= 1.5" if name == "covariance" else ""
        values = ratio(peaks[name], peaks["gaussian"])
        figure(f"covariance/{name}: peak memory over gaussian", values, "ratio", goal)


def growth(plot: bool) -> None:
    """Step time of covariance over gaussian by depth and by width, and 16 over it for MACER."""
    points: dict[str, list[tuple[int, float]]] = {"depth": [], "width": []}
    made = [("depth", d, resnet(d)) for d in (20, 56, 110)]
    made += [("width", w, wide(w)) for w in (1, 2, 4)]
    for axis, size, network in made:
        seconds = turns(network, ["gaussian", "covariance"], SMALL, 3)
        values = ratio(seconds["covariance"], seconds["gaussian"])
        figure(f"covariance/{axis} {size}: step time over gaussian, batch {SMALL}", values, "ratio")
        points[axis].append((size, statistics.median(values)))
    if plot:
        draw(points)


def draw(points: dict[str, list[tuple[int, float]]]) -> None:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8, 3.2), layout="constrained")
    labels = {"depth": "layers of a CIFAR ResNet", "width": "width, times 16-32-64 channels"}
    for axes, (axis, found) in zip(drawn.subplots(1, 2, sharey=True), points.items(), strict=True):
        axes.plot(*zip(*found, strict=True), marker="o")
        axes.axhline(16, color="black", linewidth=0.8, linestyle=":")
        axes.set(xlabel=labels[axis], yscale="log", xticks=[size for size, _ in found])
        axes.text(found[0][0], 14, "MACER, k = 16", va="top", fontsize=8)
    drawn.axes[0].set_ylabel("step time over gaussian")
    drawn.savefig(PICTURE, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", action="store_true", help=f"draws docs/{PICTURE.name}")
    parser.add_argument("--no-steps", action="store_true", help="memory and growth alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.no_steps:
        steps()
    memory()
    growth(given.plot)
    return 0


def steps() -> None:
    """Step times of ResNet-20 at the full batch."""
    seconds = turns(resnet(20), list(METHODS), BATCH, RUNS)
    for name in list(METHODS)[1:-1]:
        goal = "<= 1.7" if name in ("covariance", "covariance, linear") else ""
        values = ratio(seconds[name], seconds["gaussian"])
        figure(f"covariance/{name}: step time over gaussian", values, "ratio", goal)
    values = ratio(seconds["macer"], seconds["covariance"])
    figure("covariance/macer k = 16: step time over covariance", values, "ratio", ">= 9")


if __name__ == "__main__":
    sys.exit(main())

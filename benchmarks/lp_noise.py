"""Speed of the Lp noise of a CIFAR batch: 128 images, each with its own (p, eps) of the set C1.

Against the original's sampler, NumPy and Gamma(1/p) for each image, and against a training step of
ResNet-20, alternating in one run. PyTorch has the threads that a training process has
(OMP_NUM_THREADS=1 takes them away), NumPy its one. Prints one JSON line a figure; the value is the
median over runs.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from raybust import models
from raybust.config.inputs import Model
from raybust.numerics.balls import lp_noise
from raybust.numerics.lp_sets import CIFAR_SHAPE, named

BATCH, D, RUNS = 128, math.prod(CIFAR_SHAPE), 15


def numpy_noise(images: np.ndarray, rows: list[tuple[float, float]]) -> np.ndarray:
    """Corrupts each image as the original does: float64, Gamma(1/p), a radius of U^(1/d)."""
    result = np.empty_like(images)
    for number, (p, eps) in enumerate(rows):
        image = images[number]
        if p == 0:
            noisy = image.copy().reshape(-1)
            at = np.random.choice(D, round(eps * D), replace=False)  # noqa: NPY002
            noisy[at] = np.random.randint(0, 2, len(at))  # noqa: NPY002
        elif math.isinf(p):
            noisy = image.reshape(-1) + np.random.uniform(-eps, eps, D)  # noqa: NPY002
        else:
            size = np.random.gamma(1 / p, 1, D) ** (1 / p)  # noqa: NPY002
            g = size * np.random.choice([-1, 1], D)  # noqa: NPY002
            radius = np.random.uniform() ** (1 / D)  # noqa: NPY002
            norm = np.sum(np.abs(g) ** p) ** (1 / p)
            noisy = image.reshape(-1) + eps * radius * g / norm
        result[number] = np.clip(noisy, 0, 1).reshape(image.shape)
    return result


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def line(name: str, values: list[float], unit: str, goal: float | None, most: bool) -> bool:
    value = statistics.median(values)
    holds = goal is None or (value <= goal if most else value >= goal)
    text = "none" if goal is None else f"{'<=' if most else '>='} {goal:g}"
    found = {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "goal": text,
        "holds": holds,
        "runs": len(values),
    }
    print(json.dumps(found), flush=True)
    return holds


def main() -> int:
    generator = torch.Generator().manual_seed(0)
    table = named("C1", CIFAR_SHAPE).rows
    images = torch.rand(BATCH, *CIFAR_SHAPE, generator=generator)
    labels = torch.arange(BATCH) % 10
    array = images.numpy()
    network = models.build(
        Model(name="resnet20"), shape=CIFAR_SHAPE, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3
    ).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    own, original, normal, training = [], [], [], []
    for run in range(RUNS + 1):
        drawn = torch.randint(len(table), (BATCH,), generator=generator).tolist()
        rows = [table[index] for index in drawn]
        p, eps = torch.tensor(rows, dtype=torch.float64).unbind(1)
        times = (
            seconds(lambda: lp_noise(images, p, eps, generator=generator)),  # noqa: B023
            seconds(lambda: numpy_noise(array, rows)),  # noqa: B023
            seconds(lambda: torch.randn(BATCH, D, generator=generator)),
            seconds(step),
        )
        if run:  # the first one warms up
            for values, value in zip((own, original, normal, training), times, strict=True):
                values.append(value)
    held = [
        line("lp_noise: C1 batch of 128", [1e3 * t for t in own], "ms", None, True),
        line("lp_noise: NumPy, for each image", [1e3 * t for t in original], "ms", None, True),
        line("lp_noise: a batch of randn", [1e3 * t for t in normal], "ms", None, True),
        line("lp_noise: ResNet-20 step", [1e3 * t for t in training], "ms", None, True),
        line(
            "lp_noise: factor over NumPy for each image",
            [b / a for a, b in zip(own, original, strict=True)],
            "times",
            3,
            False,
        ),
        line(
            "lp_noise: share of a ResNet-20 step",
            [100 * a / b for a, b in zip(own, training, strict=True)],
            "% of the step",
            3,
            True,
        ),
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())

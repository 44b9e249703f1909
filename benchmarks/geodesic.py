"""Cost of Wasserstein-geodesic augmentation: CIFAR shapes, batches of 256, ResNet-20, one thread.

Coupling and interpolation against the step; the step, less its passes for the worst location,
against the base's step on as many images; each pass that the search takes, and each step of other
settings. What is compared runs in turns. Prints one JSON line a figure, the median over runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from _figures import figure

from raybust import models
from raybust.config.inputs import Model
from raybust.methods import Method, StepContext
from raybust.methods.gaussian import Gaussian
from raybust.methods.geodesic import Geodesic, Prepared
from raybust.numerics.attacks import attacked
from raybust.training.objective import CountedNetwork

BATCH, CLASSES, RUNS = 256, 10, 7
SHAPE = (3, 32, 32)
BASE = Gaussian()
PLAIN = Geodesic(base=BASE, penalty=0.0)
OTHERS = {
    "random location": Geodesic(base=BASE, penalty=0.0, location="random"),
    "random pairs": Geodesic(base=BASE, penalty=0.0, pairing="random"),
    "k-mixup": Geodesic(base=BASE, penalty=0.0, pairing="kmixup"),
    "ascent": Geodesic(base=BASE, penalty=0.0, location="ascent"),
    "penalty by differences": Geodesic(base=BASE),
    "penalty by gradient": Geodesic(base=BASE, estimate="gradient"),
}


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, *SHAPE, generator=generator)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    network = CountedNetwork(
        models.build(
            Model(name="resnet20"),
            shape=SHAPE,
            num_classes=CLASSES,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
        )
    ).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    given = StepContext(generator, 0.5, Prepared(CLASSES, None))
    count = len(PLAIN.paths(images, labels, given).source)
    every = torch.cat([images, images])[: BATCH + count]
    targets = torch.cat([labels, labels])[: BATCH + count]

    def step(method: Method, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
        def work() -> None:
            optimizer.zero_grad()
            method.loss(network, images, labels, given).backward()
            optimizer.step()

        return work

    def transport() -> None:
        paths = PLAIN.paths(images, labels, given)
        probabilities = torch.nn.functional.one_hot(labels, CLASSES).float()
        curves = PLAIN.curves(images, probabilities, paths, generator)
        curves.noisy(torch.rand(len(paths.source), generator=generator))

    def forward() -> None:
        with attacked(network), torch.no_grad():
            network(images[:count])

    works = {
        "base": step(BASE, images, labels),
        "same images": step(BASE, every, targets),
        "geodesic": step(PLAIN, images, labels),
        "transport": transport,
        "forward": forward,
        **{name: step(method, images, labels) for name, method in OTHERS.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for run in range(RUNS + 1):
        for name, work in works.items():
            spent = seconds(work)
            if run:  # the first one warms up
                times[name].append(spent)
    search = [PLAIN.points * pass_ for pass_ in times["forward"]]
    less = [whole - part for whole, part in zip(times["geodesic"], search, strict=True)]
    shares = [100 * part for part in ratio(times["transport"], times["geodesic"])]
    figure("geodesic: base's step", times["base"], "s")
    figure(f"geodesic: base's step on {BATCH + count} images", times["same images"], "s")
    figure("geodesic: coupling and interpolation", [1e3 * t for t in times["transport"]], "ms")
    figure("geodesic: share of coupling and interpolation", shares, "% of the step", "<= 5")
    over = ratio(less, times["same images"])
    figure("geodesic: step less its search over the base's", over, "times", "<= 1.15")
    figure(
        "geodesic: one pass of the search over the base's step",
        ratio(times["forward"], times["same images"]),
        "times",
    )
    for name in ("geodesic", *OTHERS):
        label = f"geodesic: step over the base's, {'grid of 5' if name == 'geodesic' else name}"
        figure(label, ratio(times[name], times["same images"]), "times")


if __name__ == "__main__":
    main()

"""Cost of the barycenter transform of a CIFAR batch, at the published constants.

Its closed form and the forward pass of ResNet-20 in turn in one run, and the primal-dual solver on
the same measures beside it. One thread: where cores are shared with other work a second one
measures the waiting for it. Prints one JSON line a figure; the value is the median over runs.
"""

import torch
from _figures import figure, paired

from raybust import models
from raybust.config.schema import Model
from raybust.methods.beckman import Beckman
from raybust.numerics.barycenter import Prices, pdhg, rotations
from raybust.numerics.lp_sets import CIFAR_SHAPE

BATCH, RUNS, SOLVED = 128, 15, 3


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    images = torch.rand(BATCH, *CIFAR_SHAPE, generator=torch.Generator().manual_seed(0))
    transform = Beckman().front().eval()
    network = models.build(
        Model(name="resnet20"), shape=CIFAR_SHAPE, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3
    ).eval()
    own, forward = paired(lambda: transform(images), lambda: network(images), RUNS)
    figure("barycenter: transform of a batch of 128", [1e3 * t for t in own], "ms")
    figure("barycenter: ResNet-20 forward", [1e3 * t for t in forward], "ms")
    share = [100 * a / b for a, b in zip(own, forward, strict=True)]
    figure("barycenter: share of a ResNet-20 forward", share, "% of the pass", "<= 3")
    measures = rotations(images, 2, 4.0)
    again, solver = paired(
        lambda: transform(images), lambda: pdhg(measures, Prices(), tolerance=1e-4), SOLVED
    )
    figure("barycenter: primal-dual to 1e-4", [1e3 * t for t in solver], "ms")
    factor = [b / a for a, b in zip(again, solver, strict=True)]
    figure("barycenter: factor of the closed form over it", factor, "times")


if __name__ == "__main__":
    main()

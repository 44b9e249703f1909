"""Cost of the barycenter transform of a CIFAR batch, at the published constants.

Its closed form and the forward pass of ResNet-20 in turn in one run; the same with the gradient for
the image, which is an attack's step; and the primal-dual solver on the same measures. One thread:
where cores are shared with other work a second one measures the waiting for it. Prints one JSON
line a figure; the value is the median over runs.
"""

import torch
from _figures import figure, paired
from torch import Tensor, nn

from raybust import models
from raybust.config.inputs import Model
from raybust.methods.beckman import Beckman
from raybust.numerics.barycenter import Prices, pdhg, rotations
from raybust.numerics.lp_sets import CIFAR_SHAPE

BATCH, RUNS, SOLVED = 128, 31, 3


def gradient(module: nn.Module, images: Tensor) -> Tensor:
    """Returns the gradient of the module's summed outputs for the images."""
    point = images.clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(module(point).sum(), point)[0]


@torch.no_grad()
def main() -> None:
    """Prints all figures."""
    torch.set_num_threads(1)
    images = torch.rand(BATCH, *CIFAR_SHAPE, generator=torch.Generator().manual_seed(0))
    transform = Beckman().front().eval()
    network = models.build(
        Model(name="resnet20"), shape=CIFAR_SHAPE, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3
    ).eval().requires_grad_(False)  # fmt: skip
    own, forward = paired(lambda: transform(images), lambda: network(images), RUNS)
    figure("barycenter: transform of a batch of 128", [1e3 * t for t in own], "ms")
    figure("barycenter: ResNet-20 forward", [1e3 * t for t in forward], "ms")
    share = [100 * a / b for a, b in zip(own, forward, strict=True)]
    figure("barycenter: share of a ResNet-20 forward", share, "% of the pass", "<= 3")
    own, whole = paired(
        lambda: gradient(transform, images), lambda: gradient(network, images), RUNS
    )
    share = [100 * a / b for a, b in zip(own, whole, strict=True)]
    figure("barycenter: share of a forward and input gradient", share, "% of the step")
    measures = rotations(images, 2, 4.0)
    again, solver = paired(
        lambda: transform(images), lambda: pdhg(measures, Prices(), tolerance=1e-4), SOLVED
    )
    figure("barycenter: primal-dual to 1e-4", [1e3 * t for t in solver], "ms")
    factor = [b / a for a, b in zip(again, solver, strict=True)]
    figure("barycenter: factor of the closed form over it", factor, "times")


if __name__ == "__main__":
    main()

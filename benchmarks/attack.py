"""What an attack step costs: PGD-10 training on ResNet-20, batch 128, one thread.

The yardstick is what must be paid: ten forward passes with the gradient of the input on the frozen
network in eval mode, and one training step. Ratios are of times taken in turn in one run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _figures import figure, paired
from torch import Tensor

from raybust.methods.base import StepContext
from raybust.methods.pgd import Pgd
from raybust.models.cifar import ResNet
from raybust.models.normalize import Normalize, Normalized
from raybust.numerics.attacks import attacked
from raybust.training.objective import CountedNetwork

BATCH, STEPS, RUNS = 128, 10, 7
METHOD = Pgd(steps=STEPS)


class Bench:
    """A network, a batch, an optimizer, and the pieces of work that are compared."""

    def __init__(self, fold: bool = True) -> None:
        self.fold = fold
        torch.manual_seed(0)
        normalize = Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
        self.network = CountedNetwork(Normalized(normalize, ResNet(3, 10, 20))).train()
        self.images, self.labels = torch.rand(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
        self.generator = torch.Generator().manual_seed(0)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)

    def learn(self, loss: Tensor) -> None:
        """The backward half of a training step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def ours(self) -> None:
        """One PGD-10 training step of raybust's."""
        context = StepContext(self.generator)
        self.learn(METHOD.loss(self.network, self.images, self.labels, context))

    def attack(self) -> None:
        """Its attack alone."""
        with attacked(self.network, fold=self.fold):
            METHOD.attack(
                self.network,
                self.images,
                lambda logits: F.cross_entropy(logits, self.labels, reduction="sum"),
                StepContext(self.generator),
            )

    def passes(self) -> None:
        """Ten forward passes with the gradient of the input, frozen, eval mode; nothing else."""
        self.network.eval().requires_grad_(False)
        for _ in range(STEPS):
            point = self.images.clone().requires_grad_()
            loss = F.cross_entropy(self.network(point), self.labels, reduction="sum")
            torch.autograd.grad(loss, point)
        self.network.train().requires_grad_(True)

    def yardstick(self) -> None:
        """Ten such passes and one training step."""
        self.passes()
        self.learn(F.cross_entropy(self.network(self.images), self.labels))

    def naive(self) -> None:
        """The PGD-10 step that one writes first: parameter gradients on, loss.backward()."""
        eps, step = 8 / 255, 2 / 255
        self.network.eval()
        delta = torch.empty_like(self.images).uniform_(-eps, eps)
        for _ in range(STEPS):
            delta.requires_grad_()
            loss = F.cross_entropy(self.network((self.images + delta).clamp(0, 1)), self.labels)
            loss.backward()
            delta = (delta + step * delta.grad.sign()).clamp(-eps, eps).detach()  # type: ignore[union-attr]
        self.network.train()
        self.learn(F.cross_entropy(self.network((self.images + delta).clamp(0, 1)), self.labels))


def main() -> None:
    """Prints the ratios."""
    torch.set_num_threads(1)
    bench, plain = Bench(), Bench(fold=False)
    ours, needed = paired(bench.ours, bench.yardstick, RUNS)
    figure("attack/pgd10 training step over its passes", ratio(ours, needed), "ratio", "<= 1.05")
    ours, naive = paired(bench.ours, bench.naive, RUNS)
    figure("attack/naive pgd10 training step over ours", ratio(naive, ours), "ratio", ">= 1.25")
    ours, needed = paired(bench.attack, bench.passes, RUNS)
    figure("attack/ten steps over their ten passes", ratio(ours, needed), "ratio", "<= 1.05")
    ours, needed = paired(plain.attack, plain.passes, RUNS)
    figure("attack/the same, batch norm not folded", ratio(ours, needed), "ratio")


def ratio(first: list[float], second: list[float]) -> list[float]:
    """Returns the ratio of each pair of times."""
    return [a / b for a, b in zip(first, second, strict=True)]


if __name__ == "__main__":
    main()

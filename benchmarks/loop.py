"""Throughput of the training loop over a bare hand-written PyTorch loop of the same work."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _figures import figure, paired

from raybust import config as configuration
from raybust import methods
from raybust.data import Dataset, Split
from raybust.training.loop import Trainer
from raybust.training.objective import assemble

BATCH, STEPS, RUNS = 128, 10, 7


def main() -> None:
    """Prints the ratio for two networks, standard training, CIFAR shapes, one thread."""
    torch.set_num_threads(1)
    for network in ("small_cnn", "resnet20"):
        settings = [f"model.name={network}", f"train.batch_size={BATCH}", "train.epochs=1000"]
        config = configuration.compose(configuration.leaves_of_arguments(settings), methods.get)
        dataset = random_images(BATCH * STEPS)
        trainer = Trainer(config, dataset, torch.device("cpu"))
        bare = BareLoop(assemble(config, dataset), dataset)
        ours, theirs = paired(trainer.train_epoch, bare.epoch, RUNS)
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        figure(f"loop/{network}: images per second over a bare loop", ratios, "ratio", ">= 0.95")
        rates = [BATCH * STEPS / seconds for seconds in ours]
        figure(f"loop/{network}: images per second", rates, "images/s")


def random_images(count: int) -> Dataset:
    """Returns CIFAR-shaped noise with random labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    split = Split(images, labels, torch.arange(count))
    classes = tuple("0123456789")
    return Dataset(
        "noise", classes, (3, 32, 32), (0.5,) * 3, (0.25,) * 3, "none", split, split, split
    )


class BareLoop:
    """The loop that one would write by hand: permute, gather, scale, forward, backward, step."""

    def __init__(self, network: torch.nn.Module, dataset: Dataset) -> None:
        self.network = network.train()
        self.images, self.labels = dataset.train.images, dataset.train.labels
        decay = [{"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 5e-4},
                 {"params": [p for p in network.parameters() if p.ndim <= 1]}]  # fmt: skip
        self.optimizer = torch.optim.SGD(decay, lr=0.05, momentum=0.9, nesterov=True, fused=True)

    def epoch(self) -> float:
        """Trains one epoch; returns the mean loss, the one number that is read back."""
        total = torch.zeros(())
        for at in torch.randperm(len(self.labels)).split(BATCH):
            images = self.images[at].float() / 255
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.network(images), self.labels[at])
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        return float(total)


if __name__ == "__main__":
    main()

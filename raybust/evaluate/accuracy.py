"""Accuracy without a proof: clean accuracy of a network on a part of the data.

With its 95 % interval, because a test set is a sample. The training loop validates with the same
function. Stage after train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raybust.config.assess import Evaluate
from raybust.data import Dataset
from raybust.data.splits import Part
from raybust.numerics.bounds import clopper_pearson_lower, clopper_pearson_upper


@dataclass(frozen=True)
class Accuracy:
    """Clean accuracy of a network on examples of a part of the data.

    Attributes:
        split: the part.
        examples: how many.
        accuracy: share whose top class is the label.
        low: lower end of the 95 % Clopper-Pearson interval.
        high: its upper end.
    """

    split: str
    examples: int
    accuracy: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"clean accuracy {self.accuracy:.4f} on {self.examples} {self.split} examples"
            f" (95 % interval {self.low:.4f} to {self.high:.4f})"
        )


def clean_accuracy(network: nn.Module, dataset: Dataset, config: Evaluate) -> Accuracy:
    """Returns the clean accuracy of a network, on the GPU where there is one.

    Args:
        network: in eval mode.
        dataset: its data.
        config: which part, how many examples.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    split = getattr(dataset, config.split)
    count = min(len(split), config.examples or len(split))
    hits = correct(network.to(device), split, range(count), batch=config.batch, device=device)
    k = int(hits.sum())
    low, high = clopper_pearson_lower(k, count, 0.025), clopper_pearson_upper(k, count, 0.025)
    return Accuracy(config.split, count, k / count, float(low), float(high))


@torch.inference_mode()
def correct(
    network: nn.Module,
    split: Part,
    positions: Sequence[int],
    *,
    batch: int,
    device: torch.device,
) -> Tensor:
    """Returns for each example whether the network's top class is its label: bool (N,), on the CPU.

    Args:
        network: in eval mode, on `device`.
        split: the part of the data.
        positions: the N examples, as positions in the split.
        batch: images per forward pass.
        device: where the network is.
    """
    assert not network.training, "accuracy is of the network in eval mode"
    hits = []
    for start in range(0, len(positions), batch):
        images, labels = split.fetch(torch.as_tensor(positions[start : start + batch]))
        hits.append(network(images.to(device)).argmax(1) == labels.to(device))
    return torch.cat(hits).cpu() if hits else torch.empty(0, dtype=torch.bool)

"""Clean accuracy of a network on a part of the data.

With a 95% interval, since a test set is a sample. The training loop uses the same function for
validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raybust.config.assess import Evaluate
from raybust.data import Part
from raybust.errors import WorkError
from raybust.numerics.bounds import clopper_pearson_lower, clopper_pearson_upper


@dataclass(frozen=True)
class Accuracy:
    """Clean accuracy of a network on examples of a part of the data.

    Attributes:
        split: the part.
        examples: number of examples.
        accuracy: share with the label as top class.
        low: lower end of the 95% Clopper-Pearson interval.
        high: upper end of the interval.
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


def clean_accuracy(
    network: nn.Module, part: Part, config: Evaluate, device: torch.device | str
) -> Accuracy:
    """Measures the clean accuracy of a network.

    Args:
        network: in eval mode, on `device`.
        part: the part of the data that `config` names.
        config: part and number of examples.
        device: the network's device.

    Raises:
        WorkError: an output is NaN.
    """
    count = min(len(part), config.examples or len(part))
    hits = correct(
        network, part, range(count), batch=config.batch, device=device, nan_is_wrong=False
    )
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
    device: torch.device | str,
    nan_is_wrong: bool = True,
) -> Tensor:
    """Returns for each example whether the network's top class is its label: bool (N,), on the CPU.

    Args:
        network: in eval mode, on `device`.
        split: the part of the data.
        positions: positions of the N examples in the split.
        batch: images per forward pass.
        device: the network's device.
        nan_is_wrong: whether an image whose outputs are NaN counts as wrong, as in training, which
            watches for it; else it is an error.

    Raises:
        WorkError: an output is NaN.
    """
    assert not network.training, "accuracy needs the network in eval mode"
    hits = []
    for start in range(0, len(positions), batch):
        images, labels = split.fetch(torch.as_tensor(positions[start : start + batch]))
        logits = network(images.to(device))
        broken = logits.isnan().any(1)
        if not nan_is_wrong and broken.any():
            raise WorkError(
                f"the network gives NaN for {int(broken.sum())} of {len(images)} images"
            )
        # argmax treats NaN as the largest.
        hits.append((logits.argmax(1) == labels.to(device)) & ~broken)
    return torch.cat(hits).cpu() if hits else torch.empty(0, dtype=torch.bool)

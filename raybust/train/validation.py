"""What each epoch says of the network under training: for early stopping and search, never for
publication.

Clean accuracy, the cheap certificate `certified_fast/*`, the cheap attack `attacked_fast/*`; all on
the validation part, each rank on its share of the same images. Stage train.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.certify import fast_certificate
from raybust.config import Config
from raybust.data import Part
from raybust.errors import RequestError
from raybust.evaluate import correct
from raybust.numerics.attacks import ascend, attacked
from raybust.numerics.balls import Threat
from raybust.numerics.moments import moment_acr
from raybust.train.objective import smoothing_sigma
from raybust.train.ranks import Ranks

_STEP = 2.5
_FUZZ = 1e-6
"""What rounding may take from a share of the budget."""


def measure(
    network: nn.Module,
    split: Part,
    config: Config,
    ranks: Ranks,
    *,
    epoch: int,
    before: float,
    spent: float,
) -> dict[str, float]:
    """Returns the metrics of an epoch; leaves the network in evaluation mode.

    Args:
        network: images (B, C, H, W) in [0, 1] to logits (B, K).
        split: the validation part.
        config: its sections `certified_fast` and `attacked_fast` say what is measured.
        ranks: who measures.
        epoch: epochs that are done, from 1.
        before: share of the budget that was spent at the end of the epoch before.
        spent: the same now; at 1, the end, everything is measured that ever is.
    """
    network.eval()
    ranks.share_buffers(network)  # each rank's batch norm saw its own last batch
    mine = range(ranks.rank, len(split), ranks.world)
    hits = correct(network, split, mine, batch=config.evaluate.batch, device=ranks.device)
    found = {"validation/accuracy": ranks.sum(hits.sum()) / len(split)}
    for section, measured in (
        (config.certified_fast, _certificate),
        (config.attacked_fast, _attack),
    ):
        if not _due(section.every, epoch, before, spent):
            continue
        step = max(1, len(split) // section.examples)
        chosen = torch.arange(0, len(split), step)[: section.examples]
        share = chosen[ranks.rank :: ranks.world]
        weight = len(share) / len(chosen)
        for key, value in measured(network, split, share, config, ranks.device).items():
            found[key] = ranks.sum(torch.tensor(value * weight, dtype=torch.float64))
    return found


def _due(every: float, epoch: int, before: float, spent: float) -> bool:
    """Returns whether an epoch ends at, or first after, a multiple of `every`: epochs, or a share
    of the budget where it is below 1."""
    if not every:
        return False
    if spent >= 1:
        return True
    if every >= 1:
        return epoch % int(every) == 0
    return math.floor(spent / every + _FUZZ) > math.floor(before / every + _FUZZ)


def _certificate(
    network: nn.Module, split: Part, mine: Tensor, config: Config, device: torch.device
) -> dict[str, float]:
    images, labels = (tensor.to(device) for tensor in split.fetch(mine))
    sigma, fast = smoothing_sigma(config), config.certified_fast
    found = fast_certificate(
        network,
        images,
        labels,
        split.indices[mine],
        sigma=sigma,
        config=fast,
        seed=config.certify.seed,
    )
    if fast.moment:
        try:
            found["certified_fast/moment_acr"] = moment_acr(network, images, labels, sigma)
        except ValueError as error:
            raise RequestError(f"certified_fast.moment: {error}") from None
    return found


def _attack(
    network: nn.Module, split: Part, mine: Tensor, config: Config, device: torch.device
) -> dict[str, float]:
    """PGD from the images themselves, so that it is the same on any number of workers."""
    images, labels = (tensor.to(device) for tensor in split.fetch(mine))
    fast = config.attacked_fast

    def objective(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="sum")

    with attacked(network):
        found = ascend(
            network,
            images,
            Threat(fast.norm, fast.eps),
            objective,
            start=torch.zeros_like(images),
            steps=fast.steps,
            step=_STEP * fast.eps / fast.steps,
        )
    with torch.no_grad():
        survived = (network(found).argmax(1) == labels) & (network(images).argmax(1) == labels)
    return {"attacked_fast/robust_accuracy": float(survived.double().mean())}

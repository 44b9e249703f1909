"""Per-epoch validation metrics, for early stopping and search, never for publication.

Clean accuracy, the fast certificates `certified_fast/*` and `certified_linf_fast/*` and the fast
attack `attacked_fast/*`, all on the validation part, with its images distributed over the ranks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust import devices
from raybust.certification import fast_certificate
from raybust.config import Config
from raybust.data import Part, spread
from raybust.errors import RequestError
from raybust.evaluate import correct
from raybust.numerics.attacks import ascend, attacked
from raybust.numerics.balls import Threat
from raybust.numerics.moments import moment_acr
from raybust.numerics.relaxation import certified_margin, trace
from raybust.training.objective import smoothing_sigma
from raybust.training.ranks import Ranks

_STEP = 2.5
_PROBE_IMAGES = 8
_TOLERANCE = 1e-6
"""Rounding tolerance on fractions of the budget."""


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
    """Returns the metrics of an epoch; leaves the network in eval mode.

    Args:
        network: maps images (B, C, H, W) in [0, 1] to logits (B, K).
        split: the validation part.
        config: sections `certified_fast`, `certified_linf_fast` and `attacked_fast` select the
            measurements.
        ranks: the ranks that share the work.
        epoch: number of completed epochs, from 1.
        before: spent fraction of the budget at the end of the previous epoch.
        spent: the current fraction; at 1, every enabled measurement runs.
    """
    network.eval()
    ranks.broadcast_buffers(network)  # batch norm buffers differ between ranks
    mine = range(ranks.rank, len(split), ranks.world)
    hits = correct(network, split, mine, batch=config.evaluate.batch, device=ranks.device)
    found: dict[str, tuple[Tensor | float, float]] = {}
    found["validation/accuracy"] = hits.sum(), len(hits)
    for section, measured in (
        (config.certified_fast, _certificate),
        (config.certified_linf_fast, _bounds),
        (config.attacked_fast, _attack),
    ):
        if not _due(section.every, epoch, before, spent):
            continue
        chosen = torch.tensor(spread(len(split), section.examples or len(split)))
        share = chosen[ranks.rank :: ranks.world]
        if len(share):
            for key, value in measured(network, split, share, config, ranks.device).items():
                found[key] = value * len(share), len(share)
    return ranks.means(found)


@torch.no_grad()
def not_finite(network: nn.Module, split: Part, device: torch.device) -> Tensor:
    """Counts a network's tensors with NaN or infinity, including its outputs on a few images: the
    losses of an epoch do not reflect its last update.

    Args:
        network: put into eval mode.
        split: from which the images are taken.
        device: the network's.
    """
    images, _ = split.fetch(range(min(_PROBE_IMAGES, len(split))))
    outputs = network.eval()(images.to(device))
    parts = [part for part in network.state_dict().values() if part.is_floating_point()]
    broken = [~part.isfinite().all() for part in (*parts, outputs)]
    return torch.stack(broken).sum().to(torch.float64)


def whole(config: Config, epoch: int, before: float, spent: float) -> bool:
    """Returns whether every enabled measurement is made in an epoch; arguments as in `measure`."""
    sections = (config.certified_fast, config.certified_linf_fast, config.attacked_fast)
    return all(_due(one.every, epoch, before, spent) for one in sections if one.every)


def _due(every: float, epoch: int, before: float, spent: float) -> bool:
    """Returns whether an epoch ends at, or first after, a multiple of `every`, in epochs, or in
    fractions of the budget if below 1."""
    if not every:
        return False
    if spent >= 1:
        return True
    if every >= 1:
        return epoch % int(every) == 0
    return math.floor(spent / every + _TOLERANCE) > math.floor(before / every + _TOLERANCE)


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


def _bounds(
    network: nn.Module, split: Part, mine: Tensor, config: Config, device: torch.device
) -> dict[str, float]:
    """Returns the share of images that the network, as it computes in float32, provably classifies
    right on the whole Linf ball."""
    fast = config.certified_linf_fast
    hits = torch.zeros(len(fast.eps), dtype=torch.float64, device=device)
    try:
        graph = trace(network)
        for part in mine.split(config.evaluate.batch):
            images, labels = (tensor.to(device) for tensor in split.fetch(part))
            with devices.arithmetic(device):
                for place, eps in enumerate(fast.eps):
                    low = certified_margin(
                        graph, network, images, labels, eps=eps, bound=fast.bound
                    )
                    hits[place] += (low > 0).sum()
    except ValueError as error:
        raise RequestError(f"certified_linf_fast: {error}") from None
    shares = (hits / len(mine)).tolist()
    return {
        f"certified_linf_fast/accuracy_{eps:g}": share
        for eps, share in zip(fast.eps, shares, strict=True)
    }


def _attack(
    network: nn.Module, split: Part, mine: Tensor, config: Config, device: torch.device
) -> dict[str, float]:
    """Runs PGD started at the images, so the result does not depend on the number of workers."""
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

"""AutoAttack's standard suite from pyautoattack: the field's reference, besides our own attacks.

Croce and Hein (2020, arXiv:2003.01690); pyautoattack, the extra `[attacks]`, has the authors'
mathematics unchanged. It runs only when requested by name and never replaces another attack.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn

from raybust.errors import RequestError
from raybust.numerics.balls import Threat

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def standard_version() -> str:
    """Returns the version of pyautoattack.

    Raises:
        RequestError: it is not installed.
    """
    try:
        return version("pyautoattack")
    except PackageNotFoundError:
        raise RequestError(
            "evaluate.attacks: autoattack needs pyautoattack: pip install 'raybust[attacks]'"
        ) from None


def standard_attack(
    network: nn.Module, images: Tensor, labels: Tensor, threat: Threat, *, seed: int
) -> Tensor:
    """Returns the images (B, C, H, W) after AutoAttack's standard suite: APGD-CE, targeted APGD,
    targeted FAB, Square.

    Args:
        network: images in [0, 1] to logits (B, K), in eval mode.
        images: (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        threat: norm and radius; the suite has its own box.
        seed: seed of torch's global generator, which is restored.
    """
    from pyautoattack import AutoAttack

    images = images.contiguous()
    with torch.no_grad():
        classes = network(images[:1]).shape[1]
    suite = AutoAttack(
        network,
        norm=_NORMS[threat.norm],
        eps=threat.eps,
        version="standard",
        seed=seed % 2**32,
        device=images.device,
    )
    for member in (suite.apgd_targeted, suite.fab):
        member.n_target_classes = min(member.n_target_classes, classes - 1)
    with torch.random.fork_rng():
        found, _ = suite.run_standard_evaluation(images, labels, batch_size=len(images))
    attacked: Tensor = found.detach()
    return attacked

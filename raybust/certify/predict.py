"""PREDICT of Cohen et al. (2019): the smoothed classifier's class, or abstention.

The two top counts are compared by the exact two-sided binomial test (Hung and Fithian, 2019): with
probability at least 1 - alpha it abstains or the class is the smoothed classifier's. Stage
`certify` of the arrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from raybust.certify.engine import make_forward
from raybust.certify.guards import check_images, check_mode
from raybust.certify.log import ABSTAIN
from raybust.certify.noise import BLOCK, draws
from raybust.certify.protocol import Protocol
from raybust.errors import RequestError, WorkError
from raybust.numerics.bounds import binomial_test


def decide(counts: Sequence[int], alpha: float) -> int:
    """Returns the class with the most votes, or -1 where the test leaves it open.

    Abstains when the two-sided p-value of n1 of n1 + n2 at 1/2 is above alpha. It is so for every
    count where 2^(1 - n) > alpha: at alpha = 0.001 for n <= 10.

    Args:
        counts: votes for each class.
        alpha: probability with which the class may be wrong.
    """
    votes = np.asarray(counts)
    first, second = np.argsort(-votes, kind="stable")[:2]
    agreed = binomial_test(int(votes[first]), int(votes[first] + votes[second])) <= alpha
    return int(first) if agreed else ABSTAIN


def predict(
    network: nn.Module, images: Tensor, indices: Sequence[int], protocol: Protocol, n: int
) -> list[int]:
    """Returns the smoothed classifier's class for each image, -1 where it abstains.

    The draws are the first n of the stream `estimate`.

    Args:
        network: images to logits, in eval mode, on the images' device.
        images: float (N, C, H, W) in [0, 1].
        indices: (N,) index of each image in its dataset, the key of its noise.
        protocol: gives distribution, seed, alpha, precision.
        n: draws per image.

    Raises:
        RequestError: as `certify_examples`; an n at which every image would be abstained on.
        WorkError: NaN outputs.
    """
    if binomial_test(n, n) > protocol.alpha:
        raise RequestError(
            f"n: got {n}, with which prediction always abstains at alpha = {protocol.alpha:g}; "
            "take more draws"
        )
    check_images(images, protocol.shape)
    check_mode(network)
    forward = make_forward(network, protocol)
    found = []
    for image, idx in zip(images, indices, strict=True):
        counts = torch.zeros(0, dtype=torch.int64, device=image.device)
        for block in range(-(-n // BLOCK)):
            noisy = draws(protocol.smoothing, protocol.seed, image, (idx, "estimate", block))
            logits = forward(noisy)[: n - block * BLOCK]
            if logits.isnan().any():
                raise WorkError(f"example {idx}: the network's outputs are NaN")
            votes = logits.argmax(1).bincount(minlength=logits.shape[1])
            counts = votes if not len(counts) else counts + votes
        found.append(decide(counts.tolist(), protocol.alpha))
    return found

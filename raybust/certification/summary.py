"""Metrics of certificates: certified accuracy, average certified radius, abstention; and the cheap
certificate after a training epoch.

ACR is from Zhai et al. (2020, arXiv 2001.02378). It depends on n, alpha and the examples: print it
with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from raybust import devices
from raybust.certification.bound_log import BoundRow
from raybust.certification.engine import certify_examples
from raybust.certification.log import ABSTAIN, Row
from raybust.certification.protocol import Protocol, default_batch
from raybust.config.assess import FastCertify


def summarize(
    rows: Iterable[Row | BoundRow], radii: Iterable[float], prefix: str
) -> dict[str, float]:
    """Returns `prefix/acr`, `prefix/accuracy_at/R` for each radius, and for smoothing
    `prefix/abstention`.

    Means over all rows; abstentions count as wrong. Empty without rows.

    Args:
        rows: certificates.
        radii: in the rows' norm.
        prefix: "certified", "certified_fast" or "certified_linf".
    """
    rows = list(rows)
    if not rows:
        return {}

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(rows)

    abstained = {f"{prefix}/abstention": mean(row.predict == ABSTAIN for row in rows)}
    return {
        f"{prefix}/acr": mean(row.radius * row.correct for row in rows),
        **(abstained if isinstance(rows[0], Row) else {}),
        **{
            f"{prefix}/accuracy_at/{radius:g}": mean(
                row.correct and row.radius >= radius for row in rows
            )
            for radius in radii
        },
    }


def fast_certificate(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    indices: Sequence[int] | Tensor,
    *,
    sigma: float,
    config: FastCertify,
    seed: int,
) -> dict[str, float]:
    """Returns the metrics `certified_fast/*` of some examples: for search, not for publication.

    As sound as the full certificate, but with the fewer draws of `config`; an example gets the same
    noise in every epoch.

    Args:
        network: (B, C, H, W) in [0, 1] to logits, in eval mode, on the images' device.
        images: float (N, C, H, W) in [0, 1].
        labels: int (N,).
        indices: (N,) index of each example in its dataset.
        sigma: standard deviation of the Gaussian noise, > 0.
        config: draws, alpha, radii.
        seed: seed of the noise.
    """
    channels, height, width = images.shape[1:]
    protocol = Protocol(
        sigma=sigma,
        shape=(channels, height, width),
        n0=config.n0,
        n=config.n,
        alpha=config.alpha,
        seed=seed,
        batch=default_batch(images.shape[1:], images.device.type),
        precision=devices.float32(images.device.type),
        device=images.device.type,
    )
    rows = certify_examples(network, images, labels, indices, protocol)
    return summarize(rows, config.radii, "certified_fast")

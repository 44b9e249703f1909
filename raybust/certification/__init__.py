"""Randomized smoothing (Cohen, Rosenfeld and Kolter, 2019): classes with certified radii.

`certify` is CERTIFY for one image, as the paper states it, and the oracle of the tests.
`certify_examples` is the engine: many images at once, keyed noise, early stopping that keeps the
guarantee; `CertificateLog` stores its rows.
"""

from collections.abc import Callable

from scipy.special import ndtri
from torch import Tensor

from raybust.certification.engine import certify_examples
from raybust.certification.log import ABSTAIN, CertificateLog, Row, write_cohen
from raybust.certification.noise import BLOCK, Smoothing, Stream, draws
from raybust.certification.proof import check_rows
from raybust.certification.protocol import Protocol, make_protocol, sigma_warning
from raybust.certification.schedule import Schedule
from raybust.certification.summary import fast_certificate, summarize
from raybust.numerics.bounds import clopper_pearson_lower


def certify(
    network: Callable[[Tensor], Tensor],
    sample: Callable[[Stream, int], Tensor],
    *,
    sigma: float,
    n0: int,
    n: int,
    alpha: float,
) -> tuple[int, float]:
    """Returns the class of the smoothed classifier at an image and its L2 radius, or (ABSTAIN, 0).

    Args:
        network: images (B, C, H, W) to logits (B, K).
        sample: returns that many copies of the image with independent noise N(0, sigma^2 I).
        sigma: standard deviation of the noise.
        n0: samples that choose the class.
        n: samples that bound its probability.
        alpha: probability that the certificate is wrong.
    """
    votes = network(sample("pilot", n0)).argmax(1).bincount()
    top = int(votes.argmax())
    hits = int((network(sample("estimate", n)).argmax(1) == top).sum())
    p_lower = float(clopper_pearson_lower(hits, n, alpha))
    if p_lower <= 0.5:
        return ABSTAIN, 0.0
    return top, sigma * float(ndtri(p_lower))


__all__ = [
    "ABSTAIN",
    "BLOCK",
    "CertificateLog",
    "Protocol",
    "Row",
    "Schedule",
    "Smoothing",
    "certify",
    "certify_examples",
    "check_rows",
    "draws",
    "fast_certificate",
    "make_protocol",
    "sigma_warning",
    "summarize",
    "write_cohen",
]

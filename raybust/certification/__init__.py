"""Classes with certified radii, by randomized smoothing (Cohen, Rosenfeld and Kolter, 2019) or by
sound bounds of the network.

`certify` is CERTIFY for one image, as the paper states it, and the oracle of the tests.
`certify_examples` is the engine: many images at once, keyed noise, early stopping that keeps the
guarantee; `CertificateLog` stores its rows. `bound_examples` and `BoundLog` are those of bounds.
"""

from collections.abc import Callable

from scipy.special import ndtri
from torch import Tensor

from raybust.certification.bound_engine import bound_examples, check_bound_rows, check_bounds
from raybust.certification.bound_log import (
    BoundLog,
    BoundProtocol,
    BoundRow,
    make_bound_protocol,
    open_log,
)
from raybust.certification.engine import certify_examples
from raybust.certification.header import Header
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
    "BoundLog",
    "BoundProtocol",
    "BoundRow",
    "CertificateLog",
    "Header",
    "Protocol",
    "Row",
    "Schedule",
    "Smoothing",
    "bound_examples",
    "certify",
    "certify_examples",
    "check_bound_rows",
    "check_bounds",
    "check_rows",
    "draws",
    "fast_certificate",
    "make_bound_protocol",
    "make_protocol",
    "open_log",
    "sigma_warning",
    "summarize",
    "write_cohen",
]

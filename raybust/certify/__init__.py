"""Certificates by randomized smoothing: what is certified, how, and the log of it.

CERTIFY and PREDICT of Cohen et al. (2019) with keyed noise, early stopping that keeps the
guarantee, and logs that resume. `certify_examples` does the work of one shard, `CertificateLog`
keeps it. Stage `certify` of the arrow.
"""

from raybust.certify.engine import certify_examples
from raybust.certify.log import ABSTAIN, CertificateLog, Row, write_cohen
from raybust.certify.noise import BLOCK, Smoothing, draws
from raybust.certify.predict import decide, predict
from raybust.certify.proof import check_rows
from raybust.certify.protocol import Protocol, make_protocol, sigma_warning
from raybust.certify.schedule import Schedule
from raybust.certify.summary import fast_certificate, summarize

__all__ = [
    "ABSTAIN",
    "BLOCK",
    "CertificateLog",
    "Protocol",
    "Row",
    "Schedule",
    "Smoothing",
    "certify_examples",
    "check_rows",
    "decide",
    "draws",
    "fast_certificate",
    "make_protocol",
    "predict",
    "sigma_warning",
    "summarize",
    "write_cohen",
]

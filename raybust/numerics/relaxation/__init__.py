"""Sound bounds of a network's logits over a Linf ball: intervals and backward linear bounds.

`trace` a network, `enclose` a `ball`, take `margins`; `certified_margin` does all of it for a
certificate; `register` adds a layer's rule. Assumes that the network's sums are plain sums of
products in its dtype, in any order: no TF32, no bfloat16, no Winograd convolution.
"""

from raybust.numerics.relaxation.box import Box, Setting, Statistics, ball, between
from raybust.numerics.relaxation.layers import register
from raybust.numerics.relaxation.margins import (
    Bound,
    certified_margin,
    enclose,
    margins,
    nominal,
    rectified,
    trace,
)
from raybust.numerics.relaxation.shapes import flatten
from raybust.numerics.relaxation.steps import Affine, MaxPool, Rectifier, Step, Sum

__all__ = [
    "Affine",
    "Bound",
    "Box",
    "MaxPool",
    "Rectifier",
    "Setting",
    "Statistics",
    "Step",
    "Sum",
    "ball",
    "between",
    "certified_margin",
    "enclose",
    "flatten",
    "margins",
    "nominal",
    "rectified",
    "register",
    "trace",
]

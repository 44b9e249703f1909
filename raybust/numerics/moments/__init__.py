"""Propagates the mean and covariance of Gaussian input noise through an unmodified network.

After Zhen, Chakraborty and Singh (CVPR 2021, arXiv:2104.05888). `trace` a network, `propagate`
images; `register` adds a layer's rule. All results are estimates for training and screening, not
certificates.
"""

from raybust.numerics.moments.covariance import Convolution, Covariance, Mode, Pooling, Rules
from raybust.numerics.moments.layers import register
from raybust.numerics.moments.margin import (
    SCREENING,
    linear_score,
    margin_hinge,
    margin_score,
    moment_acr,
    probability_cross_entropy,
    probability_hinge,
    radius_hinge,
    screening_radii,
)
from raybust.numerics.moments.propagation import LogitMoments, contenders, propagate, trace
from raybust.numerics.moments.rectifier import (
    expected_relu,
    mean_relu_covariance,
    relu_covariance,
    relu_variance,
)
from raybust.numerics.moments.shapes import flatten
from raybust.numerics.moments.state import Moments

__all__ = [
    "SCREENING",
    "Convolution",
    "Covariance",
    "LogitMoments",
    "Mode",
    "Moments",
    "Pooling",
    "Rules",
    "contenders",
    "expected_relu",
    "flatten",
    "linear_score",
    "margin_hinge",
    "margin_score",
    "mean_relu_covariance",
    "moment_acr",
    "probability_cross_entropy",
    "probability_hinge",
    "propagate",
    "radius_hinge",
    "register",
    "relu_covariance",
    "relu_variance",
    "screening_radii",
    "trace",
]

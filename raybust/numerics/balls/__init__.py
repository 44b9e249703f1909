"""Norm balls: draws from Lp balls, and threat models, what an attacker may do to an image. Part of
numerics: tensors in, tensors out.
"""

from raybust.numerics.balls.sampling import ball, impulses, lp_noise, squares
from raybust.numerics.balls.source import Source, normal, select, uniform
from raybust.numerics.balls.threat import Norm, Threat

__all__ = [
    "Norm",
    "Source",
    "Threat",
    "ball",
    "impulses",
    "lp_noise",
    "normal",
    "select",
    "squares",
    "uniform",
]

"""Norm balls: random points of Lp balls, and threat models."""

from raybust.numerics.balls.sampling import impulses, lp_noise, squares
from raybust.numerics.balls.source import Source, normal, select, uniform
from raybust.numerics.balls.threat import Norm, Threat

__all__ = [
    "Norm",
    "Source",
    "Threat",
    "impulses",
    "lp_noise",
    "normal",
    "select",
    "squares",
    "uniform",
]

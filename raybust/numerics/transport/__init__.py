"""Optimal transport between small point clouds, for the squared Euclidean cost: couplings, the
Wasserstein geodesic that they give, closed forms of Gaussians, and the pairs of a labeled batch.
Part of numerics: tensors in, tensors out.
"""

from raybust.numerics.transport.coupling import (
    assignment,
    assignments,
    check_plan,
    full_plan,
    sinkhorn,
    squared_distances,
)
from raybust.numerics.transport.curves import Curves, climb, jittered, slope
from raybust.numerics.transport.gaussian import bures_geodesic, bures_map, gaussian_distance
from raybust.numerics.transport.geodesic import (
    barycenter,
    displacement,
    interpolate,
    project,
    sinkhorn_barycenter,
    variation,
)
from raybust.numerics.transport.pairs import Paths, class_cycle, halves, join, match

__all__ = [
    "Curves",
    "Paths",
    "assignment",
    "assignments",
    "barycenter",
    "bures_geodesic",
    "bures_map",
    "check_plan",
    "class_cycle",
    "climb",
    "displacement",
    "full_plan",
    "gaussian_distance",
    "halves",
    "interpolate",
    "jittered",
    "join",
    "match",
    "project",
    "sinkhorn",
    "sinkhorn_barycenter",
    "slope",
    "squared_distances",
    "variation",
]

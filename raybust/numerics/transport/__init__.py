"""Optimal transport between small point clouds, for the squared Euclidean cost: couplings, the
Wasserstein geodesic that they give, closed forms of Gaussians, and the pairs of a labeled batch.
Part of numerics: tensors in, tensors out.
"""

from raybust.numerics.transport.bures import (
    bures_geodesic,
    bures_map,
    gaussian_distance,
    mean_classifier_accuracy,
)
from raybust.numerics.transport.coupling import (
    assignment,
    assignments,
    check_plan,
    full_plan,
    sinkhorn,
    squared_distances,
)
from raybust.numerics.transport.curves import Curves, between, climb, jittered, slope
from raybust.numerics.transport.interpolation import (
    barycenter,
    displacement,
    interpolate,
    project,
    sinkhorn_barycenter,
    variation,
)
from raybust.numerics.transport.location import (
    climbed,
    decoded_accuracy,
    grid_of,
    losses_at,
    reach,
    worst_of_grid,
)
from raybust.numerics.transport.pairs import Paths, class_cycle, coupled, halves, join, match
from raybust.numerics.transport.spaces import (
    Space,
    feature_cost,
    latent_space,
    penultimate,
    pixel_space,
)

__all__ = [
    "Curves",
    "Paths",
    "Space",
    "assignment",
    "assignments",
    "barycenter",
    "between",
    "bures_geodesic",
    "bures_map",
    "check_plan",
    "class_cycle",
    "climb",
    "climbed",
    "coupled",
    "decoded_accuracy",
    "displacement",
    "feature_cost",
    "full_plan",
    "gaussian_distance",
    "grid_of",
    "halves",
    "interpolate",
    "jittered",
    "join",
    "latent_space",
    "losses_at",
    "match",
    "mean_classifier_accuracy",
    "penultimate",
    "pixel_space",
    "project",
    "reach",
    "sinkhorn",
    "sinkhorn_barycenter",
    "slope",
    "squared_distances",
    "variation",
    "worst_of_grid",
]

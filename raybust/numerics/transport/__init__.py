"""Optimal transport between small point clouds with squared Euclidean cost.

Couplings, Wasserstein geodesics and the worst location on them, closed forms for Gaussians,
pairings of a labeled batch, and the spaces in which its images are mixed.
"""

from raybust.numerics.transport.along import along
from raybust.numerics.transport.bures import (
    bures_geodesic,
    bures_map,
    gaussian_distance,
    mean_classifier_accuracy,
)
from raybust.numerics.transport.coupling import assignments, squared_distances
from raybust.numerics.transport.curves import Curves, between, climb, jittered, slope
from raybust.numerics.transport.entropic import entropic_plan, projection
from raybust.numerics.transport.interpolation import interpolate, variation
from raybust.numerics.transport.location import (
    climbed,
    decoded_accuracy,
    grid_of,
    losses_at,
    reach,
    worst_of_grid,
)
from raybust.numerics.transport.pairs import (
    Group,
    Paths,
    class_cycle,
    coupled,
    halves,
    join,
    match,
    on_host_with,
    solved,
)
from raybust.numerics.transport.rounds import Stored, gathered, opposite, stacked
from raybust.numerics.transport.spaces import (
    Counter,
    Space,
    decoding,
    feature_cost,
    latent_space,
    penultimate,
    pixel_space,
)

__all__ = [
    "Counter",
    "Curves",
    "Group",
    "Paths",
    "Space",
    "Stored",
    "along",
    "assignments",
    "between",
    "bures_geodesic",
    "bures_map",
    "class_cycle",
    "climb",
    "climbed",
    "coupled",
    "decoded_accuracy",
    "decoding",
    "entropic_plan",
    "feature_cost",
    "gathered",
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
    "on_host_with",
    "opposite",
    "penultimate",
    "pixel_space",
    "projection",
    "reach",
    "slope",
    "solved",
    "squared_distances",
    "stacked",
    "variation",
    "worst_of_grid",
]

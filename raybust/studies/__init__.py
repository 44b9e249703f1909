"""Studies of the methods' theory: geodesic augmentation, propagated moments."""

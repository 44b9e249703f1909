"""Studies of the theory behind the methods: geodesic augmentation, propagated moments."""

"""A trained network behind HTTP, on Ray Serve."""

"""Training without Ray: the objective, the loop, the optimizer, the ranks, validation."""

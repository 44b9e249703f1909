"""Training without Ray: objective, loop, optimizer, ranks, validation and initial weights."""

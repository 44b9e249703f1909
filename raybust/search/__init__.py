"""Hyper-parameter search with Optuna, without Ray: spaces, samplers, the study."""

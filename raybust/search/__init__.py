"""Hyper-parameter search without Ray: spaces, samplers and the study, by Optuna."""

"""A trained network as a model of MLflow."""

"""A network in use: as a model of MLflow."""

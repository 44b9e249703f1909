"""A trained run in a folder, made in this process."""

import torch

from raybust import data, methods
from raybust.config import Leaf, compose, to_dict
from raybust.disk import checkpoint, runs
from raybust.training.fit import fit


def small_run(folder, **more):
    """Trains a few epochs of Gaussian noise on the digits; values by key with __ for the dot, None
    to leave one out."""
    values = {"train.epochs": 3, "model.width": 8, "method.name": "gaussian", "method.sigma": 0.25}
    values |= {"certified_fast.every": 0, "certified_fast.examples": 2, "certified_fast.n": 100}
    values |= {"out": str(folder.parent)}
    values |= {key.replace("__", "."): value for key, value in more.items()}
    given = [Leaf(key, value, "test") for key, value in values.items() if value is not None]
    config = compose(given, methods.get)
    runs.identify(folder, "train", to_dict(config))
    for progress in fit(config, data.load(config.data), torch.device("cpu")):
        name = checkpoint.folder_name(progress.epoch)
        checkpoint.commit(folder, name, progress.save, keep=2)
    return folder

"""Forty digits to train on, ten to validate, ten to test; every crop and flip allowed."""

import torch

from raybust import data
from raybust.config.inputs import Data
from raybust.data import Dataset


def few_digits():
    """Returns the first digits of scikit-learn's as a small dataset."""
    whole = data.load(Data())

    def part(start, count):
        return whole.train.select(torch.arange(start, start + count))

    return Dataset(
        "few", whole.classes, whole.shape, whole.mean, whole.std, "crop_flip",
        part(0, 40), part(40, 10), part(50, 10),
    )  # fmt: skip

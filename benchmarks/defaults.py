"""What default settings reach in five epochs: every method on several data sets.

`small_cnn`, and all else default but for the number of training images. Prints one JSON line a run:
validation accuracy, or why it failed.

    python benchmarks/defaults.py [NAME=FILE.npz ...]

Without a file, on the digits alone.
"""

from __future__ import annotations

import sys
import warnings

import torch
from _figures import figure

from raybust import data, methods
from raybust.config import Leaf, compose
from raybust.training.fit import fit

EPOCHS, IMAGES = 5, 2000
OWN = {"beckman"}
"""Methods that start from a trained network."""


def accuracy(settings: dict[str, object]) -> float:
    """Returns the validation accuracy at the end; NaN if training diverged."""
    config = compose([Leaf(key, value, "defaults") for key, value in settings.items()], methods.get)
    (*_, last) = fit(config, data.load(config.data), torch.device("cpu"))
    return float("nan") if last.failure else last.metrics["validation/accuracy"]


def main() -> None:
    """Prints all figures."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sets: dict[str, dict[str, object]] = {"digits": {}}
    for text in sys.argv[1:]:
        name, _, path = text.partition("=")
        sets[name] = {"data.name": "npz", "data.path": path}
    for name, where in sets.items():
        for method in methods.names():
            if method in OWN:
                continue
            settings = {
                "method.name": method, "train.epochs": EPOCHS, "data.limit": IMAGES,
                "certified_fast.every": 0, "attacked_fast.every": 0, **where,
            }  # fmt: skip
            figure(f"defaults: {method} on {name}", [accuracy(settings)], "accuracy")


if __name__ == "__main__":
    main()

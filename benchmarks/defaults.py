"""What default settings reach in five epochs: methods on several data sets and networks.

All else is default but for the number of training images, and the image size of folders. Prints one
JSON line a run: validation accuracy, NaN if training diverged.

    python benchmarks/defaults.py [NAME=FILE.npz | NAME=FOLDER ...] [--size PIXELS]
                                  [--models NAME ...] [--methods NAME ...] [--images COUNT]

Without a file or folder, on the digits; without methods, with all that need no trained network.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from _figures import figure

from raybust import data, methods
from raybust.config import Leaf, compose
from raybust.training.fit import fit

EPOCHS = 5
OWN = {"beckman"}
"""Methods that start from a trained network."""


def accuracy(settings: dict[str, object]) -> float:
    """Returns the validation accuracy at the end; NaN if training diverged."""
    config = compose([Leaf(key, value, "defaults") for key, value in settings.items()], methods.get)
    (*_, last) = fit(config, data.load(config.data), torch.device("cpu"))
    return float("nan") if last.failure else last.metrics["validation/accuracy"]


def source(path: str, size: int) -> dict[str, object]:
    """Returns the settings that read a file or a folder."""
    if path.endswith(".npz"):
        return {"data.name": "npz", "data.path": path}
    return {"data.name": "image_folder", "data.path": path, "data.image_size": size}


def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="*", metavar="NAME=PATH")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--models", nargs="+", default=["small_cnn"])
    parser.add_argument("--methods", nargs="+", default=sorted({*methods.names()} - OWN))
    parser.add_argument("--images", type=int, default=2000)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sets = {name: source(path, given.size)
            for name, _, path in (text.partition("=") for text in given.data)}  # fmt: skip
    for name, where in (sets or {"digits": {}}).items():
        for model in given.models:
            for method in given.methods:
                settings = {
                    "method.name": method, "model.name": model, "train.epochs": EPOCHS,
                    "data.limit": given.images, "certified_fast.every": 0,
                    "attacked_fast.every": 0, **where,
                }  # fmt: skip
                figure(f"defaults: {method}, {model} on {name}", [accuracy(settings)], "accuracy")


if __name__ == "__main__":
    main()

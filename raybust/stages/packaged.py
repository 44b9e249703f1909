"""Writes a trained network as a model that MLflow loads and serves.

The model has the weights, a manifest from which the network is rebuilt, and two test images as its
example. An up-to-date model is not rewritten.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import raybust
from raybust.config import to_dict
from raybust.disk import checkpoint
from raybust.disk.files import to_json
from raybust.track.model import save_model
from raybust.trained import Trained

MODEL = "model"
"""Folder of the model below that of its run, and of its artifacts in MLflow."""

_CODE = Path(raybust.__file__).parent / "pyfunc" / "loader.py"
ABOUT = "raybust.json"
"""File that says what a model was made of."""
_EXAMPLES = 2


def package(trained: Trained, saved: Path, folder: Path) -> bool:
    """Writes the model unless it is there; returns whether it was written.

    Args:
        trained: the network with its data; section `certify` gives the parameters' defaults.
        saved: its checkpoint.
        folder: of the model.

    Raises:
        OSError: the folder cannot be written.
    """
    manifest = checkpoint.read_manifest(saved)
    weights = manifest["files"][checkpoint.WEIGHTS]
    plain = to_dict(trained.config)["certify"] | {"sigma": trained.sigma}
    about = {
        "raybust": raybust.__version__,
        "weights": weights,
        "classes": list(trained.classes),
        "certify": plain,
    }
    if (folder / ABOUT).exists() and (folder / ABOUT).read_text() == to_json(about):
        return False
    manifest["files"] = {checkpoint.WEIGHTS: weights}
    manifest["config"]["certify"] = plain
    example = trained.dataset.test.fetch(range(_EXAMPLES))[0].numpy()
    with TemporaryDirectory(prefix=f".{MODEL}-", dir=folder.parent) as place:
        files = {"weights": Path(place, checkpoint.WEIGHTS)}
        files["manifest"] = Path(place, checkpoint.MANIFEST)
        os.link(saved / checkpoint.WEIGHTS, files["weights"])
        checkpoint.write_manifest(Path(place), manifest)
        made = Path(place, MODEL)
        # MLflow takes no other keys than these; an empty name is none.
        settings = {f"certify.{key}": value for key, value in plain.items()} | {"model.name": ""}
        save_model(made, _CODE, files, example, config=settings, metadata=about)
        (made / ABOUT).write_text(to_json(about))
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return True


def files_of(folder: Path) -> list[Path]:
    """Returns what a model's folder holds, MLflow's description first."""
    return sorted(folder.iterdir(), key=lambda path: (path.name != "MLmodel", path.name))

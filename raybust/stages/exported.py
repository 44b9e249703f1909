"""Exports a trained network, normalization included, with a model card.

A written network is read back, and its outputs on test images must be those of the run; one that
computes something else is removed.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raybust.disk import checkpoint, runs
from raybust.disk.files import replace_text
from raybust.disk.strip import used_weights
from raybust.errors import RequestError, WorkError
from raybust.numerics.logits import logit_change
from raybust.stages.card import CARD, card_of, function_digest
from raybust.trained import Trained

_SHARE, _TOLERANCE = 1e-4, 1e-5
"""Change of a logit that is rounding: as a share of its spread, and absolute."""
_IMAGES = 8
INSTANCES = "instances.csv"
"""What an export for verifiers asks of them."""
_WRITTEN = (checkpoint.WEIGHTS, checkpoint.MANIFEST, "model.pt2", "model.onnx", INSTANCES)


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        files: the network and its card.
        difference: the largest difference of its logits from the run's.
        notes: more about it, a line each.
    """

    files: tuple[Path, ...]
    difference: float
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Returns the output of the command line."""
        difference = f"logits differ by at most {self.difference:.2g}"
        return "\n".join([*map(str, self.files), difference, *self.notes])

    def plain(self) -> dict[str, Any]:
        """Returns the output for --json."""
        files = [str(path) for path in self.files]
        return {"files": files, "difference": self.difference, "notes": list(self.notes)}


def export(trained: Trained, form: str, folder: Path, license_name: str | None) -> Export:
    """Writes a network and its card.

    Args:
        trained: the network with its data.
        form: a key of `FORMS`.
        folder: is created; an earlier export of another network is removed.
        license_name: of the weights, for the card.

    Raises:
        RequestError: the form needs a package that is missing, the network cannot be traced, or the
            folder has files of its names that no export wrote.
        WorkError: the written network computes something else.
    """
    _check_packages(form)
    images, _ = trained.dataset.test.fetch(range(min(_IMAGES, len(trained.dataset.test))))
    folder.mkdir(parents=True, exist_ok=True)
    card = folder / CARD
    _clear(folder, card, function_digest(trained))
    with torch.no_grad():
        ours = trained.network(images)
        path, theirs = FORMS[form](trained, images, folder)
    change, allowed = logit_change(ours, theirs, _SHARE)
    if not change <= max(allowed, _TOLERANCE):
        path.unlink()
        raise WorkError(
            f"{path.name}: its logits differ from the run's by {change:.2g}; it was removed"
        )
    replace_text(card, card_of(trained, folder, license_name))
    return Export((path, card), change)


def _check_packages(form: str) -> None:
    needed = ("onnx", "onnxscript") if form in ("onnx", "verifier") else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(f"ONNX: needs {' and '.join(missing)}: pip install 'raybust[onnx]'")


def _clear(folder: Path, card: Path, digest: str) -> None:
    """Removes what an earlier export of another network wrote.

    Raises:
        RequestError: the folder has such files that no export wrote.
    """
    there = [folder / name for name in _WRITTEN if (folder / name).exists()]
    if there and not card.exists():
        raise RequestError(
            f"--to: {folder} has {there[0].name}, which no export wrote; choose another folder"
        )
    if there and digest not in card.read_text():
        for path in there:
            path.unlink()


def _safetensors(trained: Trained, images: Tensor, folder: Path) -> tuple[Path, Tensor]:
    """Writes the weights, and beside them what rebuilds the network: `raybust.load(FOLDER)`."""
    path = folder / checkpoint.WEIGHTS
    checkpoint.write_weights(trained.network.state_dict(), path)
    path.chmod(0o644)  # safetensors leaves it to the owner alone
    saved = _saved(trained)
    if saved is not None:
        manifest = checkpoint.read_manifest(saved)
        manifest["files"] = {checkpoint.WEIGHTS: checkpoint.digest_of(path)}
        checkpoint.write_manifest(folder, manifest)
    read = copy.deepcopy(trained.network)
    read.load_state_dict(checkpoint.read_weights(folder))
    return path, read(images)


def _torch(trained: Trained, images: Tensor, folder: Path) -> tuple[Path, Tensor]:
    """Writes a program of torch.export for any number of images."""
    path = folder / "model.pt2"
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.export.export(trained.network, (images,), dynamic_shapes=({0: batch},))
    except Exception as error:
        raise _untraceable(trained, error) from error
    torch.export.save(program, path)
    return path, torch.export.load(path).module()(images)


def _onnx(trained: Trained, images: Tensor, folder: Path) -> tuple[Path, Tensor]:
    """Writes ONNX for any number of images."""
    path, run = _written_onnx(trained, images, folder, ({0: torch.export.Dim("batch", min=1)},))
    return path, run(images)


def _verifier(trained: Trained, images: Tensor, folder: Path) -> tuple[Path, Tensor]:
    """Writes ONNX for one image, as verifiers expect it."""
    path, run = _written_onnx(trained, images[:1], folder, None)
    return path, torch.cat([run(image[None]) for image in images])


def _written_onnx(
    trained: Trained, images: Tensor, folder: Path, shapes: Any
) -> tuple[Path, Callable[[Tensor], Tensor]]:
    """Writes ONNX; returns the file, and what it computes."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    path = folder / "model.onnx"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, of its exporter
            torch.onnx.export(
                trained.network, (images,), str(path), input_names=["images"],
                output_names=["logits"], dynamic_shapes=shapes, dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip
    except Exception as error:
        raise _untraceable(trained, error) from error
    session = ReferenceEvaluator(onnx.load(path))

    def run(some: Tensor) -> Tensor:
        found: Any = session.run(None, {"images": some.numpy()})
        return torch.from_numpy(found[0])

    return path, run


FORMS: dict[str, Callable[[Trained, Tensor, Path], tuple[Path, Tensor]]] = {
    "safetensors": _safetensors,
    "torch": _torch,
    "onnx": _onnx,
    "verifier": _verifier,
}
"""Form of an export to what writes it; returns the file, and its logits as read back."""


def _untraceable(trained: Trained, error: Exception) -> RequestError:
    text = " ".join(str(error).split())[:200]
    return RequestError(f"{trained.name}: its network cannot be traced ({text}); use safetensors")


def _saved(trained: Trained) -> Path | None:
    """Returns the checkpoint of a run; None for a weights file."""
    is_run = (trained.folder / runs.IDENTITY).exists()
    return used_weights(trained.folder, trained.name) if is_run else None

"""Published corrupted test sets from a folder: CIFAR-10-C and CIFAR-100-C as memory-mapped arrays,
ImageNet-C and Tiny-ImageNet-C as folders of images.

Hendrycks and Dietterich (ICLR 2019, arXiv:1903.12261). Nothing is downloaded: CIFAR-10-C is at
doi.org/10.5281/zenodo.2535967, CIFAR-100-C at 3555552, ImageNet-C at 2235448.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from raybust.corruptions.metrics import COMMON, EXTRA, SEVERITIES
from raybust.data import Part, Split, Streamed, StreamedSplit
from raybust.data.decode import PLAIN
from raybust.data.listing import LeftOut, class_folders, class_images, composed
from raybust.errors import RequestError

Published = dict[str, dict[int, Part]]
"""Corruption, severity, images."""

_LAYOUTS = "CORRUPTION.npy and labels.npy (CIFAR-C), or CORRUPTION/SEVERITY/CLASS/* (ImageNet-C)"


def published(
    folder: str | Path, part: Part, *, names: Sequence[str] = (), classes: Sequence[str] = ()
) -> Published:
    """Returns the corrupted test sets of a folder, by corruption and severity.

    Args:
        folder: in the layout of CIFAR-C or ImageNet-C, whose corruptions may be one level deeper,
            as in its archives.
        part: the clean test images; image size and classes must match.
        names: corruptions to load; by default the 15 common ones, all required, and those of the 4
            extra ones that exist.
        classes: names of the dataset's classes, which label folders of images; by default in sorted
            order.

    Raises:
        RequestError: names every missing or invalid file.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise RequestError(f"corruptions.folder: there is no folder '{root}'")
    if any(root.glob("*.npy")):
        return _arrays(root, part, _wanted(names, lambda name: (root / f"{name}.npy").is_file()))
    found = {
        path.name: path for depth in ("*", "*/*") for path in root.glob(depth) if path.is_dir()
    }
    wanted = _wanted(names, found.__contains__)
    missing = [name for name in wanted if name not in found]
    if len(missing) == len(wanted):
        raise RequestError(
            f"corruptions.folder: '{root}' has no corrupted images; expected {_LAYOUTS}"
        )
    missing += [
        f"{name}/{level}"
        for name in wanted
        for level in SEVERITIES
        if name in found and not (found[name] / str(level)).is_dir()
    ]
    if missing:
        raise RequestError(f"corruptions.folder: '{root}' lacks {', '.join(missing)}")
    return {
        name: {level: _images(found[name] / str(level), part, classes) for level in SEVERITIES}
        for name in wanted
    }


def _wanted(names: Sequence[str], there: Callable[[str], bool]) -> list[str]:
    return list(names) or [*COMMON, *(name for name in EXTRA if there(name))]


def _arrays(root: Path, part: Part, names: Sequence[str]) -> Published:
    missing = [f"{name}.npy" for name in ("labels", *names) if not (root / f"{name}.npy").is_file()]
    if missing:
        raise RequestError(f"corruptions.folder: '{root}' lacks {', '.join(missing)}")
    wrong: list[str] = []
    loaded = {}
    for name in ("labels", *names):
        try:  # copy on write: torch wants writable memory, but the files must not change
            loaded[name] = np.load(root / f"{name}.npy", mmap_mode="c", allow_pickle=False)
        except (ValueError, OSError, EOFError):
            wrong.append(f"{name}.npy (not an array)")
    if wrong:
        raise RequestError(f"corruptions.folder: '{root}' has wrong files: {', '.join(wrong)}")
    labels = loaded.pop("labels")
    count, rest = divmod(len(labels), len(SEVERITIES)) if labels.ndim == 1 else (0, 1)
    if rest or not count or labels.dtype.kind not in "iu":
        raise RequestError(
            f"{root / 'labels.npy'}: got {labels.dtype} of shape {labels.shape}, expected integers "
            "of shape (5 N,)"
        )
    channels, height, width = part.shape
    shape = (len(labels), height, width, channels)
    wrong = [
        f"{name}.npy ({array.dtype} of shape {array.shape})"
        for name, array in loaded.items()
        if array.dtype != np.uint8 or array.shape != shape
    ]
    if wrong:
        raise RequestError(
            f"corruptions.folder: '{root}' has wrong files: {', '.join(wrong)}; expected uint8 of "
            f"shape {shape}"
        )
    blocks = torch.from_numpy(labels.astype(np.int64)).view(len(SEVERITIES), count)
    if isinstance(part, Split) and len(part) == count and not (blocks == part.labels).all():
        raise RequestError(f"{root / 'labels.npy'}: belongs to another dataset, labels differ")
    return {
        name: {
            level: Split(
                torch.from_numpy(array[(level - 1) * count : level * count]).permute(0, 3, 1, 2),
                blocks[level - 1],
                torch.arange(count),
            )
            for level in SEVERITIES
        }
        for name, array in loaded.items()
    }


def _images(folder: Path, part: Part, classes: Sequence[str]) -> StreamedSplit:
    left = LeftOut()
    folders = class_folders(folder)
    names = list(classes) or list(folders)
    numbers = {name: number for number, name in enumerate(map(composed, names))}
    strange = [name for name in folders if name not in numbers]
    if strange or not folders:
        found = f"the classes {', '.join(strange[:5])}" if strange else "no classes"
        raise RequestError(f"{folder}: has {found}, expected the classes of the dataset")
    files = [
        (os.path.relpath(file, folder), numbers[name])
        for name, images in class_images(folders, left).items()
        for file in images
    ]
    return StreamedSplit(
        folder,
        tuple(file for file, _ in files),
        torch.tensor([label for _, label in files]),
        torch.arange(len(files)),
        part.shape[1],
        part.decoding if isinstance(part, Streamed) else PLAIN,
    )

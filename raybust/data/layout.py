"""The top folders of a data set of image files: which parts it has, and what to do if it has none.

A dry run checks them too. Only folders are listed here; `raybust.data.folder` lists the images in
them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from raybust.data.listing import ENDINGS, LeftOut, class_folders, hidden, shown
from raybust.errors import RequestError

TINY = Path("val", "val_annotations.txt")
PLACES = "places365_train_standard.txt"
VALIDATION = ("val", "valid", "validation")
_LAYOUTS = (
    "train/CLASS/* with val/CLASS/* (or valid, validation, test), Tiny ImageNet's "
    "val/val_annotations.txt, or the lists and folders of Places365"
)
_SHOWN = 5


def check_layout(root: Path) -> None:
    """Checks the folders of a data set and lists no images.

    Raises:
        RequestError: no known layout, or a part has a class that the training part lacks.
    """
    if (root / PLACES).is_file():
        return
    left = LeftOut()
    classes = tuple(training_folders(root, left))
    if not (root / TINY).is_file():
        parts_of(root, classes, left)


def training_folders(root: Path, left: LeftOut) -> dict[str, Path]:
    """Returns the class folders of the training part, by class; there is at least one.

    Args:
        root: the data set's folder.
        left: counts what is left out.

    Raises:
        RequestError: there is none; the message says what is there instead.
    """
    if not (root / "train").is_dir():
        raise RequestError(f"data.path: '{root}' has no folder 'train'; {_instead(root)}")
    folders = class_folders(root / "train", left)
    if not folders:
        raise RequestError(f"{root / 'train'}: has no class folders; expected {_LAYOUTS}")
    return folders


def parts_of(
    root: Path, classes: Sequence[str], left: LeftOut
) -> tuple[dict[str, dict[str, Path]], dict[str, dict[str, Path]]]:
    """Returns the class folders of the validation part and of the test part, by its name; at least
    one of them is there.

    Args:
        root: the data set's folder.
        classes: of the training part.
        left: notes the parts that are left out.

    Raises:
        RequestError: there is neither, there are two validation parts, or a class is unknown.
    """
    found = {}
    for name in (*VALIDATION, "test"):
        there = class_folders(root / name, left)
        strange = [one for one in there if one not in classes]
        if there and len(strange) == len(there) and name == "test":
            left.parts.append(f"'test' has no class folders of the training part ({strange[0]})")
        elif strange:
            raise RequestError(
                f"{root / name}: has the class '{strange[0]}', which '{root / 'train'}' lacks; "
                "expected the same class folders in both"
            )
        elif there:
            found[name] = there
        elif (root / name).is_dir() and any((root / name).iterdir()):
            left.parts.append(f"'{name}' has no class folders")
    own = [name for name in VALIDATION if name in found]
    if len(own) > 1:
        raise RequestError(
            f"data.path: '{root}' has the validation parts {' and '.join(own)}; keep one of them"
        )
    if not found:
        raise RequestError(
            f"data.path: '{root}' has class folders in neither {', '.join(VALIDATION)} nor test; "
            f"{_respelled(_folders(root)) or f'expected {_LAYOUTS}'}"
        )
    test = {"test": found["test"]} if "test" in found else {}
    return {name: found[name] for name in own}, test


def _instead(root: Path) -> str:
    """Returns what a folder without the part `train` holds, and what to do about it."""
    there = _folders(root)
    if any(folder.name.lower() == "train" for folder in there):
        return _respelled(there)
    classes = [
        shown(folder.name)
        for folder in there
        if any(file.name.lower().endswith(ENDINGS) for file in folder.iterdir())
    ]
    if not classes:
        return f"expected {_LAYOUTS}"
    names = ", ".join(classes[:_SHOWN]) + ", ..." * (len(classes) > _SHOWN)
    return (
        f"it holds {len(classes)} folder{'s' * (len(classes) != 1)} of images ({names}); if these"
        " are classes, split the images of each into train/CLASS and test/CLASS: docs/data.md has"
        " the few lines of Python under 'No split yet?'"
    )


def _respelled(folders: Sequence[Path]) -> str:
    """Returns the advice to rename the parts whose names are in capitals; "" without such."""
    known = ("train", "test", *VALIDATION)
    names = [one.name for one in folders if one.name.lower() in known and one.name not in known]
    if not names:
        return ""
    found, meant = (
        " and ".join(map(repr, given)) for given in (names, [name.lower() for name in names])
    )
    return f"did you mean {meant}? Rename {found}: names of parts are in lower case"


def _folders(root: Path) -> list[Path]:
    """Returns the readable folders in a folder, in order."""
    there = [one for one in sorted(root.iterdir()) if one.is_dir() and not hidden(one.name)]
    return [one for one in there if os.access(one, os.R_OK | os.X_OK)]

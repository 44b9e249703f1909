"""Which files of a folder are images of which class: each real folder once, no hidden, system or
leftover files, alike for training, test and corruption folders. What is left out is counted.

The same rules hold for every part of a data set.
"""

from __future__ import annotations

import functools
import os
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from raybust.errors import RequestError

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
_SYSTEM = {
    "__macosx", "@eadir", "@tmp", "@recycle", "#recycle", "$recycle.bin", "lost+found",
    "system volume information", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip
_SHOWN = 4


@dataclass
class LeftOut:
    """What a listing left out, and where it looked.

    Attributes:
        hidden: hidden and system files and folders.
        repeated: links to folders that are listed already.
        loose: images beside the class folders, which have no class.
        others: files that are no images, by ending.
        parts: folders that hold no labeled images, and why.
        listed: folders whose entries were listed, and files that name images.
        links: images that are links.
    """

    hidden: int = 0
    repeated: int = 0
    loose: int = 0
    others: Counter[str] = field(default_factory=Counter)
    parts: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    links: set[str] = field(default_factory=set)

    def notes(self) -> list[str]:
        """Returns what was left out, a phrase each."""
        found = []
        if self.hidden:
            found.append(f"{self.hidden} hidden or system files and folders")
        if self.repeated:
            found.append(f"{self.repeated} links to folders that are listed already")
        if self.loose:
            found.append(f"{self.loose} images beside the class folders, which have no class")
        for ending, count in sorted(self.others.items()):
            found.append(f"{count} files {ending or 'without an ending'}")
        return [*found, *self.parts]


def hidden(name: str) -> bool:
    """Returns whether a file or folder of that name is not data."""
    return name.startswith(".") or name.lower() in _SYSTEM


def class_folders(folder: Path, left: LeftOut | None = None) -> dict[str, Path]:
    """Returns the class folders of a folder by their names in Unicode's composed form (NFC), in
    order; none where there is no such folder.

    Raises:
        RequestError: a name that is not UTF-8, or two that differ in their Unicode form alone.
    """
    if not folder.is_dir():
        return {}
    if left is not None:
        left.listed.append(str(folder))
    found: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        if hidden(entry.name):
            if left is not None:
                left.hidden += 1
            continue
        if not entry.is_dir():
            if left is not None and entry.name.lower().endswith(ENDINGS):
                left.loose += 1
            continue
        name = composed(entry.name)
        if not readable(name):
            raise RequestError(
                f"{shown(folder)}: the class folder {shown(entry.name)} has a name that is not "
                "UTF-8; rename it"
            )
        if name in found:
            raise RequestError(
                f"{folder}: has two class folders '{name}' that differ in their Unicode form "
                "alone; join them"
            )
        found[name] = entry
    return dict(sorted(found.items()))


def class_images(folders: Mapping[str, Path], left: LeftOut) -> dict[str, list[str]]:
    """Returns the paths of the images in the class folders of one part and below them, sorted, by
    class.

    Every real folder counts once: links to a parent, to another class or to a folder that is
    listed already add nothing.

    Args:
        folders: the class folders, by class.
        left: counts what is left out.

    Raises:
        RequestError: two classes are one real folder, or a class has no images.
    """
    real = {name: _real(folder) for name, folder in folders.items()}
    by_real = {place: name for name, place in real.items()}
    seen = set(by_real)
    found = {}
    for name, folder in folders.items():
        if by_real[real[name]] != name:
            raise RequestError(
                f"{folder.parent}: the classes '{name}' and '{by_real[real[name]]}' are the same "
                "folder; remove one of the links"
            )
        seen |= {_real(above) for above in folder.absolute().parents}
        found[name] = images_below(folder, seen, left)
        if not found[name]:
            there = LeftOut()
            images_below(folder, set(), there)
            instead = f"; it holds {', '.join(there.notes()[:_SHOWN])}" if there.notes() else ""
            raise RequestError(
                f"{folder}: has no images{instead}; expected files that end in {', '.join(ENDINGS)}"
            )
    return found


def shared_images(first: Iterable[str], second: Iterable[str], links: Container[str]) -> int:
    """Returns how many images of one part are also images of another: reached through links.

    Args:
        first: paths of one part.
        second: paths of the other.
        links: paths that are links to files.
    """
    real = functools.cache(os.path.realpath)

    def places(paths: Iterable[str]) -> set[tuple[str, str]]:
        found = set()
        for path in paths:
            folder, _, name = (real(path) if path in links else path).rpartition("/")
            found.add((real(folder), name))
        return found

    return len(places(first) & places(second))


def images_below(folder: Path, seen: set[tuple[int, int]], left: LeftOut) -> list[str]:
    """Returns the paths of the images of a folder and of the folders in it that are not in `seen`,
    sorted.

    Args:
        folder: where to look.
        seen: device and inode of folders that are listed already; those in `folder` are added.
        left: counts what is left out.

    Raises:
        RequestError: a folder cannot be read.
    """
    found: list[str] = []
    waiting = [str(folder)]
    while waiting:
        place = waiting.pop()
        left.listed.append(place)
        inside = []
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        inside.append(entry.name)
                    elif hidden(entry.name):
                        left.hidden += 1
                    elif entry.name.lower().endswith(ENDINGS):
                        found.append(entry.path)
                        if entry.is_symlink():
                            left.links.add(entry.path)
                    else:
                        left.others[shown(os.path.splitext(entry.name)[1].lower())] += 1
        except OSError as error:
            raise RequestError(f"{shown(place)}: cannot be read: {error.strerror}") from None
        waiting += reversed([os.path.join(place, name) for name in sorted(inside)
                             if _is_new(place, name, seen, left)])  # fmt: skip
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_new(place: str, name: str, seen: set[tuple[int, int]], left: LeftOut) -> bool:
    """Returns whether a folder is data that is not listed yet, and counts it if it is not."""
    if hidden(name):
        left.hidden += 1
        return False
    real = _real(Path(place, name))
    if real in seen:
        left.repeated += 1
        return False
    seen.add(real)
    return True


def composed(name: str) -> str:
    """Returns a name in Unicode's composed form, in which macOS and Linux agree."""
    return unicodedata.normalize("NFC", name)


def readable(name: str) -> bool:
    """Returns whether a name is text that files and databases can hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(name: object) -> str:
    """Returns a name that may not be UTF-8 as it can be printed."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def _real(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino

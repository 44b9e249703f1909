"""The file of counts of an evaluation under corruption: a header, then a line per share of the
examples.

It survives a kill at any byte and records digests of the evaluated images.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybust import identity
from raybust.corruptions.counting import Settings, contents
from raybust.corruptions.results import Cell, Corrupted, merge
from raybust.data import Part
from raybust.disk.files import replace_text
from raybust.disk.rowlog import OtherProtocolError
from raybust.errors import RequestError
from raybust.numerics.lp_sets import Row, named

VERSION = 2
"""Version of the file's format."""

_SECONDS, _SHARE = 1.0, 0.01
"""Time budget for verifying the images: a second, or this share of the work."""


def read_counts(
    path: Path, sets: Sequence[str] = (), shape: tuple[int, int, int] | None = None
) -> Corrupted:
    """Returns all counts in a file.

    Args:
        path: the file of counts.
        sets: names of the sets of Lp noises; without a shape they are left out.
        shape: (C, H, W) of the images, on which the sets depend.

    Raises:
        RequestError: it is gone, or holds no counts.
    """
    try:
        _, *lines = path.read_text(encoding="utf-8").splitlines()
        shares = {share["share"]: share["cells"] for share in map(json.loads, lines)}
        rows = {} if shape is None else {name: named(name, shape).rows for name in sets}
        parts = [Corrupted(cells=tuple(map(Cell.parse, one)), sets=rows) for one in shares.values()]
        return merge(parts)
    except OSError:
        raise RequestError(f"{path}: the counts are gone; run `raybust evaluate`") from None
    except (ValueError, TypeError, KeyError) as error:
        raise RequestError(f"{path}: holds no counts ({error})") from None


@dataclass(frozen=True)
class Share:
    """The counts of one share of the examples.

    Attributes:
        number: number of the share.
        found: its counts.
        images: digests of its published images by corruption and severity, see `contents`.
        seconds: time spent.
    """

    number: int
    found: Corrupted
    images: Mapping[str, str]
    seconds: float

    def line(self) -> str:
        """Returns the share as a line of the file, with its newline."""
        plain = {
            "share": self.number,
            "seconds": round(self.seconds, 3),
            "images": self.images,
            "cells": [cell.plain() for cell in self.found.cells],
        }
        return json.dumps(plain) + "\n"


class CountsLog:
    """Counts on disk, which can be opened, created and appended to.

    Attributes:
        path: the file.
        header: its first line, JSON.
        shares: finished shares, by number.
    """

    def __init__(
        self, path: Path, protocol: Mapping[str, Any], sets: dict[str, tuple[Row, ...]]
    ) -> None:
        """Opens or creates the counts of a protocol; drops a torn last line.

        Args:
            path: the file; its folder is created.
            protocol: the expected header, as plain data.
            sets: the protocol's named sets of Lp noises.

        Raises:
            OtherProtocolError: the counts belong to another function, images, labels or protocol.
            RequestError: the file is not a file of counts.
        """
        self.path, self._protocol = path, protocol
        self.shares: dict[int, Share] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if not whole:
            self.header = json.dumps(protocol)
            replace_text(path, self.header + "\n")
            return
        first, *lines = whole.decode(errors="replace").splitlines()
        self.header = first
        self._check_header()
        for number, line in enumerate(lines, start=2):
            self._read(number, line, sets)
        if len(whole) < len(content):
            os.truncate(path, len(whole))

    def append(self, share: Share) -> None:
        """Appends a share and syncs it to disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(share.line())
            file.flush()
            os.fsync(file.fileno())
        self.shares[share.number] = share

    def check_images(self, part: Part, settings: Settings, classes: Sequence[str]) -> None:
        """Compares the published images of the shares with those in the folder now: all of them if
        that takes less than a second or a hundredth of the work, else as many as time permits.

        Args:
            part: the clean images.
            settings: which corruptions.
            classes: names of the classes.

        Raises:
            OtherProtocolError: they differ.
        """
        work = sum(share.seconds for share in self.shares.values())
        until = time.perf_counter() + max(_SECONDS, _SHARE * work)
        count = self._protocol["shares"]
        for share in self.shares.values():
            there = contents(part, settings, classes=classes, shard=(share.number, count))
            for name, digest in there:
                if share.images.get(name) != digest:
                    raise OtherProtocolError([f"other images or labels ({name})"], self.path)
                if time.perf_counter() > until:
                    return

    def _check_header(self) -> None:
        try:
            fields = identity.fields_of(self.header)
        except ValueError:
            raise RequestError(
                f"{self.path}: exists and is not a file of counts by raybust; move it away"
            ) from None
        differ = identity.differences(fields, self._protocol)
        if differ:
            raise OtherProtocolError(differ, self.path)

    def _read(self, number: int, line: str, sets: dict[str, tuple[Row, ...]]) -> None:
        try:
            plain = json.loads(line)
            cells = tuple(map(Cell.parse, plain["cells"]))
            share = Share(
                int(plain["share"]),
                Corrupted(cells=cells, sets=sets),
                plain["images"],
                float(plain["seconds"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise RequestError(
                f"{self.path}: line {number} holds no counts ({error}); --no-resume sets the "
                "file aside and starts over"
            ) from None
        wrong = next((cell for cell in cells if not cell.sound), None)
        if wrong is not None or not 0 <= share.number < self._protocol["shares"]:
            what = f"share {share.number}" if wrong is None else f"{wrong.name}, {wrong.level:g}"
            raise RequestError(
                f"{self.path}: line {number} was changed after it was written ({what}: its counts "
                "contradict each other); --no-resume sets the file aside and starts over"
            )
        self.shares.setdefault(share.number, share)

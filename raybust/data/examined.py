"""Reads every image of a dataset once: what cannot be read, sizes, classes, and images that are in
two parts, byte for byte or by their looks.

Looks are compared by a difference hash: the image as 9 x 8 gray pixels, one bit for each pair of
neighbors in a row (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions",
2010). Hashes that differ in at most three of 64 bits look alike (our choice).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from raybust.data.splits import Dataset, Part, Split
from raybust.data.streamed import Streamed
from raybust.errors import RequestError

PARTS = ("train", "validation", "test")
_ALIKE = 3
_BANDS = 4
"""Equal parts of a hash: of two that differ in less bits than there are parts, one is equal."""
_FLAT = 8
"""Fewest bits of either value for looks to be compared: below, an image has too little structure
(our choice)."""
_CHUNK = 256
_SHOWN = 5


@dataclass
class Examined:
    """What one part of a dataset holds.

    Attributes:
        names: where the images are.
        labels: of the images.
        digests: SHA-256 of each image as it is stored; b"" where it cannot be read.
        looks: difference hash of each image, None where it has too little structure.
        sides: shorter side of each image in its file, 0 where it cannot be read.
        broken: what is wrong with images that cannot be read.
    """

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    looks: list[int | None] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """What is noteworthy about a dataset.

    Attributes:
        facts: sizes and classes, a line each.
        broken: a line for each image that cannot be read.
        doubts: images that are in two parts, or twice with different labels; a line each.
    """

    facts: tuple[str, ...]
    broken: tuple[str, ...]
    doubts: tuple[str, ...]


def examine(dataset: Dataset, told: Callable[[int], object]) -> Found:
    """Reads all images of a dataset.

    Args:
        dataset: its three parts.
        told: called with the number of images that were read since the last call.

    Raises:
        RequestError: a shard has changed, or a store does not answer: no image's own fault.
    """
    parts = {name: _read(getattr(dataset, name), told) for name in PARTS}
    facts = [_sizes(name, part, dataset.shape[1]) for name, part in parts.items()]
    facts += [_classes(name, part, dataset.classes) for name, part in parts.items()]
    doubts = _contradictions(parts)
    for one, other in (("test", "train"), ("test", "validation"), ("validation", "train")):
        doubts += _shared(parts, one, other)
    broken = tuple(text for part in parts.values() for text in part.broken)
    return Found(tuple(facts), broken, tuple(doubts))


def save_sheet(images: Tensor, target: Path, columns: int = 8) -> None:
    """Writes images side by side into a PNG file.

    Args:
        images: (B, C, H, W) in [0, 1], C 1 or 3.
        target: the file.
        columns: images in a row.
    """
    images = F.pad(images.expand(-1, 3, -1, -1), (1, 1, 1, 1), value=1.0)
    missing = -len(images) % columns
    images = torch.cat([images, torch.ones(missing, *images.shape[1:])])
    rows = [torch.cat(list(row), 2) for row in images.split(columns)]
    pixels = (torch.cat(rows, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(target)


def look(image: Image.Image) -> int | None:
    """Returns the difference hash of an image, 64 bits; None if it has too little structure."""
    gray = image.convert("L").resize((9, 8), Image.Resampling.BILINEAR)
    pixels = np.asarray(gray, dtype=np.int16)
    bits = (pixels[:, 1:] > pixels[:, :-1]).flatten()
    if not _FLAT <= int(bits.sum()) <= len(bits) - _FLAT:
        return None
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _read(part: Part, told: Callable[[int], object]) -> Examined:
    found = Examined(labels=part.labels.tolist())
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(part), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(part)))
            for name, digest, one, side, wrong in pool.map(_reader(part), chunk):
                found.names.append(name)
                found.digests.append(digest)
                found.looks.append(one)
                found.sides.append(side)
                if wrong:
                    found.broken.append(wrong)
            told(len(chunk))
    return found


_Row = tuple[str, bytes, int | None, int, str]


def _reader(part: Part) -> Callable[[int], _Row]:
    """Returns what reads one image of a part: name, digest, look, shorter side, and what is
    wrong."""
    if isinstance(part, Streamed):
        return lambda position: _read_stored(part, position)
    return lambda position: _read_array(part, position)


def _read_stored(part: Streamed, position: int) -> _Row:
    name, digest = part.named(position), part.fingerprint(position)
    try:
        image = part.picture(position)
    except RequestError as error:
        return name, b"", None, 0, str(error)
    return name, digest, look(image), min(image.size), ""


def _read_array(part: Split, position: int) -> _Row:
    pixels = part.images[position]
    scaled = (pixels.to(torch.float32) * (255 / part.scale)).round().to(torch.uint8)
    array = scaled.permute(1, 2, 0).numpy()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    digest = hashlib.sha256(pixels.contiguous().numpy().tobytes()).digest()
    return f"image {int(part.indices[position])}", digest, look(image), min(image.size), ""


def _sizes(name: str, part: Examined, size: int) -> str:
    sides = sorted(side for side in part.sides if side)
    if not sides:
        return f"{name}: {len(part.names)} images, none of which can be read"
    small = sum(side < size for side in sides)
    less = f", {small} below the network's {size}" if small else ""
    return (
        f"{name}: {len(part.names)} images; shorter sides {sides[0]} to {sides[-1]} pixels, median"
        f" {sides[len(sides) // 2]}{less}"
    )


def _classes(name: str, part: Examined, classes: tuple[str, ...]) -> str:
    counts = torch.tensor(part.labels).bincount(minlength=len(classes))
    low, high = int(counts.argmin()), int(counts.argmax())
    if counts[low] == counts[high]:
        return f"{name}: {int(counts[low])} images of each of {len(classes)} classes"
    return (
        f"{name}: {int(counts[low])} ({classes[low]}) to {int(counts[high])} ({classes[high]})"
        f" images a class, {int((counts == 0).sum())} of {len(classes)} classes empty"
    )


def _contradictions(parts: dict[str, Examined]) -> list[str]:
    """Returns a line if equal images have different labels, whatever their parts."""
    seen: dict[bytes, tuple[str, int]] = {}
    pairs = []
    for part in parts.values():
        for name, digest, label in zip(part.names, part.digests, part.labels, strict=True):
            other, known = seen.setdefault(digest, (name, label))
            if digest and known != label:
                pairs.append((other, name))
    return _line("equal images have different labels", pairs)


def _shared(parts: dict[str, Examined], one: str, other: str) -> list[str]:
    """Returns lines about the images of one part that are in another, or look like one there."""
    ours, theirs = parts[one], parts[other]
    at = {digest: name for digest, name in zip(theirs.digests, theirs.names, strict=True) if digest}
    same = [
        (name, at[digest])
        for name, digest in zip(ours.names, ours.digests, strict=True)
        if digest in at
    ]
    equal = {name for name, _ in same}
    near = [pair for pair in _alike(ours, theirs) if pair[0] not in equal]
    return [
        *_line(f"{one} images are in the {other} part, byte for byte", same),
        *_line(f"further {one} images look like one of the {other} part", near),
    ]


def _alike(ours: Examined, theirs: Examined) -> Iterator[tuple[str, str]]:
    """Yields the images of one part that look like one of another, with the first of these."""
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, one in enumerate(theirs.looks):
        for key in _bands(one):
            buckets[key].append(number)
    for name, one in zip(ours.names, ours.looks, strict=True):
        for number in (number for key in _bands(one) for number in buckets.get(key, ())):
            other = theirs.looks[number]
            if one is not None and other is not None and (one ^ other).bit_count() <= _ALIKE:
                yield name, theirs.names[number]
                break


def _bands(one: int | None) -> Iterable[tuple[int, int]]:
    if one is None:
        return ()
    width = 64 // _BANDS
    return ((band, one >> (band * width) & (2**width - 1)) for band in range(_BANDS))


def _line(what: str, pairs: list[tuple[str, str]]) -> list[str]:
    if not pairs:
        return []
    shown = "; ".join(f"{name} = {other}" for name, other in pairs[:_SHOWN])
    return [f"{len(pairs)} {what}: {shown}{'; ...' * (len(pairs) > _SHOWN)}"]

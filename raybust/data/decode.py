"""One image file to RGB bytes, whatever its mode: the values scaled by their type's range, never
clipped, transparency on a background, EXIF's orientation applied.

A file whose range is unknown (32-bit integers, floats outside [0, 1]) is refused by name.
Training, test and corruption folders decode alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from raybust.config.inputs import Data
from raybust.errors import RequestError

_SIXTEEN = 65535
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_ORIENTATION = 0x0112
_INVERTED = 0  # TIFF's PhotometricInterpretation "WhiteIsZero"
_PHOTOMETRIC = 0x0106
_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""Orientation to the transposition that undoes it."""
_DARK = 32
_HEADERS = 32
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Decoding:
    """How files become pixels.

    Attributes:
        background: red, green and blue behind transparent pixels, in [0, 1].
        orientation: whether EXIF's orientation is applied.
    """

    background: tuple[float, float, float] = (0.5, 0.5, 0.5)
    orientation: bool = True


PLAIN = Decoding()
Encoded = tuple[Path, BinaryIO | None]
"""A file, or the name and the bytes of an image that has none of its own."""


def decoding_of(config: Data) -> Decoding:
    """Returns how the section `data` decodes image files."""
    background = config.background
    red, green, blue = background if len(background) == 3 else background * 3
    return Decoding((red, green, blue), config.orientation)


class TooLargeError(RequestError):
    """An image has more pixels than allowed."""


class UnreadableError(RequestError):
    """A file is no image, or its content is damaged."""


def decode(
    path: Path, how: Decoding = PLAIN, content: BinaryIO | None = None, most: int | None = None
) -> Image.Image:
    """Returns the image of a file as RGB; of an animation the first frame.

    Args:
        path: the file, or its name in errors.
        how: background and orientation.
        content: what to read in place of the file.
        most: pixels at most, checked before they are decoded.

    Raises:
        TooLargeError: it has more than `most` pixels.
        UnreadableError: it is no image.
        RequestError: its values have no known range.
    """
    try:
        with Image.open(path if content is None else content) as file:
            if most is not None and file.width * file.height > most:
                raise TooLargeError(
                    f"{path}: has {file.width} x {file.height} pixels, expected at most {most:,}"
                )
            _scale_clear_gray(file)
            tags = _tags(file)
            image = ImageOps.exif_transpose(file) if how.orientation else file
            if not how.orientation and file.format == "TIFF" and tags.get(_ORIENTATION) in _BACK:
                image.load()  # Pillow turns a TIFF when it loads it
                image = image.transpose(_BACK[tags[_ORIENTATION]])
            return _rgb(image, file.format, path, how, tags)
    except RequestError:
        raise
    except _BROKEN as error:
        reason = "no image" if content is not None else " ".join(str(error).split())
        raise UnreadableError(
            f"{path}: cannot be read as an image ({reason}); replace or remove it"
        ) from None


def rgb(image: Image.Image) -> Image.Image:
    """Returns an image in memory as RGB, as `decode` returns that of a file.

    Raises:
        RequestError: its values have no known range.
    """
    return _rgb(image, image.format, Path("image"), PLAIN, {})


def _scale_clear_gray(file: Image.Image) -> None:
    """Scales the transparent gray of a PNG of 2 or 4 bits as Pillow scales its pixels: to 8."""
    tile = getattr(file, "tile", ())
    bits = {"L;2": 2, "L;4": 4}.get(tile[0].args) if tile and file.format == "PNG" else None
    if bits and isinstance(file.info.get("transparency"), int):
        file.info["transparency"] *= 255 // (2**bits - 1)


def _tags(file: Image.Image) -> dict[int, Any]:
    """Returns the tags of a TIFF that pixels depend on; none of other files."""
    if file.format != "TIFF":
        return {}
    tags: Any = getattr(file, "tag_v2", {})
    return {key: tags[key] for key in (_ORIENTATION, _PHOTOMETRIC) if key in tags}


def _rgb(
    image: Image.Image, form: str | None, path: Path, how: Decoding, tags: Mapping[int, Any]
) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = _scaled(image, form, path)
        if tags.get(_PHOTOMETRIC) == _INVERTED:
            values = 255 - values
        pixels = np.repeat(values[..., None], 3, axis=2)
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            pixels[np.asarray(image) == clear] = [round(255 * value) for value in how.background]
        return Image.fromarray(pixels)
    if image.mode in _ALPHA or "transparency" in image.info:
        color = tuple(round(255 * value) for value in how.background)
        behind = Image.new("RGBA", image.size, (*color, 255))
        behind.alpha_composite(image.convert("RGBA"))
        return behind.convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image, form: str | None, path: Path) -> np.ndarray:
    """Returns the bytes (H, W) of an image of 16-bit or 32-bit values."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise RequestError(
                f"{path}: has floats from {low:g} to {high:g}, expected [0, 1]; scale them, or "
                "store 8 or 16 bits"
            )
        return np.rint(values * 255).astype(np.uint8)
    if image.mode == "I" and form not in ("PNG", "PPM"):
        raise RequestError(
            f"{path}: has 32-bit integers, whose range the file does not state; store 8 or 16 bits"
        )
    return np.rint(values * (255 / _SIXTEEN)).astype(np.uint8)


def survey(files: Iterable[Encoded], how: Decoding = PLAIN) -> list[str]:
    """Returns what is unusual about some files, a phrase each with its count; reads headers, and
    pixels only of files whose range has to be seen.

    Raises:
        RequestError: a file's values have no known range.
    """
    found: Counter[str] = Counter()
    total, brightest = 0, -1
    for path, content in files:
        total += 1
        try:
            with Image.open(content or path) as file:
                found.update(_traits(file, how))
                deep = file.mode.startswith(("I", "F"))
        except _BROKEN:
            continue  # reported when the image is needed
        if deep:
            brightest = max(brightest, int(np.asarray(decode(path, how, content)).max()))
    notes = [f"{found[trait]} of {total} {trait}" for trait in sorted(found)]
    if 0 <= brightest < _DARK:
        notes.append(
            f"those of more than 8 bits are nearly black (at most {brightest} of 255); if they hold"
            " 10 or 12 bits, scale them to 16"
        )
    return notes


def enlarged(files: Sequence[Encoded], size: int) -> list[str]:
    """Returns a note if images become much larger than their files: if no shorter side exceeds half
    of `size` (our choice) in up to 32 of the files, evenly spaced; reads headers only.

    Args:
        files: images; those that cannot be read do not count.
        size: of the shorter side that they get, in pixels.
    """
    sizes = set()
    for path, content in files[:: -(-len(files) // _HEADERS) or 1]:
        try:
            with Image.open(content or path) as file:
                sizes.add(file.size)
        except _BROKEN:
            continue  # reported when the image is needed
    sides = sorted({min(one) for one in sizes})
    if not sides or 2 * sides[-1] > size:
        return []
    if len(sizes) == 1:
        width, height = sizes.pop()
        what = f"files are {width} x {height} pixels"
    else:
        span = " to ".join(map(str, dict.fromkeys((sides[0], sides[-1]))))
        what = f"the shorter sides of the files looked at are {span} pixels"
    return [
        f"{what}, enlarged to data.image_size={size}; set data.image_size={sides[-1]} to keep"
        " their resolution"
    ]


def _traits(file: Image.Image, how: Decoding) -> list[str]:
    traits = []
    if file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM")):
        traits.append("with 16 bits a pixel: scaled by 65535")
    elif file.mode == "F":
        traits.append("with floats in [0, 1]")
    elif file.mode in ("CMYK", "YCCK"):
        traits.append("in CMYK: converted to RGB")
    if file.mode in _ALPHA or "transparency" in file.info:
        shown = ", ".join(f"{value:g}" for value in how.background)
        traits.append(f"with transparency: on data.background=[{shown}]")
    if file.getexif().get(_ORIENTATION, 1) not in (0, 1):
        done = "applied" if how.orientation else "ignored"
        traits.append(f"with an EXIF orientation: {done} (data.orientation)")
    if getattr(file, "n_frames", 1) > 1:
        traits.append("with several frames: the first is used")
    return traits

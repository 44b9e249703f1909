"""One image file to RGB bytes, whatever its mode: the values scaled by their type's range, never
clipped, transparency on a background, EXIF's orientation applied.

A file whose range is unknown (32-bit integers, floats outside [0, 1]) is refused by name. Stage
`data` of the arrow; training, test and corruption folders decode alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from raybust.errors import RequestError

_SIXTEEN = 65535
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_ORIENTATION = 0x0112
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


def decode(path: Path, how: Decoding = PLAIN) -> Image.Image:
    """Returns the image of a file as RGB; of an animation the first frame.

    Args:
        path: the file.
        how: background and orientation.

    Raises:
        RequestError: it is no image, or its values have no known range.
    """
    try:
        with Image.open(path) as file:
            turned = how.orientation and "exif" in file.info
            image = ImageOps.exif_transpose(file) if turned else file
            return _rgb(image, file.format, path, how)
    except RequestError:
        raise
    except _BROKEN as error:
        raise RequestError(
            f"{path}: cannot be read as an image ({' '.join(str(error).split())}); replace or "
            "remove it"
        ) from None


def _rgb(image: Image.Image, form: str | None, path: Path, how: Decoding) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scaled(image, form, path)).convert("RGB")
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
            f"{path}: has 32-bit integers, whose range no file tells; store 8 or 16 bits"
        )
    return np.rint(values * (255 / _SIXTEEN)).astype(np.uint8)


def survey(paths: Iterable[Path], how: Decoding = PLAIN) -> list[str]:
    """Returns what is unusual about some files, a phrase each with its count; reads headers, and
    pixels only of files whose range has to be seen.

    Raises:
        RequestError: a file's values have no known range.
    """
    found: Counter[str] = Counter()
    total = 0
    for path in paths:
        total += 1
        try:
            with Image.open(path) as file:
                found.update(_traits(file, how))
                unsure = file.mode in ("I", "F")
        except _BROKEN:
            continue  # told when the image is needed
        if unsure:
            decode(path, how)
    return [f"{found[trait]} of {total} {trait}" for trait in sorted(found)]


def _traits(file: Image.Image, how: Decoding) -> list[str]:
    traits = []
    if file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM")):
        traits.append("with 16 bits a pixel: scaled by 65535")
    elif file.mode == "F":
        traits.append("with floats in [0, 1]")
    elif file.mode in ("CMYK", "YCCK"):
        traits.append("in CMYK: converted to RGB")
    numbers = file.mode.startswith(("I", "F"))
    if file.mode in _ALPHA or ("transparency" in file.info and not numbers):
        shown = ", ".join(f"{value:g}" for value in how.background)
        traits.append(f"with transparency: on data.background=[{shown}]")
    if "exif" in file.info and file.getexif().get(_ORIENTATION, 1) not in (0, 1):
        done = "applied" if how.orientation else "ignored"
        traits.append(f"with an EXIF orientation: {done} (data.orientation)")
    if getattr(file, "n_frames", 1) > 1:
        traits.append("with several frames: the first is used")
    return traits

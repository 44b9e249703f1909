"""What a request asks: images from JSON, multipart files, npy or an image file, and how to answer.

Whatever is wrong with it is one line with its status code. Nothing is decoded before its size is
known, and nothing is kept.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raybust.data.decode import PLAIN, Decoding, TooLargeError, decode
from raybust.data.given import images_of
from raybust.data.pictures import fitted
from raybust.errors import RequestError

Shape = tuple[int, int, int]

FIELDS: dict[str, dict[str, Any]] = {
    "radius": {"type": "number", "minimum": 0, "description": "the only radius of interest"},
    "n": {"type": "integer", "minimum": 1, "description": "draws at most"},
    "alpha": {"type": "number", "description": "probability that the answer is wrong, at most"},
    "deadline_ms": {"type": "number", "minimum": 0, "description": "answer by then"},
    "plain": {"type": "boolean", "description": "without noise: no radius"},
    "audit": {"type": "boolean", "description": "also return what recomputes the answer"},
}
"""Fields of a request beside the images, as OpenAPI describes them."""
_MOST_PIXELS = 50_000_000
"""Of an image file, before it is decoded (our choice)."""
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


class BadRequestError(Exception):
    """A request that cannot be answered.

    Args:
        code: HTTP status, 4xx.
        text: one line.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Attributes:
        shape: (C, H, W) of an image.
        n: default and largest number of draws.
        alpha: default.
        images: at most in a request.
        size: bytes of a request at most.
        decoding: how image files are decoded, as in training.
    """

    shape: Shape
    n: int
    alpha: float
    images: int
    size: int
    decoding: Decoding = PLAIN


@dataclass(frozen=True)
class Question:
    """A request.

    Attributes:
        images: float32 (N, C, H, W) in [0, 1].
        names: of the images.
        plain: without noise.
        ask: see `Replica.certify`.
    """

    images: np.ndarray
    names: tuple[str, ...]
    plain: bool
    ask: dict[str, Any]


def question_of(
    images: np.ndarray, names: tuple[str, ...], given: Mapping[str, Any], limits: Limits
) -> Question:
    """Returns a checked question.

    Args:
        images: float32 (N, C, H, W).
        names: of the images.
        given: the other fields, as JSON or as text.
        limits: of the server.

    Raises:
        BadRequestError: a field is unknown or out of range, or there are no images or too many.
    """
    strange = sorted(set(given) - set(FIELDS))
    if strange:
        raise BadRequestError(422, f"unknown field {strange[0]!r}; known: {', '.join(FIELDS)}")
    _check_count(len(images), limits)
    n = _number(given, "n", limits.n, 1, limits.n)
    if n != int(n):
        raise BadRequestError(422, f"n: got {given['n']!r}, expected a whole number of draws")
    ask: dict[str, Any] = {
        "n": int(n),
        "alpha": _number(given, "alpha", limits.alpha, 1e-12, 0.5),
        "audit": _flag(given, "audit"),
    }
    if given.get("radius") is not None:
        ask["radius"] = _number(given, "radius", 0.0, 0.0, math.inf)
    if given.get("deadline_ms") is not None:
        ask["seconds"] = _number(given, "deadline_ms", 0.0, 0.0, 1e9) / 1000
    return Question(images, names, _flag(given, "plain"), ask)


def from_json(body: bytes, given: Mapping[str, Any], limits: Limits) -> Question:
    """Returns the question of a JSON object with `images`, nested lists of numbers; its fields win
    over query parameters.

    Raises:
        BadRequestError: it is none.
    """
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise BadRequestError(400, f"not JSON: {error}") from None
    if not isinstance(fields, dict) or "images" not in fields:
        raise BadRequestError(422, 'expected a JSON object with "images"')
    try:
        array = np.asarray(fields.pop("images"), dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        raise BadRequestError(422, "images: expected nested lists of numbers of one size") from None
    images = _images(array, limits.shape)
    return question_of(images, _numbered(len(images)), {**given, **fields}, limits)


def from_npy(body: bytes, given: Mapping[str, Any], limits: Limits) -> Question:
    """Returns the question of an array in numpy's format; the other fields are query parameters.

    Raises:
        BadRequestError: it is none.
    """
    try:
        array = np.load(io.BytesIO(body), allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive")
    except (ValueError, EOFError, OSError) as error:
        raise BadRequestError(400, f"not an array of numpy: {error}") from None
    images = _images(array, limits.shape)
    return question_of(images, _numbered(len(images)), given, limits)


def from_files(
    files: list[tuple[str, bytes]], given: Mapping[str, Any], limits: Limits
) -> Question:
    """Returns the question of image files, resized to the network's images.

    Args:
        files: name and content of each.
        given: the other fields.
        limits: of the server.

    Raises:
        BadRequestError: one is no image, or has too many pixels.
    """
    _check_count(len(files), limits)
    images = []
    for name, content in files:
        try:
            image = decode(Path(name), limits.decoding, io.BytesIO(content), _MOST_PIXELS)
        except TooLargeError as error:
            raise BadRequestError(413, str(error)) from None
        except RequestError as error:
            raise BadRequestError(415, str(error)) from None
        images.append(fitted(image, limits.shape).numpy().astype(np.float32) / 255)
    return question_of(np.stack(images), tuple(name for name, _ in files), given, limits)


def _images(array: np.ndarray, shape: Shape) -> np.ndarray:
    """Returns an array as images float32 (N, C, H, W), read as `raybust.predict` reads arrays."""
    try:
        part = images_of(array, shape)
    except RequestError as error:
        raise BadRequestError(422, str(error)) from None
    if part.shape != shape:
        raise BadRequestError(
            422, f"images: got shape {array.shape}, expected (N, {', '.join(map(str, shape))})"
        )
    found: np.ndarray = part.fetch(range(len(part)))[0].numpy()
    return found


def _check_count(count: int, limits: Limits) -> None:
    """Rejects a request without images, or with too many."""
    if not count:
        raise BadRequestError(422, "images: got none, expected at least one")
    if count > limits.images:
        raise BadRequestError(
            413, f"images: got {count}, expected at most {limits.images} in a request"
        )


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _number(given: Mapping[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = given.get(key)
    if value is None:
        return default
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not low <= found <= high:
        raise BadRequestError(422, f"{key}: got {value!r}, expected {low:g} to {high:g}")
    return found


def _flag(given: Mapping[str, Any], key: str) -> bool:
    value = given.get(key, False)
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text not in (*_TRUE, *_FALSE):
        raise BadRequestError(422, f"{key}: got {value!r}, expected true or false")
    return text in _TRUE

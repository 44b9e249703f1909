"""Every mode of image file gives the values that it holds, or one line that names it."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from raybust.config.inputs import Data
from raybust.corruptions import COMMON, published
from raybust.data import load
from raybust.data.decode import PLAIN, Decoding, decode, survey
from raybust.errors import RequestError

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOR = np.stack([RAMP, RAMP.T, 255 - RAMP], 2)


def gray(values):
    return np.repeat(np.asarray(values)[..., None], 3, 2)


def with_alpha(color, alpha):
    return Image.fromarray(np.concatenate([color, alpha[..., None]], 2), "RGBA")


HALF = np.where(RAMP > 100, 255, 0).astype(np.uint8)
OPAQUE = HALF[..., None] == 255
FORMS = {
    "gray.png": (Image.fromarray(RAMP), gray(RAMP)),
    "bits.png": (Image.fromarray(RAMP > 100), gray(HALF)),
    "palette.png": (Image.fromarray(RAMP).convert("P"), gray(RAMP)),
    "16 bits.png": (Image.fromarray(RAMP.astype(np.uint16) * 257), gray(RAMP)),
    "16 bits.tiff": (Image.fromarray(RAMP.astype(np.uint16) * 257), gray(RAMP)),
    "16 bits.pgm": (Image.fromarray(RAMP.astype(np.uint16) * 257), gray(RAMP)),
    "floats.tiff": (Image.fromarray(RAMP.astype(np.float32) / 255), gray(RAMP)),
    "color.bmp": (Image.fromarray(COLOR), COLOR),
    "color.gif": (Image.fromarray(COLOR).quantize(64), None),
    "alpha.png": (with_alpha(COLOR, HALF), np.where(OPAQUE, COLOR, 128)),
    "white shape.png": (
        with_alpha(np.full_like(COLOR, 255), HALF),
        np.where(OPAQUE, 255, 128) * np.ones(3),
    ),
    "gray alpha.png": (
        with_alpha(gray(RAMP), HALF).convert("LA"),
        np.where(OPAQUE, gray(RAMP), 128),
    ),
    "alpha.webp": (with_alpha(np.full_like(COLOR, 200), HALF), None),
    "cmyk.tiff": (Image.fromarray(COLOR).convert("CMYK"), COLOR),
}


@pytest.mark.parametrize("name", FORMS)
def test_values_are_those_of_the_file(tmp_path, name):
    image, expected = FORMS[name]
    image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    found = np.asarray(decode(tmp_path / name), dtype=int)
    if expected is None:
        with Image.open(tmp_path / name) as file:
            whole = np.asarray(file.convert("RGBA"), dtype=int)
        expected = np.where(whole[..., 3:] == 255, whole[..., :3], 128)
    assert found.shape == (8, 8, 3)
    assert np.abs(found - expected).max() <= 1


def test_transparent_colors_of_a_palette_are_on_the_background(tmp_path):
    Image.fromarray(RAMP).convert("P").save(tmp_path / "p.png", transparency=0)
    found = np.asarray(decode(tmp_path / "p.png", Decoding(background=(1.0, 0.0, 0.0))))
    assert found[0, 0].tolist() == [255, 0, 0]
    assert found[7, 7].tolist() == [252, 252, 252]


def test_the_orientation_of_exif_is_applied_unless_told_otherwise(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    for ending in ("jpg", "png", "webp"):
        path = tmp_path / f"turned.{ending}"
        Image.fromarray(COLOR[:4]).save(path, exif=exif)
        assert decode(path).size == (4, 8)
        assert decode(path, Decoding(orientation=False)).size == (8, 4)
        told = ["1 of 1 with an EXIF orientation: applied (data.orientation)"]
        assert survey([(path, None)]) == told


UNKNOWN = {
    "integers.tiff": (RAMP.astype(np.int32) * 100_000, "32-bit integers"),
    "large floats.tiff": (RAMP.astype(np.float32), r"floats from 0 to 252, expected \[0, 1\]"),
    "negative floats.tiff": (RAMP.astype(np.float32) / 255 - 0.5, "floats from -0.5"),
    "nan.tiff": (np.full((8, 8), np.nan, np.float32), "floats from nan"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_values_without_a_known_range_are_refused_by_name_before_anything_starts(tmp_path, name):
    values, message = UNKNOWN[name]
    for part in ("train", "val"):
        for kind in ("cat", "dog"):
            (tmp_path / part / kind).mkdir(parents=True)
            Image.fromarray(values).save(tmp_path / part / kind / name)
    with pytest.raises(RequestError, match=message) as told:
        load(Data(name="image_folder", path=str(tmp_path), image_size=8))
    assert name in str(told.value)


def test_a_survey_counts_what_is_unusual(tmp_path):
    paths = []
    for name, (image, _) in FORMS.items():
        image.save(tmp_path / name)
        paths.append(tmp_path / name)
    frames = [Image.fromarray(COLOR), Image.fromarray(255 - COLOR)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "torn.png").write_bytes(b"no image")
    files = [*paths, tmp_path / "moving.gif", tmp_path / "torn.png"]
    found = survey([(path, None) for path in files], PLAIN)
    total = len(FORMS) + 2
    assert sorted(found) == [
        f"1 of {total} in CMYK: converted to RGB",
        f"1 of {total} with floats in [0, 1]",
        f"1 of {total} with several frames: the first is used",
        f"3 of {total} with 16 bits a pixel: scaled by 65535",
        f"4 of {total} with transparency: on data.background=[0.5, 0.5, 0.5]",
    ]


@pytest.mark.parametrize("name", ["16 bits.png", "alpha.png", "cmyk.tiff"])
def test_training_test_and_corruption_folders_decode_alike(tmp_path, name):
    image, _ = FORMS[name]
    places = [tmp_path / "data" / part for part in ("train", "val")]
    places += [tmp_path / "C" / kind / str(level) for kind in COMMON for level in range(1, 6)]
    for place in places:
        for kind in ("cat", "dog"):
            (place / kind).mkdir(parents=True)
            image.save(place / kind / name)
            image.save(place / kind / f"second {name}")
    data = load(
        Data(name="image_folder", path=str(tmp_path / "data"), image_size=8, validation=0.5)
    )
    corrupted = published(tmp_path / "C", data.test, classes=data.classes)["fog"][3]
    expected = data.test.fetch([0])[0]
    assert torch.equal(data.train.fetch([0])[0], expected)
    assert torch.equal(corrupted.fetch([0])[0], expected)


@pytest.mark.parametrize("form", ["8 bits", "16 bits", "floats"])
def test_a_tiff_in_which_white_is_zero_is_read_upright(tmp_path, form):
    """As X-ray scanners write them."""
    values = {
        "8 bits": RAMP, "16 bits": RAMP.astype(np.uint16) * 257,
        "floats": RAMP.astype(np.float32) / 255,
    }[form]  # fmt: skip
    Image.fromarray(values).save(tmp_path / "scan.tiff", tiffinfo={262: 0})
    stored = Image.open(tmp_path / "scan.tiff").tag_v2[262]
    assert stored == 0
    found = np.asarray(decode(tmp_path / "scan.tiff"), dtype=int)
    # Pillow inverts 8 bits when it writes them, and nothing else.
    expected = RAMP.astype(int) if form == "8 bits" else 255 - RAMP.astype(int)
    assert np.abs(found - gray(expected)).max() <= 1


@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_orientation_of_a_tiff_is_applied_or_not_as_asked(tmp_path, orientation):
    """Pillow turns a TIFF when it loads it, asked or not."""
    path = tmp_path / "turned.tiff"
    Image.fromarray(COLOR[:, :5]).save(path, tiffinfo={274: orientation})
    plain = tmp_path / "plain.jpg"
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(COLOR[:, :5]).save(plain, exif=exif, quality=100, subsampling=0)
    upright = np.asarray(decode(plain), dtype=int)
    assert np.abs(np.asarray(decode(path), dtype=int) - upright).max() <= 12
    stored = np.asarray(decode(path, Decoding(orientation=False)), dtype=int)
    assert np.array_equal(stored, COLOR[:, :5])
    assert "an EXIF orientation: applied" in " ".join(survey([(path, None)]))
    assert "ignored" in " ".join(survey([(path, None)], Decoding(orientation=False)))


def test_an_orientation_after_the_pixels_of_a_png_is_applied(tmp_path):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    exif = Image.Exif()
    exif[274] = 6
    rows = b"".join(b"\0" + row.tobytes() for row in COLOR)
    parts = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)),
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")),
        chunk(b"IEND", b""),
    ]
    (tmp_path / "late.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert np.array_equal(np.asarray(decode(tmp_path / "late.png")), np.rot90(COLOR, -1))
    assert "an EXIF orientation: applied" in " ".join(survey([(tmp_path / "late.png", None)]))


def test_a_transparent_gray_of_16_bits_is_on_the_background(tmp_path):
    deep = RAMP.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png", transparency=int(deep[0, 3]))
    found = np.asarray(decode(tmp_path / "deep.png"), dtype=int)
    assert np.array_equal(found, np.where(gray(RAMP[0, 3] == RAMP), 128, gray(RAMP)))


@pytest.mark.parametrize(("bits", "told"), [(10, True), (12, True), (16, False)])
def test_few_bits_in_a_file_of_16_are_told(tmp_path, bits, told):
    deep = (RAMP.astype(np.uint16) * 257) >> (16 - bits)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert ("are nearly black" in " ".join(survey([(tmp_path / "deep.png", None)]))) == told


def png_of_few_bits(depth, row, clear):
    """Returns a gray PNG with a transparent gray; Pillow writes 8 bits only."""

    def chunk(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    bits = "".join(f"{value:0{depth}b}" for value in row).ljust(8, "0")
    line = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">IIBBBBB", len(row), 1, depth, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"tRNS", struct.pack(">H", clear)),
             (b"IDAT", zlib.compress(line)), (b"IEND", b""))  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(("depth", "clear"), [(1, 1), (2, 2), (4, 5), (4, 0)])
def test_a_transparent_gray_of_few_bits_is_on_the_background(tmp_path, depth, clear):
    row = [clear, 1 - clear if depth == 1 else 1]
    (tmp_path / "few.png").write_bytes(png_of_few_bits(depth, row, clear))
    found = np.asarray(decode(tmp_path / "few.png", Decoding(background=(0.5, 0.5, 0.5))))
    assert found[0, 0].tolist() == [128, 128, 128]
    assert found[0, 1].tolist() == [row[1] * 255 // (2**depth - 1)] * 3

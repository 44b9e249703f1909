"""`raybust data check` on a data set with known faults."""

import json
import shutil
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from test_packed import folder, pack

from raybust.data.examined import look


def scene(seed, size=(64, 48)):
    """A smooth picture, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def scenes(root):
    for part, first in (("train", 0), ("test", 100)):
        for at, kind in enumerate(("ape", "bee")):
            (root / part / kind).mkdir(parents=True)
            for number in range(8):
                scene(first + 10 * at + number).save(root / part / kind / f"{number}.png")
    return root


def check(cli, tmp_path, place, *more):
    done = cli("data", "check", place, "data.image_size=8", "data.validation=0.25",
               f"--out={tmp_path / 'runs'}", "--json", *more)  # fmt: skip
    return done.code, json.loads(done.out), done.err


@pytest.mark.parametrize("form", ["image_folder", "parquet", "webdataset"])
def test_a_sound_set_has_nothing_to_tell(cli, tmp_path, form):
    root = scenes(tmp_path / "folder")
    place = root if form == "image_folder" else pack(form, root, tmp_path / "packed")
    code, found, _ = check(cli, tmp_path, place)
    assert (code, found["unreadable"], found["doubts"]) == (0, [], [])
    assert "test: 16 images; shorter sides 48 to 48 pixels, median 48" in found["facts"]
    assert "test: 8 images of each of 2 classes" in found["facts"]
    assert found["understood"][0].startswith(f"data  {form}")
    with Image.open(found["picture"]) as sheet:
        assert sheet.size == (80, 20)


@pytest.mark.parametrize("form", ["image_folder", "parquet", "webdataset"])
def test_faults_are_found_and_named(cli, tmp_path, form):
    root = scenes(tmp_path / "folder")
    shutil.copy(root / "train" / "ape" / "3.png", root / "test" / "ape" / "copy.png")
    with Image.open(root / "train" / "bee" / "5.png") as image:
        image.resize((32, 24)).save(root / "test" / "bee" / "again.jpg", quality=70)
    shutil.copy(root / "test" / "ape" / "0.png", root / "test" / "bee" / "other.png")
    content = (root / "test" / "bee" / "1.png").read_bytes()
    (root / "test" / "bee" / "1.png").write_bytes(content[: len(content) // 2])
    place = root if form == "image_folder" else pack(form, root, tmp_path / "packed")
    code, found, err = check(cli, tmp_path, place)
    assert code == 1
    assert err.endswith("raybust: 1 images cannot be read\n")
    (broken,) = found["unreadable"]
    assert "cannot be read as an image" in broken
    assert ("test/bee/1.png" if form == "image_folder" else "test") in broken
    told = " ".join(found["doubts"])
    assert "1 test images are in the" in told
    assert "1 further test images look like one of the" in told
    assert "1 equal images have different labels" in told
    assert "test: 9 (ape) to 10 (bee) images a class, 0 of 2 classes empty" in found["facts"]
    assert "test: 19 images; shorter sides 24 to 48 pixels, median 48" in found["facts"]


def test_arrays_are_examined_too(cli, tmp_path):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (12, 8, 8), dtype=np.uint8)
    kinds = np.arange(12) % 2
    test = np.concatenate([images[:2], draw.integers(0, 256, (2, 8, 8), dtype=np.uint8)])
    np.savez(tmp_path / "set.npz", x_train=images, y_train=kinds, x_test=test, y_test=kinds[:4])
    code, found, _ = check(cli, tmp_path, tmp_path / "set.npz")
    assert code == 0
    count = sum(int(line.split()[0]) for line in found["doubts"] if "byte for byte" in line)
    assert count == 2


def test_random_pictures_do_not_look_alike_and_resized_ones_do():
    """Of 64 bits that are fair coins, two hashes differ in at most 3 with probability 2.4e-15."""
    looks = [look(scene(seed)) for seed in range(300)]
    assert None not in looks
    assert min((one ^ other).bit_count() for one, other in combinations(looks, 2)) > 3
    for seed in range(50):
        again = scene(seed).resize((40, 30), Image.Resampling.BILINEAR)
        assert (look(again) ^ look(scene(seed))).bit_count() <= 3
    assert look(Image.new("L", (64, 64), 9)) is None


def test_bad_requests(cli, tmp_path):
    folder(tmp_path / "folder")
    for arguments, told in [
        (("a", "b"), "got a b, expected one PATH"),
        ((tmp_path / "absent",), "is not an npz file|there is no file"),
        ((tmp_path / "folder", "data.name=digits"), "data.path: got"),
    ]:
        done = cli("data", "check", *arguments, f"--out={tmp_path}")
        assert done.code == 2
        assert any(text in done.err for text in told.split("|"))
        assert done.err.count("\n") == 1

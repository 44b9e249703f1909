import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raybust.config.inputs import Data
from raybust.data import StreamedSplit, load
from raybust.errors import RequestError


def paint(path, color, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def imagenet(root, parts=("train", "val")):
    for part in parts:
        for k, name in enumerate(("cat", "dog")):
            for n in range(6 if part == "train" else 2):
                paint(root / part / name / f"{n}.png", (100 * k + n, len(part), 0))
    return root


def config(root, **options):
    return Data(name="image_folder", path=str(root), image_size=8, **options)


def colors(split):
    images, _ = split.fetch(range(len(split)))
    return (images[:, :, 4, 4] * 255).round().int().tolist()


@pytest.mark.parametrize("part", ["val", "validation", "test"])
def test_class_folders(tmp_path, part):
    data = load(config(imagenet(tmp_path, ("train", part)), validation=0.25))
    assert data.classes == ("cat", "dog")
    assert data.shape == data.train.shape == (3, 8, 8)
    assert (data.augment, data.mean) == ("none", (0.485, 0.456, 0.406))
    assert colors(data.test) == [
        [0, len(part), 0],
        [1, len(part), 0],
        [100, len(part), 0],
        [101, len(part), 0],
    ]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.test.indices.tolist() == [0, 1, 2, 3]
    assert (len(data.train), len(data.validation)) == (9, 3)
    for split in (data.train, data.validation):
        for color, label, index in zip(
            colors(split), split.labels.tolist(), split.indices.tolist(), strict=True
        ):
            assert color == [100 * label + index % 6, 5, 0]
            assert label == index // 6


SQUARE = "files are 28 x 28 pixels, enlarged to data.image_size=224; set data.image_size=28 to keep"
SPAN = (
    "the shorter sides of the files looked at are 20 to 40 pixels, enlarged to data.image_size=224;"
    " set data.image_size=40 to keep"
)


@pytest.mark.parametrize(
    ("sizes", "side", "told"),
    [
        ([(28, 28)], 224, SQUARE), ([(28, 28)], 56, SQUARE.replace("224", "56")),
        ([(28, 28)], 55, ""), ([(28, 28)], 28, ""), ([(30, 20), (40, 90)], 224, SPAN),
        ([(28, 28), (300, 200)], 224, ""), ([(500, 375)], 224, ""),
    ],
)  # fmt: skip
def test_files_far_below_the_image_size_are_told(tmp_path, sizes, side, told):
    for number, size in enumerate(sizes * 4):
        for part, kind in (("train", "cat"), ("train", "dog"), ("test", "cat"), ("test", "dog")):
            paint(tmp_path / part / kind / f"{number}.png", (number, 0, 0), size)
    (tmp_path / "train" / "cat" / "torn.png").write_bytes(b"no image")
    data = load(Data(name="image_folder", path=str(tmp_path), image_size=side))
    noted = [note for note in data.notes if "enlarged" in note]
    assert [note.startswith(told) for note in noted] == [True] * bool(told)


def test_gray_files_become_three_channels_and_gray_arrays_keep_one(tmp_path):
    """As docs/data.md says."""
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            for number in range(6):
                path = tmp_path / part / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 10 * number).save(path)
    found = load(config(tmp_path))
    assert (found.shape, found.mean) == ((3, 8, 8), (0.485, 0.456, 0.406))
    gray = (np.arange(12 * 64).reshape(12, 8, 8) % 256).astype(np.uint8)
    kinds = np.arange(12) % 2
    np.savez(tmp_path / "gray.npz", x_train=gray, y_train=kinds, x_test=gray, y_test=kinds)
    arrays = load(Data(name="npz", path=str(tmp_path / "gray.npz"), validation=0.25))
    own = arrays.train.fetch(range(len(arrays.train)))[0].mean().item()
    assert (arrays.shape, len(arrays.mean)) == ((1, 8, 8), 1)
    assert arrays.mean[0] == pytest.approx(own, abs=1e-5)


@pytest.mark.parametrize(("size", "augment"), [(63, "none"), (64, "crop_flip"), (224, "crop_flip")])
def test_small_images_are_not_cropped_at_random(tmp_path, size, augment):
    given = Data(name="image_folder", path=str(imagenet(tmp_path, ("train", "val"))))
    assert load(replace(given, image_size=size)).augment == augment
    assert load(replace(given, image_size=size, augment="flip")).augment == "flip"


def test_with_both_the_official_validation_part_is_kept(tmp_path):
    data = load(config(imagenet(tmp_path, ("train", "val", "test")), limit=4))
    assert [c[1] for c in colors(data.validation)] == [3] * 4
    assert [c[1] for c in colors(data.test)] == [4] * 4
    assert len(data.train) == 4
    assert data.train.labels.bincount().tolist() == [2, 2]


def test_a_test_part_without_labels_is_left_aside(tmp_path):
    imagenet(tmp_path)
    paint(tmp_path / "test" / "unlabeled.png", (9, 9, 9))
    assert [c[1] for c in colors(load(config(tmp_path)).test)] == [3] * 4


def test_tiny_imagenet(tmp_path):
    for k, name in enumerate(("n01", "n02")):
        for n in range(4):
            paint(tmp_path / "train" / name / "images" / f"{name}_{n}.png", (100 * k + n, 0, 0))
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("not an image")
    for n in range(3):
        paint(tmp_path / "val" / "images" / f"val_{n}.png", (n, 0, 0))
        paint(tmp_path / "test" / "images" / f"test_{n}.png", (200, 0, 0))
    rows = [
        "val_2.png\tn02\t0\t0\t9\t9",
        "val_0.png\tn01\t0\t0\t9\t9",
        "val_1.png\tn02\t0\t0\t9\t9",
    ]
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text("\n".join(rows) + "\n")
    data = load(config(tmp_path, validation=0.25))
    assert data.classes == ("n01", "n02")
    assert len(data.train) + len(data.validation) == 8
    assert [c[0] for c in colors(data.test)] == [2, 0, 1]
    assert data.test.labels.tolist() == [1, 0, 1]
    annotations.write_text("val_0.png\tn03\n")
    with pytest.raises(RequestError, match="names the class 'n03', which the training part lacks"):
        load(config(tmp_path))


@pytest.mark.parametrize("folder", ["data_256", "data_256_standard"])
def test_places(tmp_path, folder):
    rows = []
    for k, scene in enumerate(("airfield", "bar/indoor")):
        for n in range(4):
            paint(tmp_path / folder / scene[0] / scene / f"{n}.png", (100 * k + n, 0, 0))
            rows.append(f"/{scene[0]}/{scene}/{n}.png {k}")
    for n in range(2):
        paint(tmp_path / "val_256" / f"Places365_val_{n}.png", (n, 0, 0))
    (tmp_path / "places365_train_standard.txt").write_text("\n".join(rows))
    (tmp_path / "places365_val.txt").write_text("Places365_val_1.png 1\nPlaces365_val_0.png 0\n")
    data = load(config(tmp_path, validation=0.25))
    assert data.classes == ("a/airfield", "b/bar/indoor")
    assert [c[0] // 100 for c in colors(data.train)] == data.train.labels.tolist()
    assert [c[0] for c in colors(data.test)] == [1, 0]
    assert data.test.labels.tolist() == [1, 0]
    (tmp_path / "places365_val.txt").write_text("Places365_val_1.png\n")
    with pytest.raises(RequestError, match=r"places365_val\.txt: line 1 is 'Places365_val_1\.png'"):
        load(config(tmp_path))
    (tmp_path / "places365_val.txt").unlink()
    with pytest.raises(RequestError, match=r"lacks the list 'places365_val\.txt'"):
        load(config(tmp_path))


def test_fetch_is_resize_of_the_shorter_side_and_center_crop(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    big = Image.fromarray(pixels).resize((40, 16), Image.Resampling.NEAREST)
    big.save(tmp_path / "big.png")
    files = ("wide.png", "tall.png", "big.png")
    split = StreamedSplit(tmp_path, files, torch.arange(3), torch.arange(3), 8)
    images, labels = split.fetch(torch.tensor([0, 1, 2]))
    assert labels.tolist() == [0, 1, 2]
    expected = torch.from_numpy(pixels[:, 6:14]).permute(2, 0, 1) / 255
    assert torch.equal(images[0], expected)
    assert torch.equal(images[1], expected.transpose(1, 2))
    oracle = np.asarray(big.resize((20, 8), Image.Resampling.BILINEAR))[:, 6:14]
    assert (images[2] * 255 - torch.from_numpy(oracle.copy()).permute(2, 0, 1)).abs().max() <= 1
    assert split.fetch([])[0].shape == (0, 3, 8, 8)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_color_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("L", (8, 8), 102).convert("RGB").convert(mode).save(path)
    split = StreamedSplit(tmp_path, (path.name,), torch.zeros(1).long(), torch.zeros(1).long(), 8)
    image = split.fetch([0])[0][0]
    assert image.shape == (3, 8, 8)
    assert (image * 255 - 102).abs().max() <= 3


def test_an_unreadable_image_is_named(tmp_path):
    imagenet(tmp_path)
    file = tmp_path / "val" / "dog" / "1.png"
    for content in (b"no image", file.read_bytes()[:50], b""):
        file.write_bytes(content)
        data = load(config(tmp_path))
        with pytest.raises(RequestError, match=r"dog/1\.png: cannot be read as an image") as caught:
            data.test.fetch([0, 3])
        assert "\n" not in str(caught.value)
    data.test.fetch([0, 1, 2])


def test_digest_of_a_folder(tmp_path):
    imagenet(tmp_path)
    digest = load(config(tmp_path)).digest
    assert digest == load(config(tmp_path)).digest
    assert digest != load(config(tmp_path, split_seed=1)).digest
    paint(tmp_path / "val" / "dog" / "1.png", (1, 2, 3), (300, 200))
    assert digest != load(config(tmp_path)).digest


def test_bad_folders(tmp_path):
    with pytest.raises(RequestError, match=r"data\.path: got null"):
        load(Data(name="image_folder"))
    with pytest.raises(RequestError, match=r"there is no folder '.*absent'"):
        load(config(tmp_path / "absent"))
    with pytest.raises(RequestError, match="has no folder 'train'"):
        load(config(tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(RequestError, match="has no class folders"):
        load(config(tmp_path))
    imagenet(tmp_path, ("train",))
    with pytest.raises(RequestError, match="neither val, valid, validation nor test"):
        load(config(tmp_path))
    imagenet(tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(RequestError, match=r"train/empty: has no images"):
        load(config(tmp_path))
    (tmp_path / "train" / "empty").rmdir()
    paint(tmp_path / "val" / "cow" / "0.png", (0, 0, 0))
    with pytest.raises(RequestError, match=r"has the class 'cow', which '.*train' lacks"):
        load(config(tmp_path))


def unsplit(root, classes="abcdefg", count=10):
    for kind in classes:
        for number in range(count):
            paint(root / kind / f"{number}.png", (ord(kind), number, 0))


def test_class_folders_without_parts_are_refused_with_the_way_to_split_them(tmp_path):
    unsplit(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes").mkdir()
    expected = r"no folder 'train'; it holds 7 folders of images \(a, b, c, d, e, \.\.\.\); if .*"
    with pytest.raises(
        RequestError, match=expected + r"train/CLASS and test/CLASS.*'No split yet?"
    ):
        load(config(tmp_path))


def test_the_split_of_the_documentation_gives_a_data_set(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (code,) = re.findall(r"### No split yet\?.*?```python\n(.*?)```", page, re.DOTALL)
    unsplit(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    data = load(config("photos-split"))
    assert data.classes == tuple("abcdefg")
    assert data.test.labels.bincount().tolist() == [2] * 7
    assert len(data.train) + len(data.validation) == 56
    kept = {tuple(color) for part in (data.train, data.validation) for color in colors(part)}
    assert len(kept | {tuple(color) for color in colors(data.test)}) == 70
    first = sorted(data.test.files)
    shutil.rmtree("photos-split")
    exec(code, {})
    assert sorted(load(config("photos-split")).test.files) == first


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (("Train", "Test"), r"no folder 'train'; did you mean 'test' and 'train'\? Rename 'Test'"),
        (("TRAIN", "val"), r"no folder 'train'; did you mean 'train'\? Rename 'TRAIN': names"),
        (("train", "Test"), r"nor test; did you mean 'test'\? Rename 'Test'"),
    ],
)
def test_parts_in_capitals_are_refused_with_their_names(tmp_path, parts, told):
    with pytest.raises(RequestError, match=told):
        load(config(imagenet(tmp_path, parts)))


def test_one_class_is_refused(tmp_path):
    for part in ("train", "val"):
        paint(tmp_path / part / "cat" / "0.png", (0, 0, 0))
    with pytest.raises(RequestError, match="are of one class"):
        load(config(tmp_path))

"""What of a folder is data: each real folder once, no leftovers; what is left out is told."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from raybust.config.inputs import Data
from raybust.corruptions import COMMON, published
from raybust.data import load
from raybust.errors import RequestError


def tree(root, parts=("train", "val"), classes=("cat", "dog"), count=4, ending="png"):
    draw = np.random.default_rng(0)
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = draw.integers(0, 255, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.{ending}")
    return root


def read(root, **options):
    return load(Data(name="image_folder", path=str(root), image_size=8, validation=0.25, **options))


def total(data):
    return len(data.train) + len(data.validation)


def links(root):
    os.symlink("..", root / "train" / "cat" / "up")
    os.symlink(".", root / "train" / "cat" / "self")
    os.symlink("../dog", root / "train" / "cat" / "sideways")
    (root / "train" / "cat" / "deep").mkdir()
    os.symlink("../../..", root / "train" / "cat" / "deep" / "far up")


LEFTOVERS = (
    ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/._0.png", "@eaDir/0.png", "._0.png",
    ".thumbs/0.png", "deep/.git/0.png", "deep/@eaDir/0.png",
)  # fmt: skip


def test_every_real_folder_counts_once(tmp_path):
    links(tree(tmp_path))
    data = read(tmp_path)
    assert total(data) == 8
    assert "left out: 4 links to folders that are listed already" in data.notes


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path):
    tree(tmp_path / "store", parts=("more",))
    tree(tmp_path / "data")
    os.symlink(tmp_path / "store" / "more" / "cat", tmp_path / "data" / "train" / "cat" / "more")
    assert total(read(tmp_path / "data")) == 12


def test_two_classes_of_one_folder_are_refused(tmp_path):
    tree(tmp_path)
    os.symlink("cat", tmp_path / "train" / "lion")
    with pytest.raises(RequestError, match="classes 'cat' and 'lion' are the same folder"):
        read(tmp_path)


def test_a_part_that_is_the_training_part_is_told(tmp_path):
    tree(tmp_path, parts=("train",))
    os.symlink("train", tmp_path / "val")
    assert "warning: 8 images are in 'train' and in 'val'" in " ".join(read(tmp_path).notes)


@pytest.mark.parametrize("link", ["a folder", "a file", "two parts of one store"])
def test_images_that_are_in_two_parts_by_links_are_told(tmp_path, link):
    tree(tmp_path)
    expected = 4 if link == "a folder" else 1
    if link == "a folder":
        os.symlink("../../val/cat", tmp_path / "train" / "cat" / "more")
    elif link == "a file":
        os.symlink("../../val/cat/2.png", tmp_path / "train" / "cat" / "9.png")
    else:
        store = tree(tmp_path / "store", parts=("all",)) / "all" / "cat" / "0.png"
        for part in ("train", "val"):
            os.symlink(store, tmp_path / part / "cat" / f"from the store, {part}.png")
    assert f"warning: {expected} images are in 'train' and in 'val'" in " ".join(
        read(tmp_path).notes
    )


def test_links_to_different_images_of_one_store_are_no_overlap(tmp_path):
    store = tree(tmp_path / "store", parts=("all",)) / "all"
    for part, numbers in (("train", (0, 1)), ("val", (2, 3))):
        for kind in ("cat", "dog"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in numbers:
                file = f"{number}.png"
                os.symlink(store / kind / file, tmp_path / part / kind / file)
    assert not any("images are in" in note for note in read(tmp_path).notes)


def test_images_beside_the_class_folders_and_folders_that_are_no_part_are_told(tmp_path):
    tree(tmp_path)
    tree(tmp_path, parts=("Val", "dev"))
    for place in ("train/a.png", "train/b.JPG", "val/c.png"):
        (tmp_path / place).write_bytes(b"")
    notes = " ".join(read(tmp_path).notes)
    assert "3 images beside the class folders, which have no class" in notes
    assert "the folders 'Val', 'dev' are not used" in notes


@pytest.mark.parametrize("leftover", LEFTOVERS)
@pytest.mark.parametrize("part", ["train", "val"])
def test_leftovers_are_no_data_at_any_depth_in_any_part(tmp_path, leftover, part):
    tree(tmp_path)
    path = tmp_path / part / "cat" / leftover
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((tmp_path / "train" / "cat" / "0.png").read_bytes())
    data = read(tmp_path)
    assert (total(data), len(data.test)) == (8, 8)
    assert "left out: 1 hidden or system files and folders" in data.notes


@pytest.mark.parametrize("leftover", ["._0.png", ".ipynb_checkpoints/0.png", "@eaDir/0.png"])
def test_leftovers_are_no_data_in_a_corruption_folder(tmp_path, leftover):
    data = read(tree(tmp_path / "data"))
    for kind in COMMON:
        tree(tmp_path / "C" / kind, parts=map(str, range(1, 6)), count=1)
    for place in ("cat", ""):
        path = tmp_path / "C" / "fog" / "1" / place / leftover
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\5\x16\7")
    found = published(tmp_path / "C", data.test, classes=data.classes)["fog"]
    assert [len(found[level]) for level in range(1, 6)] == [2] * 5
    assert found[1].fetch([0, 1])[0].shape == (2, 3, 8, 8)


def test_a_corruption_folder_with_additional_classes_is_refused(tmp_path):
    data = read(tree(tmp_path / "data"))
    for kind in COMMON:
        classes = ("cat", "dog", "eel") if kind == "fog" else ("cat", "dog")
        tree(tmp_path / "C" / kind, parts=map(str, range(1, 6)), classes=classes, count=1)
    with pytest.raises(RequestError, match=r"fog/1: has the classes eel"):
        published(tmp_path / "C", data.test, classes=data.classes)


@pytest.mark.parametrize("ending", ["gif", "GIF", "webp", "jpe", "jfif"])
def test_images_of_other_endings_are_data(tmp_path, ending):
    tree(tmp_path)
    for number in range(4):
        path = tmp_path / "train" / "cat" / f"{number}.png"
        kind = {"jpe": "JPEG", "jfif": "JPEG"}.get(ending, ending.upper())
        Image.open(path).save(path.with_suffix(f".{ending}"), kind)
        path.unlink()
    data = read(tmp_path)
    assert total(data) == 8
    assert not any("files ." in note for note in data.notes)


def test_what_is_no_image_is_counted_by_its_ending(tmp_path):
    tree(tmp_path)
    for name in ("a.heic", "b.heic", "labels.csv", "README"):
        (tmp_path / "train" / "cat" / name).write_text("no image")
    notes = read(tmp_path).notes
    for text in ("2 files .heic", "1 files .csv", "1 files without an ending"):
        assert f"left out: {text}" in notes


def test_a_class_of_nothing_but_other_files_says_what_they_are(tmp_path):
    tree(tmp_path)
    for number in range(4):
        path = tmp_path / "train" / "cat" / f"{number}.png"
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(RequestError, match=r"cat: has no images; it holds 4 files \.heic"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_validation_part_has_many_names(tmp_path, name):
    data = read(tree(tmp_path, parts=("train", name, "test")))
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 8, 8)
    assert data.validation.files[0].startswith(f"{name}/")
    assert data.test.files[0].startswith("test/")
    assert "the data set's own" in data.notes[0]


def test_two_validation_parts_are_refused(tmp_path):
    tree(tmp_path, parts=("train", "val", "valid"))
    with pytest.raises(RequestError, match="parts val and valid; keep one of them"):
        read(tmp_path)


def test_a_test_part_without_labels_is_left_aside_and_told(tmp_path):
    tree(tmp_path, parts=("train", "val"))
    tree(tmp_path, parts=("test",), classes=("images",))
    data = read(tmp_path)
    assert data.test.files[0].startswith("val/")
    assert "'test' has no class folders of the training part (images)" in data.notes


def test_a_flat_test_part_is_left_aside_and_told(tmp_path):
    tree(tmp_path)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "0.png").write_bytes(b"")
    assert "'test' has no class folders" in read(tmp_path).notes


def test_a_test_part_with_one_strange_class_is_refused(tmp_path):
    tree(tmp_path)
    tree(tmp_path, parts=("test",), classes=("cat", "eel"))
    with pytest.raises(RequestError, match="has the class 'eel', which"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("there", "told"),
    [("bcdefgh", "the class a"), ("cdefgh", "2 classes (a, b)"),
     ("gh", "6 classes (a, b, c, d, e, ...)")],
)  # fmt: skip
def test_a_part_that_lacks_classes_is_told(tmp_path, there, told):
    tree(tmp_path, classes="abcdefgh")
    tree(tmp_path, parts=("test",), classes=there)
    assert f"'test' has no images of {told}" in read(tmp_path).notes


def test_file_names_that_are_not_utf_8_work(tmp_path):
    tree(tmp_path)
    for part in ("train", "val"):
        folder = os.fsencode(tmp_path / part / "cat")
        os.rename(folder + b"/0.png", folder + b"/caf\xe9.png")
    data = read(tmp_path)
    assert total(data) == 8
    assert len(data.digest) == 16
    assert data.test.content(range(8)) != data.test.content(range(7))
    assert data.test.fetch(range(8))[0].shape == (8, 3, 8, 8)


def test_class_names_that_are_not_utf_8_are_refused_by_name(tmp_path):
    tree(tmp_path)
    os.rename(tmp_path / "train" / "cat", os.fsencode(tmp_path / "train") + b"/caf\xe9")
    with pytest.raises(RequestError, match=r"class folder caf\\udce9 has a name") as told:
        read(tmp_path)
    str(told.value).encode()


def test_class_names_agree_in_either_unicode_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    assert composed != decomposed
    tree(tmp_path, parts=("train",), classes=(decomposed, "dog"))
    tree(tmp_path, parts=("val",), classes=(composed, "dog"))
    data = read(tmp_path)
    assert data.classes == (composed, "dog")
    assert data.test.labels.bincount().tolist() == [4, 4]
    tree(tmp_path, parts=("train",), classes=(composed,))
    with pytest.raises(RequestError, match="differ in their Unicode form alone"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a?b=c", "a%20b", "a#b", "a b", "caf\u00e9", "a;b&c", "[a]*"])
def test_a_path_means_itself(tmp_path, name):
    assert total(read(tree(tmp_path / name))) == 8


def test_the_home_of_the_user_stands_for_a_tilde(tmp_path, monkeypatch):
    tree(tmp_path / "pictures")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert total(read("~/pictures")) == 8
    with pytest.raises(RequestError, match="there is no such user"):
        read("~nobody-of-that-name/pictures")


def test_what_was_understood_is_told_in_a_few_lines(tmp_path):
    data = read(tree(tmp_path))
    lines = data.understood()
    assert lines == [
        "data  image_folder: class folders in train and val; 6 training images, 2 for validation"
        " (cut from the training set by data.split_seed=0), 8 for testing",
        "data  3 x 8 x 8 pixels, 2 classes: cat, dog",
        "data  normalization: mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225",
    ]
    assert "(as set): mean 0.500, 0.500, 0.500" in data.understood((0.5,) * 3)[2]

"""Labels and images of arrays: read where their meaning is certain, else one line."""

import resource
import subprocess
import sys

import numpy as np
import pytest

from raybust.config.inputs import Data
from raybust.data import load
from raybust.data.labels import class_indices
from raybust.errors import RequestError

DRAW = np.random.default_rng(0)
X = DRAW.integers(0, 256, (60, 8, 8)).astype(np.uint8)
Y = np.arange(60) % 3


def write(path, **given):
    parts = {"x_train": X, "y_train": Y, "x_test": X[:15] ^ 1, "y_test": Y[:15]}
    np.savez(path, **(parts | given))
    return load(Data(name="npz", path=str(path)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "set.npz"


SAME = {
    "a column": (lambda y: y[:, None], "is a column of shape"),
    "one-hot": (lambda y: np.eye(3)[y], "is one-hot of shape"),
    "one-hot bytes": (lambda y: np.eye(3, dtype=np.uint8)[y], "is one-hot of shape"),
    "floats": (lambda y: y.astype(np.float32), "holds whole numbers as float32"),
    "uint64": (lambda y: y.astype(np.uint64), None),
}


@pytest.mark.parametrize("form", SAME)
def test_labels_whose_meaning_is_certain_are_read(path, form):
    change, note = SAME[form]
    plain = write(path)
    found = write(path, y_train=change(Y), y_test=change(Y[:15]))
    assert found.test.labels.tolist() == plain.test.labels.tolist()
    assert found.classes == ("0", "1", "2")
    assert (note is None) == (not any("y_" in text for text in found.notes))
    assert note is None or any(note in text for text in found.notes)


def test_texts_are_classes_in_sorted_order(path):
    names = np.array(["dog", "cat", "eel"])
    found = write(path, y_train=names[Y], y_test=names[Y[:15]])
    assert found.classes == ("cat", "dog", "eel")
    assert found.test.labels[:3].tolist() == [1, 0, 2]
    raw = write(path, y_train=names.astype("S")[Y], y_test=names[Y[:15]])
    assert raw.test.labels[:3].tolist() == [1, 0, 2]
    with pytest.raises(RequestError, match="y_test: got the class 'fox'"):
        write(path, y_train=names[Y], y_test=np.array(["fox"] * 15))


REFUSED = {
    "from 1": ({"y_train": Y + 1, "y_test": Y[:15] + 1}, r"from 1 to 3.*begin with 1: subtract 1"),
    "shifted test": ({"y_test": Y[:15] + 1}, r"y_test: got labels from 1 to 3.*subtract 1"),
    "dates": ({"y_train": Y + 20_240_000, "y_test": Y[:15] + 20_240_000}, "from 20240000 to"),
    "dates and 0": ({"y_train": np.where(Y == 0, 0, Y + 20_240_000)}, "of which 3 occur"),
    "huge": ({"y_train": Y.astype(np.uint64) + 2**63}, "from 9223372036854775808"),
    "negative": ({"y_train": np.where(np.arange(60) < 5, -1, Y)}, "without a label"),
    "255": ({"y_train": np.where(np.arange(60) < 5, 255, Y).astype(np.uint8)}, "without a label"),
    "255 in test": ({"y_test": np.where(np.arange(15) < 5, 255, Y[:15])}, r"label \(255\)"),
    "halves": ({"y_train": Y + 0.5}, "got float64"),
    "nan": ({"y_train": np.where(Y == 0, np.nan, Y)}, "got float64"),
    "several columns": ({"y_train": np.stack([Y, Y], 1)}, r"got shape \(60, 2\)"),
    "names, from 1": (
        {"class_names": np.array(["a", "b", "c"]), "y_train": Y + 1}, r"from 0 to 2.*subtract 1",
    ),
    "two names": ({"class_names": np.array(["a", "b"])}, "from 0 to 2, expected from 0 to 1"),
    "one name twice": ({"class_names": np.array(["a", "b", "a"])}, "'a' twice"),
    "names of latin1": ({"class_names": np.array([b"\xe9", b"b", b"c"])}, "not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_are_no_class_indices_are_refused(path, case):
    given, message = REFUSED[case]
    with pytest.raises(RequestError, match=message) as told:
        write(path, **given)
    assert "\n" not in str(told.value)


def test_dates_are_refused_in_little_memory(path):
    """Twenty million classes would need gigabytes for the last layer alone."""
    np.savez(path, x_train=X, y_train=Y + 20_240_000, x_test=X[:15], y_test=Y[:15] + 20_240_000)
    limit = 4_000_000_000

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    command = [sys.executable, "-m", "raybust", "train", "data.name=npz", f"data.path={path}"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited)
    assert done.returncode == 2, done.stderr
    assert "expected class indices from 0" in done.stderr


@pytest.mark.parametrize(("shift", "absent"), [(1, "0"), (0, "2")])
def test_a_class_without_test_images_is_told(path, shift, absent):
    """For instance because the test labels are shifted, and the last class was left out."""
    found = write(path, y_test=Y[:15][Y[:15] < 2] + shift, x_test=X[:15][Y[:15] < 2])
    assert any(f"1 of 3 classes have no test image: {absent}" in note for note in found.notes)
    assert not any("test image" in note for note in write(path).notes)


def test_a_class_without_training_images_is_told(path):
    gap = np.array([0, 1, 3])
    found = write(path, y_train=gap[Y], y_test=gap[Y[:15]])
    assert any("1 of 4 classes have no training image: 2" in note for note in found.notes)
    names = np.array(["a", "b", "c", "d"])
    found = write(path, class_names=names)
    assert any("1 of 4 classes have no training image: d" in note for note in found.notes)


def test_names_in_utf_8_bytes_are_read(path):
    found = write(path, class_names=np.array(["\xe9".encode(), b"b", b"c"]))
    assert found.classes == ("\xe9", "b", "c")


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_validation_part_of_an_archive_is_used(path, name):
    found = write(path, **{f"x_{name}": X[:10] ^ 2, f"y_{name}": Y[:10]})
    assert (len(found.train), len(found.validation), len(found.test)) == (60, 10, 15)
    assert "10 for validation (the data set's own)" in found.notes[0]


def test_half_a_validation_part_or_two_are_refused(path):
    with pytest.raises(RequestError, match="has x_val, but lacks y_val"):
        write(path, x_val=X[:10])
    both = {f"{axis}_{name}": part for name in ("val", "valid") for axis, part in
            (("x", X[:10]), ("y", Y[:10]))}  # fmt: skip
    with pytest.raises(RequestError, match="x_val and x_valid; keep one"):
        write(path, **both)


def test_other_arrays_are_left_out_and_told(path):
    assert "left out: the arrays train_index" in write(path, train_index=np.arange(60)).notes


@pytest.mark.parametrize("largest", [1, 16, 60])
def test_images_that_would_be_nearly_black_are_told(path, largest):
    dark = (X / 255 * largest).round().astype(np.uint8)
    notes = write(path, x_train=dark, x_test=dark[:15]).notes
    assert any(f"x_train: the largest value is {largest} of 255" in note for note in notes)
    assert not any("largest value" in note for note in write(path).notes)


def test_images_of_other_types(path):
    floats = write(path, x_train=(X / 255).astype(np.float16), x_test=X[:15] / 255)
    assert float(floats.train.fetch([0])[0].max()) <= 1
    bits = write(path, x_train=X > 100, x_test=X[:15] > 100)
    assert set(bits.test.fetch(range(15))[0].unique().tolist()) == {0.0, 1.0}
    assert not any("largest value" in note for note in bits.notes)
    for wrong, message in (
        (X.astype(np.int64), r"int64.*use astype\('uint8'\)"),
        (X.astype(np.uint16) * 257, "uint16.*from 0 to 65535: divide"),
        (X.astype(np.float32), r"floats from 0 to 255, expected \[0, 1\]"),
        (np.repeat(X[..., None], 4, 3), "with C 1 or 3"),
        (np.where(X > 100, np.nan, 0.5), "got floats from nan"),
    ):
        with pytest.raises(RequestError, match=message):
            write(path, x_train=wrong, x_test=wrong[:15])


def test_test_images_of_the_training_set_are_told(path):
    assert any("15 of 15 test images are also in the training set" in note
               for note in write(path, x_test=X[:15]).notes)  # fmt: skip
    assert not any("also in" in note for note in write(path).notes)
    found = write(path, x_val=X[:9] // 2, y_val=Y[:9], x_test=X[:15] // 2).notes
    assert "9 of 15 test images are also in the validation part" in found


def test_one_hot_labels_of_fewer_columns_in_a_part_are_refused(path):
    """As get_dummies makes them of a part that lacks a class: the columns are then shifted."""
    few = np.eye(2)[np.arange(15) % 2]
    with pytest.raises(RequestError, match="y_test: got one-hot labels of 2 columns for 3"):
        write(path, y_train=np.eye(3)[Y], y_test=few)
    with pytest.raises(RequestError, match="y_test: got one-hot labels of 2 columns for 3"):
        write(path, y_train=Y, y_test=few)
    with pytest.raises(RequestError, match="labels: got one-hot labels of 2 columns for 3"):
        class_indices(few, ["a", "b", "c"], "labels")


def test_a_column_without_an_image_is_a_class(path):
    found = write(path, y_train=np.eye(5)[Y], y_test=np.eye(5)[Y[:15]])
    assert found.classes == tuple("01234")
    assert any("classes have no training image: 3, 4" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["U", "S"])
def test_numbers_as_texts_are_the_numbers(path, kind):
    """Sorted as texts, '10' would come before '2'."""
    labels = np.arange(60) % 12
    found = write(path, y_train=labels.astype(kind), y_test=labels[:15].astype(kind))
    assert found.test.labels.tolist() == labels[:15].tolist()
    assert found.classes == tuple(map(str, range(12)))
    assert "labels are numbers as texts: read as integers" in found.notes


@pytest.mark.parametrize("texts", [["00", "01", "02"], ["1a", "2", "3"]])
def test_texts_that_are_no_plain_numbers_are_names(path, texts):
    labels = np.array(texts)[Y]
    found = write(path, y_train=labels, y_test=labels[:15])
    assert found.classes == tuple(sorted(texts))

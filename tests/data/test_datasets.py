import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from raybust.config.inputs import Data
from raybust.data import describe, load, names
from raybust.errors import RequestError
from raybust.vision import torchvision

SHARED = Path(__file__).parents[3] / "shared" / "data"


def arrays(**changes):
    rng = np.random.default_rng(0)
    found = {
        "x_train": rng.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8),
        "y_train": np.arange(20) % 4,
        "x_test": rng.integers(0, 256, (8, 6, 5, 3), dtype=np.uint8),
        "y_test": np.arange(8) % 4,
    }
    found.update(changes)
    return {name: value for name, value in found.items() if value is not None}


def write(folder, **changes):
    path = folder / "set.npz"
    np.savez(path, **arrays(**changes))
    return Data(name="npz", path=str(path))


def whole_train(data):
    """Training and validation parts merged in file order."""
    images, labels = (
        torch.cat(pair)
        for pair in zip(
            data.train.fetch(range(len(data.train))),
            data.validation.fetch(range(len(data.validation))),
            strict=True,
        )
    )
    order = torch.cat([data.train.indices, data.validation.indices]).argsort()
    return images[order], labels[order]


def test_names_and_descriptions():
    assert names() == sorted(names())
    assert {"digits", "npz", "image_folder", "mnist", "fashion_mnist"} <= set(names())
    assert {"cifar10", "cifar100", "svhn"} <= set(names())
    for name in names():
        found = describe(name)
        assert found["name"] == name
        assert found["about"]
        assert found["augment"] in ("none", "flip", "crop", "crop_flip")
        assert (found["needs"] == "") == (name == "digits")
    assert describe("cifar100")["classes"] == 100
    assert describe("svhn")["shape"] == (3, 32, 32)
    assert not any("flip" in describe(name)["augment"] for name in ("digits", "mnist", "svhn"))


@pytest.mark.parametrize("call", [describe, lambda name: load(Data(name=name))])
def test_unknown_names_get_the_nearest_spelling(call):
    with pytest.raises(RequestError, match=r"unknown dataset 'cifar01'.* Did you mean 'cifar10'"):
        call("cifar01")


NHWC = arrays()["x_train"]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (NHWC, NHWC.transpose(0, 3, 1, 2) / 255),
        (NHWC.transpose(0, 3, 1, 2), NHWC.transpose(0, 3, 1, 2) / 255),
        (NHWC[..., 0], NHWC[..., 0][:, None] / 255),
        (NHWC[..., :1], NHWC[..., 0][:, None] / 255),
        (NHWC / 255, NHWC.transpose(0, 3, 1, 2) / 255),
        ((NHWC / 255).astype(np.float16), (NHWC / 255).astype(np.float16).transpose(0, 3, 1, 2)),
    ],
    ids=["nhwc", "nchw", "nhw", "one channel", "float64", "float16"],
)
def test_npz_layouts_and_types(tmp_path, pixels, expected):
    data = load(write(tmp_path, x_train=pixels, x_test=pixels[:8]))
    images, labels = whole_train(data)
    assert images.dtype == torch.float32
    assert images.numpy() == pytest.approx(expected.astype(np.float32), abs=1e-7)
    assert labels.tolist() == [k % 4 for k in range(20)]
    assert data.shape == tuple(expected.shape[1:])
    assert data.classes == ("0", "1", "2", "3")
    assert (data.test.indices.tolist(), data.augment) == (list(range(8)), "none")


def test_class_names_give_the_classes(tmp_path):
    data = load(write(tmp_path, class_names=np.array(["a", "b", "c", "d", "unseen"])))
    assert data.classes == ("a", "b", "c", "d", "unseen")


X = arrays()["x_train"]
BAD = {
    "missing": (
        {"y_train": None, "x_test": None},
        "lacks y_train, x_test; it holds x_train, y_test",
    ),
    "object": ({"y_train": np.array([0, None] * 10)}, "y_train cannot be read: Object arrays"),
    "floats": (
        {"x_train": X.astype(float)},
        r"x_train: got floats from 0 to 255, expected \[0, 1\]",
    ),
    "nan": ({"x_train": np.full(X.shape, np.nan)}, "x_train: got floats from nan to nan"),
    "below": ({"x_test": np.full((8, 6, 5), -0.5)}, "x_test: got floats from -0.5 to -0.5"),
    "dtype": ({"x_train": X.astype(np.int32)}, "x_train: got int32, expected uint8"),
    "ndim": (
        {"x_train": X.reshape(20, -1)},
        r"x_train: got shape \(20, 90\), expected \(N, H, W\)",
    ),
    "channels": ({"x_train": np.zeros((20, 5, 6, 7), np.uint8)}, r"got shape \(20, 5, 6, 7\)"),
    "empty": ({"x_train": X[:0], "y_train": np.arange(0)}, "expected at least one image"),
    "high": ({"y_test": np.arange(8)}, "y_test: got labels from 0 to 7, expected from 0 to 3"),
    "named": ({"class_names": np.array(["a", "b"])}, "y_train: got labels from 0 to 3, expected"),
    "negative": ({"y_train": np.arange(20) % 4 - 1}, "y_train: got labels from -1 to 2"),
    "float": ({"y_train": np.arange(20) % 4 + 0.5}, "y_train: got float64, expected integers"),
    "lengths": ({"y_train": np.zeros(19, int)}, r"y_train: got shape \(19,\), expected \(20,\)"),
    "columns": ({"y_test": np.zeros((8, 2), int)}, r"y_test: got shape \(8, 2\), expected \(N,\)"),
    "shapes": ({"x_test": X[:8, :5]}, r"\(3, 6, 5\), x_test of \(3, 5, 5\)"),
    "one class": ({"y_train": np.zeros(20, int), "y_test": np.zeros(8, int)}, "are of one class"),
    "names": ({"class_names": np.arange(4)}, "class_names: got int64 of shape"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arrays_are_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(RequestError, match=message) as caught:
        load(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_bad_npz_files(tmp_path):
    with pytest.raises(RequestError, match=r"data\.path: got null.*data\.path=FILE\.npz"):
        load(Data(name="npz"))
    with pytest.raises(RequestError, match=r"there is no file '.*absent"):
        load(Data(name="npz", path=str(tmp_path / "absent.npz")))
    contents = {"empty": b"", "text": b"hello", "pickle": pickle.dumps([1]), "zip": b"PK\x03\x04"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RequestError, match="is not an npz file"):
            load(Data(name="npz", path=str(tmp_path / name)))
    np.save(tmp_path / "one.npy", X)
    with pytest.raises(RequestError, match="is not an npz file"):
        load(Data(name="npz", path=str(tmp_path / "one.npy")))


def test_a_share_that_holds_out_nothing_is_refused(tmp_path):
    config = write(tmp_path)
    with pytest.raises(RequestError, match=r"data.validation: got 0.01 of 20 training images"):
        load(Data(name="npz", path=config.path, validation=0.01))


@pytest.mark.parametrize(
    ("file", "shape"), [("cifar10", (3, 32, 32)), ("fashion-mnist", (1, 28, 28))]
)
def test_real_npz(file, shape):
    path = SHARED / f"{file}-subset.npz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the shared folder beside the checkout")
    data = load(Data(name="npz", path=str(path), limit=500))
    assert (data.shape, len(data.train), len(data.test)) == (shape, 500, 2000)
    assert data.train.labels.bincount().tolist() == [50] * 10
    assert data.classes[9] in ("truck", "Ankle boot")
    with np.load(path) as archive:
        pixels = archive["x_test"][7]
    if pixels.ndim == 3:
        pixels = pixels.transpose(2, 0, 1)
    assert data.test.fetch([7])[0][0].squeeze().numpy() == pytest.approx(pixels / 255, abs=1e-7)


def write_idx(folder, images=(12, 6)):
    """MNIST's four files in their format: big-endian header, then bytes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    pixels = {}
    for part, count in zip(("train", "t10k"), images, strict=True):
        pixels[part] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels[part].tobytes())
        header = struct.pack(">II", 0x801, count)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return pixels


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_mnist_files(tmp_path, name, folder):
    pixels = write_idx(tmp_path / folder / "raw")
    data = load(Data(name=name, root=str(tmp_path), validation=0.25))
    images, labels = whole_train(data)
    assert images[:, 0].numpy() == pytest.approx(pixels["train"] / 255, abs=1e-7)
    assert labels.tolist() == [k % 3 for k in range(12)]
    assert data.test.fetch([5])[0][0, 0].numpy() == pytest.approx(pixels["t10k"][5] / 255, abs=1e-7)
    assert (data.shape, len(data.classes)) == ((1, 28, 28), 10)
    assert data.mean == {"mnist": (0.1307,), "fashion_mnist": (0.2860,)}[name]


def test_damaged_mnist_files(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RequestError, match=r"mnist is not in .*, or its files are damaged"):
        load(Data(name="mnist", root=str(tmp_path)))


def write_cifar(monkeypatch, root):
    """Tiny batches in CIFAR-10's format, with torchvision's checksums patched to match."""
    cls = torchvision().datasets.CIFAR10
    folder = root / cls.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(2)
    pixels = []

    def dump(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name, count):
        values = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        pixels.append(values.reshape(count, 3, 32, 32))
        return [name, dump(name, {"data": values, "labels": [k % 5 for k in range(count)]})]

    monkeypatch.setattr(cls, "train_list", [batch(f"data_batch_{k}", 10) for k in range(1, 6)])
    monkeypatch.setattr(cls, "test_list", [batch("test_batch", 10)])
    digest = dump("batches.meta", {"label_names": [f"name{k}" for k in range(10)]})
    monkeypatch.setattr(
        cls, "meta", {"filename": "batches.meta", "key": "label_names", "md5": digest}
    )
    return folder, pixels


def test_cifar_files(tmp_path, monkeypatch):
    _, pixels = write_cifar(monkeypatch, tmp_path)
    data = load(Data(name="cifar10", root=str(tmp_path)))
    images, labels = whole_train(data)
    assert images.numpy() == pytest.approx(np.concatenate(pixels[:5]) / 255, abs=1e-7)
    assert labels.tolist() == [k % 5 for k in range(50)]
    assert (data.classes[3], data.augment, data.std[2]) == ("name3", "crop_flip", 0.2616)
    test = data.test.fetch(range(10))[0].numpy()
    assert test == pytest.approx(pixels[5] / 255, abs=1e-7)


class Payload:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_changed_cifar_file_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    folder, _ = write_cifar(monkeypatch, tmp_path)
    mark = tmp_path / "mark"
    content = pickle.dumps(Payload(mark))
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(
        RequestError, match=r"cifar10 is not in .* damaged; pass data.download=true"
    ):
        load(Data(name="cifar10", root=str(tmp_path)))
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists()  # the payload works where nothing stops it


def test_svhn_files(tmp_path, monkeypatch):
    from scipy.io import savemat

    cls = torchvision().datasets.SVHN
    pixels = np.random.default_rng(3).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    labels = (np.arange(20) % 10 + 1).reshape(-1, 1)
    table = {}
    for part in ("train", "test"):
        file = tmp_path / f"{part}_32x32.mat"
        savemat(file, {"X": pixels, "y": labels})
        table[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(cls, "split_list", table)
    data = load(Data(name="svhn", root=str(tmp_path)))
    images, found = data.test.fetch(range(20))
    assert images.numpy() == pytest.approx(pixels.transpose(3, 2, 0, 1) / 255, abs=1e-7)
    assert found.tolist() == [(k % 10 + 1) % 10 for k in range(20)]
    assert data.augment == "crop"


@pytest.mark.parametrize("name", ["mnist", "cifar100", "svhn"])
def test_absent_files_say_what_to_pass(tmp_path, name):
    with pytest.raises(RequestError, match=r"data\.download=true .* data\.root=FOLDER"):
        load(Data(name=name, root=str(tmp_path / "absent")))


def test_downloads_go_through_torchvision_and_fail_in_one_line(tmp_path, monkeypatch):
    cls = torchvision().datasets.MNIST
    config = Data(name="mnist", root=str(tmp_path), download=True)

    def fail(self):
        raise RuntimeError("Error downloading:\nTried a mirror, got:\n<urlopen error>\n")

    monkeypatch.setattr(cls, "download", fail)
    with pytest.raises(
        RequestError, match=r"mnist: cannot be downloaded to .*Tried a mirror"
    ) as caught:
        load(config)
    assert "\n" not in str(caught.value)

    def fetch(self):
        if not Path(self.raw_folder).exists():
            write_idx(Path(self.raw_folder))

    monkeypatch.setattr(cls, "download", fetch)
    assert len(load(config).test) == 6


def test_a_root_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"data\.root: cannot write to"):
        load(Data(name="mnist", root=str(tmp_path / "file" / "below"), download=True))

"""Published corrupted test sets: their layouts are read, invalid files rejected by name."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from raybust.corruptions import COMMON, EXTRA, published
from raybust.corruptions.counting import _count
from raybust.data import Split, StreamedSplit
from raybust.errors import RequestError

COUNT = 4


def clean():
    images = torch.randint(0, 256, (COUNT, 3, 32, 32), dtype=torch.uint8)
    return Split(images, torch.tensor([3, 1, 0, 2]), torch.arange(COUNT))


@pytest.fixture
def cifar_c(tmp_path):
    """A folder like CIFAR-10-C with four images: pixel (0, 0) encodes corruption, severity, row."""
    for number, name in enumerate((*COMMON, *EXTRA)):
        array = np.zeros((5 * COUNT, 32, 32, 3), np.uint8)
        array[:, 0, 0, 0] = number
        array[:, 0, 0, 1] = np.arange(5).repeat(COUNT) + 1
        array[:, 0, 0, 2] = np.tile(np.arange(COUNT), 5)
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "labels.npy", np.tile([3, 1, 0, 2], 5))
    return tmp_path


def test_severities_are_blocks(cifar_c):
    found = published(cifar_c, clean())
    assert list(found) == [*COMMON, *EXTRA]
    for number, name in enumerate(found):
        for level, part in found[name].items():
            images, labels = part.fetch(torch.tensor([2, 0]))
            assert images.shape == (2, 3, 32, 32)
            pixel = (images[:, :, 0, 0] * 255).round().int().tolist()
            assert pixel == [[number, level, 2], [number, level, 0]]
            assert labels.tolist() == [0, 3]


def test_arrays_stay_on_disk(cifar_c):
    part = published(cifar_c, clean(), names=["fog"])["fog"][2]
    assert part.images.shape == (COUNT, 3, 32, 32)
    with open("/proc/self/maps") as maps:
        assert any("fog.npy" in line for line in maps)


def test_extra_corruptions_may_be_missing(cifar_c):
    for name in EXTRA:
        (cifar_c / f"{name}.npy").unlink()
    assert list(published(cifar_c, clean())) == list(COMMON)
    assert list(published(cifar_c, clean(), names=["snow"])) == ["snow"]
    with pytest.raises(RequestError, match=r"lacks spatter\.npy"):
        published(cifar_c, clean(), names=["spatter"])


def test_missing_files_are_named(cifar_c, tmp_path):
    for name in ("fog", "labels", "frost"):
        (cifar_c / f"{name}.npy").unlink()
    with pytest.raises(RequestError, match=r"lacks labels\.npy, frost\.npy, fog\.npy"):
        published(cifar_c, clean())
    with pytest.raises(RequestError, match="there is no folder"):
        published(tmp_path / "nowhere", clean())
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"has no corrupted images; expected CORRUPTION\.npy"):
        published(tmp_path / "empty", clean())


def test_wrong_files_are_named(cifar_c):
    np.save(cifar_c / "fog.npy", np.zeros((5 * COUNT, 32, 32, 3), np.float32))
    np.save(cifar_c / "snow.npy", np.zeros((7, 32, 32, 3), np.uint8))
    with pytest.raises(RequestError, match=r"snow\.npy \(uint8 .*, fog\.npy \(float32"):
        published(cifar_c, clean())
    (cifar_c / "fog.npy").write_bytes(b"nothing")
    with pytest.raises(RequestError, match=r"fog\.npy \(not an array\)"):
        published(cifar_c, clean())


def test_labels_of_another_dataset_are_refused(cifar_c):
    other = clean()
    with pytest.raises(RequestError, match="belongs to another dataset"):
        published(cifar_c, Split(other.images, other.labels.flip(0), other.indices))
    np.save(cifar_c / "labels.npy", np.zeros(7))
    with pytest.raises(RequestError, match=r"labels\.npy: got float64 of shape \(7,\)"):
        published(cifar_c, clean())


def test_labels_beyond_the_network_are_refused(cifar_c):
    class Two(nn.Module):
        def forward(self, images):
            return images.new_zeros(len(images), 2)

    part = published(cifar_c, clean(), names=["fog"])["fog"][1]
    with pytest.raises(RequestError, match="the label 3 for a network of 2 classes"):
        _count(Two(), part, [torch.arange(COUNT)], torch.device("cpu"))


@pytest.fixture(params=["", "weather"])
def imagenet_c(tmp_path, request):
    """A folder like ImageNet-C, flat or as unpacked from its archives."""
    for name in ("fog", "snow"):
        for level in range(1, 6):
            for label in ("cat", "dog"):
                folder = tmp_path / request.param / name / str(level) / label
                folder.mkdir(parents=True)
                Image.new("RGB", (40, 32), (level, 0, 0)).save(folder / "one.png")
    return tmp_path


def test_folders_of_images(imagenet_c):
    found = published(imagenet_c, clean(), names=["snow", "fog"], classes=["bird", "cat", "dog"])
    part = found["fog"][3]
    assert isinstance(part, StreamedSplit)
    images, labels = part.fetch([0, 1])
    assert images.shape == (2, 3, 32, 32)
    assert (images[:, 0] * 255).round().unique().tolist() == [3.0]
    assert labels.tolist() == [1, 2]
    assert published(imagenet_c, clean(), names=["fog"])["fog"][1].labels.tolist() == [0, 1]


def test_bad_folders_of_images(imagenet_c):
    with pytest.raises(RequestError, match="has the classes dog, expected the classes"):
        published(imagenet_c, clean(), names=["fog"], classes=["cat"])
    with pytest.raises(RequestError, match="lacks frost"):
        published(imagenet_c, clean(), names=["fog", "frost"])
    for file in imagenet_c.rglob("snow/4/*/one.png"):
        file.unlink()
    with pytest.raises(RequestError, match="4/cat: has no images"):
        published(imagenet_c, clean(), names=["snow"])

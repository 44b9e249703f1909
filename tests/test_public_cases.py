"""Files in forms that people have, by the command line: what is told, and what it ends with."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from raybust import config as configuration
from raybust import data, methods
from raybust.errors import RequestError
from raybust.stages import progress

DRAW = np.random.default_rng(0)
X = DRAW.integers(0, 255, (60, 8, 8)).astype(np.uint8)
Y = np.arange(60) % 3


@pytest.fixture
def told(cli, tmp_path, monkeypatch):
    """Checks a `raybust train` by --dry-run; returns its exit code and error, or what it would say
    of the data before it begins."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        dry = cli("train", *arguments, "--out", tmp_path / "runs", "--dry-run")
        if dry.code:
            return dry.code, dry.err
        leaves = configuration.leaves_of_arguments([str(text) for text in arguments])
        config = configuration.compose(leaves, methods.get)
        said = []
        try:
            progress.print_data(config, data.load(config.data), said.append)
        except RequestError as error:
            return 2, str(error)
        return 0, "\n".join(said)

    return run


def folder(home, save, ending, parts=("train", "val"), classes=("cat", "dog"), count=6):
    for part in parts:
        for kind, name in enumerate(classes):
            place = home / part / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = DRAW.integers(0, 80, (32, 32, 3)).astype(np.uint8)
                pixels[:, 8 * kind : 8 * kind + 8] = 200
                save(pixels, place / f"{number}.{ending}")
    return ("data.name=image_folder", f"data.path={home}", "data.image_size=32",
            "data.validation=0.2")  # fmt: skip


def plain(pixels, path):
    Image.fromarray(pixels).save(path)


def npz(path, **given):
    parts = {"x_train": X, "y_train": Y, "x_test": X[:15] ^ 1, "y_test": Y[:15]}
    np.savez(path, **(parts | given))
    return "data.name=npz", f"data.path={path}"


def test_sixteen_bit_images_are_scaled_and_told(told, tmp_path):
    def save(pixels, path):
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path)

    code, text = told(*folder(tmp_path / "png16", save, "png"))
    assert code == 0
    assert "24 of 24 with 16 bits a pixel: scaled by 65535" in text


def test_transparent_images_are_on_a_background_that_is_told(told, tmp_path):
    def save(pixels, path):
        alpha = np.where(pixels[..., :1] > 100, 255, 0).astype(np.uint8)
        white = np.full_like(pixels, 255)
        Image.fromarray(np.concatenate([white, alpha], 2)).save(path)

    given = folder(tmp_path / "rgba", save, "png")
    code, text = told(*given)
    assert code == 0
    assert "24 of 24 with transparency: on data.background=[0.5, 0.5, 0.5]" in text
    code, text = told(*given, "data.background=[0]")
    assert "on data.background=[0, 0, 0]" in text
    code, text = told(*given, "data.background=[0,1]")
    assert code == 2
    assert "expected one value or three" in text


def test_links_leftovers_and_other_endings_are_told(told, tmp_path):
    given = folder(tmp_path / "odd", plain, "png")
    cat = tmp_path / "odd" / "train" / "cat"
    os.symlink("..", cat / "up")
    (cat / ".ipynb_checkpoints").mkdir()
    (cat / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes((cat / "0.png").read_bytes())
    (cat / "0.png").rename(cat / "0.heic")
    code, text = told(*given)
    assert code == 0
    for expected in ("9 training images", "2 for validation", "12 for testing",
                     "1 links to folders that are listed already",
                     "1 hidden or system files and folders", "1 files .heic"):  # fmt: skip
        assert expected in text


def test_the_parts_of_cinic(told, tmp_path):
    code, text = told(*folder(tmp_path / "cinic", plain, "png", parts=("train", "valid", "test")))
    assert code == 0
    assert "12 training images, 12 for validation (the data set's own), 12 for testing" in text


def test_tiny_imagenet_with_its_test_part_as_published(told, tmp_path):
    given = folder(tmp_path / "tiny", plain, "png")
    folder(tmp_path / "tiny", plain, "png", parts=("test",), classes=("images",))
    code, text = told(*given)
    assert code == 0
    assert "'test' has no class folders of the training part (images)" in text


ARRAYS = [
    ({"y_train": Y + 1, "y_test": Y[:15] + 1}, 2, "begin with 1: subtract 1"),
    ({"y_train": Y + 20_240_000, "y_test": Y[:15] + 20_240_000}, 2, "20240000 to 20240002"),
    ({"class_names": np.array(["\u00e9".encode(), b"b", b"c"])}, 0, "3 classes: \u00e9, b, c"),
    ({"x_val": X[:10], "y_val": Y[:10]}, 0, "10 for validation (the data set's own)"),
    ({"x_train": (X > 128).astype(np.uint8)}, 0, "x_train: the largest value is 1 of 255"),
    ({"notes": np.zeros(3)}, 0, "left out: the arrays notes"),
]


@pytest.mark.parametrize(("given", "code", "words"), ARRAYS)
def test_arrays(told, tmp_path, given, code, words):
    found, text = told(*npz(tmp_path / "set.npz", **given))
    assert (found, words in text) == (code, True), text


LINEAR = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes=3):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("linear_net_of_cases.py").write_text(LINEAR)
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).state_dict()


FORMS = {
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "net": lambda state: {"net": state, "acc": np.float64(0.9), "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "epoch": 3},
    "best_acc": lambda state: {"state_dict": state, "best_acc": np.float64(0.9)},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_forms_that_people_have(cli, tmp_path, weights, form):
    torch.save(FORMS[form](weights), tmp_path / "w.pth")
    given = npz(tmp_path / "set.npz")
    done = cli("evaluate", "w.pth", "model.name=linear_net_of_cases:Net", *given,
               "evaluate.attacks=[]", "--out", tmp_path / "runs")  # fmt: skip
    assert done.code == 0, done.err
    assert "clean accuracy" in done.out
    assert "weights: " in done.err
    assert "normalization: mean" in done.err
    assert "change it with model.mean=[...] model.std=[...]" in done.err
    assert ("neither imported nor called" in done.err) == (form in ("net", "best_acc"))


def test_weights_that_hardly_beat_chance_are_told(cli, tmp_path, weights):
    torch.save(weights, tmp_path / "w.pth")
    given = npz(tmp_path / "set.npz", y_test=(Y[:15] + 1) % 3)
    done = cli("evaluate", "w.pth", "model.name=linear_net_of_cases:Net", *given,
               "evaluate.attacks=[]", "--out", tmp_path / "runs")  # fmt: skip
    assert done.code == 0, done.err
    assert "barely above chance: do the normalization" in " ".join(done.err.split())


def test_a_tag_that_does_not_exist_is_refused_before_anything_starts(cli, tmp_path):
    done = cli("train", "model.name=timm:resnet18.nonsense", "--out", tmp_path, "--dry-run")
    assert done.code == 2
    assert "weight tag of timm:resnet18 'nonsense'" in done.err


@pytest.mark.parametrize("name", ["random", "json", "queue"])
def test_a_module_that_has_the_name_of_one_of_pythons_is_one_line(cli, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(f"{name}.py").write_text(LINEAR)
    done = cli("train", f"model.name={name}:Net", "--out", tmp_path / "runs", "--dry-run")
    assert done.code == 2
    assert f"{name}.py in the working directory shadows a standard library module" in done.err
    assert done.err.count("\n") == 1


def test_batch_norm_on_batches_of_one_image_is_one_line(cli, tmp_path):
    done = cli("train", "model.name=torchvision:resnet18", "train.batch_size=1",
               "--out", tmp_path)  # fmt: skip
    assert done.code == 2
    assert "train.batch_size: got 1 image per step and worker" in done.err
    assert done.err.count("\n") == 1

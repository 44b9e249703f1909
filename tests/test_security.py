"""What comes from elsewhere runs no code: every place where a file is read, and the source itself.

The pickle that each place is given makes a folder when it is loaded; that it can is checked too.
"""

import ast
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import raybust
from raybust import config as configuration
from raybust import data, methods
from raybust.disk import checkpoint
from raybust.errors import RequestError
from raybust.models import check_installed
from raybust.training.fit import fit

PACKAGE = Path(raybust.__file__).parent
TINY = ("method.name=standard", "model.width=2", "train.epochs=1", "data.limit=64",
        "certified_fast.examples=2", "certified_fast.n=100")  # fmt: skip


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def pickled(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(Bomb(target), protocol=2))
    return path


def legacy(path, target):
    pickled(path.with_name("test.pt"), target)
    return pickled(path, target)


def objects(path, target):
    """A .npy or .npz of Python objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bomb = np.array([Bomb(target)], dtype=object)
    if path.suffix == ".npy":
        np.save(path, bomb, allow_pickle=True)
    else:
        np.savez(path, x_train=bomb, y_train=bomb, x_test=bomb, y_test=bomb)
    return path


def tag(path, target):
    path.write_text(f'train: !!python/object/apply:os.mkdir ["{target}"]\n')
    return path


def weights(path, target):
    torch.save({"state_dict": Bomb(target)}, path)
    return path


PLACES = {
    "weights file, torch": (weights, "w.pth", ["certify", "{}", *TINY, "certify.sigma=0.25"]),
    "weights file, pickle": (pickled, "w.pt", ["certify", "{}", *TINY, "certify.sigma=0.25"]),
    "weights to evaluate": (pickled, "w.pth", ["evaluate", "{}", *TINY]),
    "npz": (objects, "d.npz", ["train", *TINY, "data.name=npz", "data.path={}"]),
    "npz that is a pickle": (pickled, "d.npz", ["train", *TINY, "data.name=npz", "data.path={}"]),
    "cifar batch": (pickled, "data/cifar-10-batches-py/data_batch_1",
                    ["train", *TINY, "data.name=cifar10", "data.root={root}/data"]),
    "mnist of old": (legacy, "data/MNIST/processed/training.pt",
                     ["train", *TINY, "data.name=mnist", "data.root={root}/data"]),
    "configuration": (tag, "c.yaml", ["train", "{}"]),
    "search space": (tag, "s.yaml", ["tune", "{}"]),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_pickle_is_refused_unexecuted(place, cli, tmp_path, monkeypatch):
    make, name, command = PLACES[place]
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "executed"
    path = make(tmp_path / name, target)
    done = cli(*(part.format(path, root=tmp_path) for part in command))
    assert done.code == 2, done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not target.exists()


def test_published_corruptions_are_arrays_only(tmp_path):
    from raybust.corruptions.published import _arrays

    target = tmp_path / "executed"
    for name in ("labels", "fog"):
        objects(tmp_path / f"{name}.npy", target)
    with pytest.raises(RequestError, match="not an array"):
        _arrays(tmp_path, None, ["fog"])
    assert not target.exists()


def test_resumable_state_is_plain_data(tmp_path):
    target = tmp_path / "executed"
    pickled(tmp_path / "run" / checkpoint.STATE, target)
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.read_state(tmp_path / "run")
    assert not target.exists()


@pytest.mark.parametrize("make", [pickled, objects])
def test_the_bombs_are_none_of_them_duds(make, tmp_path):
    target = tmp_path / "executed"
    path = make(tmp_path / "bomb.npy", target)
    np.load(path, allow_pickle=True) if make is objects else pickle.loads(path.read_bytes())
    assert target.exists()


@pytest.mark.parametrize("argument", ["name=${oc.env:HOME}", "out=${oc.env:HOME}/x"])
def test_the_environment_is_not_read_by_a_configuration(argument, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/secret-place")
    done = cli("train", *TINY, argument, "--dry-run")
    assert done.code == 2
    assert "/secret-place" not in done.out + done.err


# --- the source -----------------------------------------------------------------------------------

FORBIDDEN = {
    "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system",
    "tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive", "joblib.load", "marshal.loads",
}  # fmt: skip
"""Calls that run what they read, or unpack where it says. No module needs one: archives are
unpacked by torchvision alone, whose checksums stand before."""
READS_IN_MEMORY = {"unpickle.py": ["zipfile.ZipFile"], "tarred.py": ["tarfile.open"]}
"""Read entries of an archive and unpack none; their own tests are in tests/models, tests/data."""


def wrong_calls(source):
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        unsafe = name in FORBIDDEN or name.endswith((".extractall", ".extract"))
        unsafe |= name == "torch.load" and given.get("weights_only") != "True"
        unsafe |= name == "np.load" and given.get("allow_pickle") != "False"
        unsafe |= given.get("shell") == "True" or "trust_remote_code" in given
        if unsafe:
            found.append(name)
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_no_call_runs_what_it_reads(file):
    assert wrong_calls(file.read_text()) == READS_IN_MEMORY.get(file.name, [])


@pytest.mark.parametrize(
    "source",
    ["pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)",
     "tarfile.open(f)", "archive.extractall(d)", "subprocess.run(c, shell=True)", "yaml.load(f)"],
)  # fmt: skip
def test_wrong_calls_would_be_seen(source):
    assert wrong_calls(source)


@pytest.mark.parametrize(
    ("setting", "instead"),
    [("track.uri", "MLFLOW_TRACKING_URI"), ("tune.storage", "PGPASSWORD")],
)
def test_a_password_in_a_setting_is_refused_unseen(cli, tmp_path, setting, instead):
    given = f"{setting}=postgresql://me:hunter2@nowhere/db"
    result = cli("tune", "search_spaces/quickstart.yaml", given, "--out", tmp_path / "runs")
    assert result.code == 2
    assert setting in result.err
    assert instead in result.err
    assert "hunter2" not in result.out + result.err
    assert not (tmp_path / "runs").exists()


STRANGERS = """
from pathlib import Path
from torch import nn

Path("executed").touch()


def make(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))
"""


def checkpoint_of(folder, monkeypatch, name):
    """A checkpoint of a network that a module of the folder makes."""
    (folder / f"{name}.py").write_text(STRANGERS)
    monkeypatch.chdir(folder)
    leaves = configuration.leaves_of_arguments(
        [*TINY, f"model.name={name}:make", "method.name=gaussian", "train.epochs=1",
         "certified_fast.every=0"]
    )  # fmt: skip
    config = configuration.compose([one for one in leaves if one.key != "model.width"], methods.get)
    (end,) = fit(config, data.load(config.data), torch.device("cpu"))
    (folder / "theirs").mkdir()
    end.save(folder / "theirs")
    Path("executed").unlink()
    sys.modules.pop(name, None)


@pytest.mark.parametrize("stage", ["evaluate", "certify"])
def test_a_folder_of_a_stranger_runs_no_code(cli, tmp_path, monkeypatch, stage):
    """Its checkpoint names a module that lies beside it, in the working directory."""
    checkpoint_of(tmp_path, monkeypatch, f"strangers_{stage}")
    done = cli(stage, "theirs", "--out", tmp_path / "out", "--dry-run")
    assert (done.code, Path("executed").exists()) == (2, False), done.err
    (line,) = done.err.strip().splitlines()
    assert f"add model.name=strangers_{stage}:make to the command" in line
    named = cli(stage, "theirs", f"model.name=strangers_{stage}:make", "--out", tmp_path / "out",
                "--dry-run")  # fmt: skip
    assert (named.code, Path("executed").exists()) == (0, True), named.err
    other = cli(stage, "theirs", "model.name=small_cnn", "--out", tmp_path / "out", "--dry-run")
    assert (other.code, "model.name" in other.err) == (2, True)


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("small_cnn", True), ("timm:resnet18", True), ("torchvision:resnet18", True),
        ("torch.nn:Identity", True), ("os:abort", False), ("subprocess:Popen", False),
        ("beside:make", False), ("no_such_module:make", False), (":make", False),
    ],
)  # fmt: skip
def test_which_networks_a_file_may_name(tmp_path, monkeypatch, name, passes):
    (tmp_path / "beside.py").write_text(STRANGERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as for `python -m raybust`
    monkeypatch.syspath_prepend("")
    if passes:
        check_installed(name, "theirs")
    else:
        with pytest.raises(RequestError, match=r"theirs: its network is '.*no installed package"):
            check_installed(name, "theirs")
    assert not (tmp_path / "executed").exists()

"""`train.init`: runs that start from weights of runs, files and libraries."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raybust import config as configuration
from raybust import data, methods, models, vision
from raybust.disk import checkpoint
from raybust.errors import RequestError
from raybust.training import initial
from raybust.training.fit import fit
from raybust.training.loop import Trainer

CPU = torch.device("cpu")
SMALL = ("data.limit=200", "train.epochs=1", "train.batch_size=50", "model.width=4",
         "certified_fast.every=0")  # fmt: skip


def make(*settings):
    leaves = configuration.leaves_of_arguments([*SMALL, *settings])
    return configuration.compose(leaves, methods.get)


@pytest.fixture(scope="module")
def digits():
    return data.load(make().data)


@pytest.fixture(scope="module")
def clean(digits, tmp_path_factory):
    """The newest checkpoint of a trained run."""
    (end,) = fit(make("model.mean=[0.2]", "model.std=[0.3]"), digits, CPU)
    home = tmp_path_factory.mktemp("runs") / "clean"
    return checkpoint.commit(home, checkpoint.folder_name(1), end.save, 1)


@pytest.mark.parametrize("method", methods.names())
def test_every_method_starts_from_a_run(clean, digits, method):
    """With its weights and its normalization, behind whatever front module."""
    network = Trainer(make(f"method.name={method}", f"train.init={clean}"), digits, CPU).network
    own = network.state_dict()
    for key, value in checkpoint.read_weights(clean).items():
        (name,) = {key, f"network.{key}"} & own.keys()
        assert torch.equal(own[name], value), key


def test_what_was_read_is_said(clean, digits, cli, tmp_path):
    name = f"train.init={clean.parent}"
    done = cli("train", *SMALL, name, "method.name=gaussian", "--out", tmp_path)
    assert done.code == 0, done.err
    count = len(checkpoint.read_weights(clean))
    assert f"weights: {count} tensors read\n" in done.err
    again = cli("train", *SMALL, name, "method.name=gaussian", "--out", tmp_path)
    assert "is already trained" in again.err


def test_another_last_layer_stays_new_and_nothing_else_may_differ(clean, digits):
    config = make(f"train.init={clean / checkpoint.WEIGHTS}")
    seven = replace(digits, classes=digits.classes[:7])
    network = Trainer(config, seven, CPU).network
    lines = initial.initialize(network, config, seven)
    stored = checkpoint.read_weights(clean)
    assert any(f"{len(stored) - 2} tensors read; new: " in line for line in lines)
    wider = make(f"train.init={clean / checkpoint.WEIGHTS}", "model.width=5")
    with pytest.raises(RequestError, match="of another shape"):
        Trainer(wider, digits, CPU)


def saved(network, url, home):
    """Puts a network's weights where torch's cache has a downloaded file."""
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / Path(url).name)


def built(config, dataset):
    return models.build(
        config.model, shape=dataset.shape, num_classes=10, mean=dataset.mean, std=dataset.std
    )


COLOR = ("model.name=torchvision:resnet18", "train.init=torchvision:resnet18")


def test_torchvisions_weights_come_from_its_cache_with_their_normalization(
    digits, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    library = vision.torchvision().models
    with pytest.raises(RequestError, match=r"not on this machine's disk.*python -c"):
        initial.check(make(*COLOR))
    with torch.random.fork_rng():
        theirs = library.get_model("resnet18", weights=None)
    saved(theirs, library.get_model_weights("resnet18").DEFAULT.url, tmp_path)
    color = replace(digits, shape=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    network = built(make(*COLOR), color)
    lines = initial.initialize(network, make(*COLOR), color)
    assert any("new: fc.weight, fc.bias" in line for line in lines)
    assert torch.equal(network.network.conv1.weight, theirs.conv1.weight)
    assert network.normalize.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    own = make(*COLOR, "model.mean=[0.5,0.5,0.5]", "model.std=[0.5,0.5,0.5]")
    network = built(own, color)
    initial.initialize(network, own, color)
    assert network.normalize.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(RequestError, match="is a torchvision:resnet18, expected a resnet20"):
        initial.initialize(network, make("model.name=resnet20", COLOR[1]), color)


def test_timms_weights_come_from_its_cache(digits, tmp_path, monkeypatch):
    vision.torchvision()
    timm = pytest.importorskip("timm")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = timm.create_model("resnet18", pretrained=False)
    saved(theirs, timm.models.get_pretrained_cfg("resnet18.a1_in1k").url, tmp_path)
    settings = ("model.name=timm:resnet18", "train.init=timm:resnet18.a1_in1k")
    color = replace(digits, shape=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    network = built(make(*settings), color)
    lines = initial.initialize(network, make(*settings), color)
    assert any("new: fc.weight, fc.bias" in line for line in lines)
    assert torch.equal(network.network.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


def test_a_run_of_raybust_0_1_that_named_them_in_its_method_is_read():
    plain = configuration.to_dict(make("method.name=lp_noise", "method.base.name=beckman"))
    del plain["train"]["init"]
    plain["method"]["base"]["init"] = "clean"
    assert configuration.from_dict(plain, methods.get).train.init == "clean"
    plain["method"]["base"]["init"] = None
    assert configuration.from_dict(plain, methods.get).train.init is None


def test_an_average_of_the_weights_is_not_taken_for_them(clean, digits, tmp_path):
    """As `certify FILE` reads it: the first state dict that is no average."""
    stored = checkpoint.read_weights(clean)
    bare = {key.removeprefix("network."): value for key, value in stored.items()}
    average = {key: torch.zeros_like(value) for key, value in bare.items()}
    torch.save({"ema": average, "model": bare}, tmp_path / "both.pt")
    save_file(bare, tmp_path / "one.safetensors")
    found = [
        Trainer(make(f"train.init={tmp_path / name}"), digits, CPU).network.state_dict()
        for name in ("both.pt", "one.safetensors")
    ]
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key])


def test_a_normalization_that_is_set_stays_whatever_the_weights_bring(clean, digits):
    """The run was trained with mean 0.2 and std 0.3."""
    for source in (clean, clean / checkpoint.WEIGHTS):
        network = Trainer(make(f"train.init={source}"), digits, CPU).network
        assert network.normalize.mean.item() == pytest.approx(0.2)
        given = make(f"train.init={source}", "model.mean=[0.5]", "model.std=[0.25]")
        network = Trainer(given, digits, CPU).network
        assert network.normalize.mean.item() == 0.5
        assert network.normalize.std.item() == 0.25
        fresh = Trainer(make(), digits, CPU).network
        lines = initial.initialize(fresh, make(f"train.init={source}"), digits)
        assert "weights: their normalization, not the data's: mean 0.2, std 0.3" in lines


def test_a_run_of_another_split_is_warned_of(digits, cli, tmp_path):
    assert cli("train", *SMALL, "--name", "first", "--out", tmp_path).code == 0
    again = ("train", *SMALL, "train.init=first", "--out", tmp_path)
    same = cli(*again, "--name", "same")
    assert same.code == 0, same.err
    assert "another split" not in same.err
    other = cli(*again, "data.split_seed=9", "--name", "other")
    assert "warning: train.init: first was trained on other images or another split" in other.err


def test_the_weights_to_start_from_are_those_of_a_whole_sweep(cli, tmp_path):
    (tmp_path / "space.yaml").write_text("search: {train.init: {choice: [a, b]}}")
    done = cli("tune", tmp_path / "space.yaml", "--dry-run")
    assert done.code == 2
    assert "train.init" in done.err

"""Weights as training codes write them: which form was read is told, nothing is read in parts."""

import argparse
import collections
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from raybust import models
from raybust.config.inputs import Model
from raybust.errors import RequestError

SHAPE = (3, 8, 8)


def build(seed=0, name="resnet20"):
    torch.manual_seed(seed)
    return models.build(Model(name=name), shape=SHAPE, num_classes=10, mean=(0.3,) * 3,
                        std=(0.2,) * 3).eval()  # fmt: skip


def inner(seed=0):
    network = build(seed)
    network(torch.rand(2, *SHAPE))
    return network.network.state_dict()


def prefixed(prefix, seed=0):
    return {prefix + key: value for key, value in inner(seed).items()}


LAYER = {"0.mean": torch.tensor([0.5, 0.4, 0.3]), "0.std": torch.tensor([0.3, 0.2, 0.1])}
FORMS = {
    "net": lambda: {"net": inner(), "acc": 0.9},
    "network": lambda: {"network": inner(), "epoch": 3},
    "model_state_dict": lambda: {
        "model_state_dict": inner(),
        "optimizer_state_dict": {"state": {}},
    },
    "model_state": lambda: {"model_state": inner()},
    "ema": lambda: {"ema": inner()},
    "state": lambda: {"state": {"model": inner()}},
    "compiled": lambda: prefixed("_orig_mod."),
    "parallel": lambda: prefixed("module."),
    "compiled and parallel": lambda: {"state_dict": prefixed("module._orig_mod.")},
    "lightning": lambda: {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 0.1}},
    "net prefix": lambda: prefixed("net."),
    "an ema beside": lambda: {"state_dict": inner(), "state_dict_ema": inner(7)},
    "an ema before": lambda: {"model_ema": inner(7), "model": inner()},
    "another network beside": lambda: {**prefixed("student."), "teacher.weight": torch.ones(3)},
    "an optimizer beside": lambda: {"model": inner(), "optimizer": {"m": inner(7)["conv1.weight"]}},
}


def save(content, path):
    torch.save(content, path)
    return path


def same(network, state):
    return all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_common_forms_are_read_and_told(form, tmp_path):
    network = build(1)
    lines = models.load_weights(network, save(FORMS[form](), tmp_path / "w.pth"))
    assert same(network.network, inner())
    assert network.normalize.mean.flatten().tolist() == pytest.approx([0.3] * 3)
    assert lines[0].startswith("weights: ")
    assert ("not read, though they fit too" in " ".join(lines)) == form.startswith("an ema")


@pytest.mark.parametrize("prefix", ["1.", "1.module.", "module.1.", "net."])
@pytest.mark.parametrize("names", [("mean", "std"), ("mu", "sigma"), ("means", "sds")])
def test_a_normalization_in_the_file_is_taken_and_told(prefix, names, tmp_path):
    mean, std = LAYER["0.mean"], LAYER["0.std"]
    layer = {f"0.{names[0]}": mean, f"0.{names[1]}": std.view(1, 3, 1, 1)}
    network = build(1)
    lines = models.load_weights(network, save({**layer, **prefixed(prefix)}, tmp_path / "w.pth"))
    assert same(network.network, inner())
    assert network.normalize.mean.flatten().tolist() == pytest.approx(mean.tolist())
    assert network.normalize.std.flatten().tolist() == pytest.approx(std.tolist())
    assert any("normalization of the first layer is the file's own" in line for line in lines)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_floats_are_read_and_told(dtype, tmp_path):
    weights = {key: value.to(dtype) if value.is_floating_point() else value
               for key, value in inner().items()}  # fmt: skip
    network = build(1)
    lines = models.load_weights(network, save(weights, tmp_path / "w.pth"))
    assert {value.dtype for value in network.network.parameters()} == {torch.float32}
    assert any(str(dtype).removeprefix("torch.") in line for line in lines)


WRONG = {
    "a layer lacks": lambda: {k: v for k, v in inner().items() if k != "linear.bias"},
    "a layer too many": lambda: {**inner(), "extra.weight": torch.ones(3)},
    "too many behind a prefix": lambda: {**prefixed("module."), "module.extra.bias": torch.ones(3)},
    "of another shape": lambda: {**inner(), "conv1.weight": torch.ones(4, 4)},
    "something beside": lambda: {**prefixed("1."), "0.weight": torch.ones(3)},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_nothing_is_read_in_parts(wrong, tmp_path):
    network = build(1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(RequestError, match="not loaded") as told:
        models.load_weights(network, save(WRONG[wrong](), tmp_path / "w.pth"))
    assert "\n" not in str(told.value)
    assert same(network, before)


def test_two_networks_in_one_dictionary_are_refused(tmp_path):
    content = {**prefixed("first."), **prefixed("second.", 7)}
    with pytest.raises(RequestError, match="the weights of two such networks are in it"):
        models.load_weights(build(1), save(content, tmp_path / "w.pth"))


BESIDE = {
    "a numpy scalar": lambda: np.float64(0.9),
    "a numpy array": lambda: np.arange(3),
    "a namespace": lambda: argparse.Namespace(lr=0.1, path=Path("x")),
    "a path": lambda: Path("x"),
    "a counter": lambda: collections.Counter("abc"),
    "a default dictionary": lambda: collections.defaultdict(list, a=[1]),
    "a function": lambda: os.path.join,
    "an optimizer": lambda: torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1),
    "a device": lambda: torch.device("cpu"),
    "a set": lambda: {1, 2},
}


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("form", ["state_dict", "net", "model_state_dict"])
def test_what_is_no_tensor_is_left_aside(kind, form, tmp_path):
    network = build(1)
    path = save(
        {"first": BESIDE[kind](), form: inner(), "best": BESIDE[kind]()}, tmp_path / "w.pth"
    )
    models.load_weights(network, path)
    assert same(network.network, inner())


class Bomb:
    """Makes a folder when it is unpickled, in one of the ways that a pickle has."""

    def __init__(self, how, place):
        self.how, self.place = how, str(place)

    def __reduce__(self):
        if self.how == "call":
            return os.mkdir, (self.place,)
        if self.how == "nested":
            return getattr, (os, "mkdir"), None, None, iter([(self.place, 1)])
        if self.how == "items":
            return collections.OrderedDict, (), None, None, iter([("x", Inner(self.place))])
        return eval, (f"__import__('os').mkdir({self.place!r})",)


class Inner:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.mark.parametrize("how", ["call", "items", "eval"])
@pytest.mark.parametrize("where", ["beside", "as a key's neighbor", "in the state dict"])
def test_hostile_objects_beside_weights_are_not_run(how, where, tmp_path):
    trace = tmp_path / "was_run"
    content = {
        "beside": {"state_dict": inner(), "best": Bomb(how, trace)},
        "as a key's neighbor": {"best": [1, Bomb(how, trace)], "net": inner()},
        "in the state dict": {"state_dict": {**inner(), "note": Bomb(how, trace)}},
    }[where]
    path = save(content, tmp_path / "w.pth")
    network = build(1)
    lines = models.load_weights(network, path)
    assert not trace.exists()
    assert same(network.network, inner())
    assert any("left aside, neither imported nor called" in line for line in lines)
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file was not hostile: the test shows nothing"


def rewrite(source, target, change):
    """Copies a file of PyTorch's, its pickle changed by a function."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return target


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    from raybust.models.unpickle import read_tensors

    path = save({"best": np.float64(1), "w": torch.arange(300.0)}, tmp_path / "w.pth")
    assert torch.equal(read_tensors(path)[0]["w"], torch.arange(300.0))
    size = b"M\x2c\x01"  # 300
    grown = rewrite(
        path, tmp_path / "g.pth", lambda pkl: pkl.replace(b"K\x00" + size, b"K\x00M\xff\xff")
    )
    with pytest.raises(ValueError, match="beyond its storage"):
        read_tensors(grown)


def test_names_with_dots_and_extensions_import_nothing(tmp_path, monkeypatch):
    from raybust.models.unpickle import read_tensors

    hostile = b"\x80\x04\x8c\x05torch\x8c\x0c_utils.os.sy\x93)R."
    path = rewrite(
        save({"w": torch.ones(2)}, tmp_path / "w.pth"), tmp_path / "h.pth", lambda _: hostile
    )
    monkeypatch.setattr("builtins.__import__", lambda *args, **kw: pytest.fail("imported"))
    content, strange = read_tensors(path)
    monkeypatch.undo()
    assert content == {}
    assert strange == ["torch._utils.os.sy"]


def test_compressed_storages_and_torn_archives_are_refused(tmp_path):
    from raybust.models.unpickle import read_tensors

    path = save({"best": np.float64(1), "w": torch.arange(300.0)}, tmp_path / "w.pth")
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match="compressed"):
        read_tensors(packed)
    torn = tmp_path / "torn.pth"
    torn.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="not a valid PyTorch file"):
        read_tensors(torn)


def test_a_hostile_file_without_weights_is_refused_by_what_it_would_run(tmp_path):
    trace = tmp_path / "was_run"
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"state_dict": Inner(str(trace))}))
    with pytest.raises(RequestError, match="would run code"):
        models.load_weights(build(1), path)
    assert not trace.exists()


def test_a_normalization_that_the_user_sets_stays(tmp_path):
    network = build(1)
    path = save({**LAYER, **prefixed("1.")}, tmp_path / "w.pth")
    lines = models.load_weights(network, path, normalization=False)
    assert network.normalize.mean.flatten().tolist() == pytest.approx([0.3] * 3)
    assert any("is not used, another one is set" in line for line in lines)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5,) * 3, (0.0, 1, 1)), ((0.5,) * 3, (float("nan"), 1, 1)), ((123.0,) * 3, (58.0,) * 3)],
)
def test_a_normalization_of_other_images_is_not_used_and_told(tmp_path, mean, std):
    network = build(1)
    layer = {"0.mean": torch.tensor(mean), "0.std": torch.tensor(std)}
    lines = models.load_weights(network, save({**layer, **prefixed("1.")}, tmp_path / "w.pth"))
    assert network.normalize.mean.flatten().tolist() == pytest.approx([0.3] * 3)
    assert any("is not of images in [0, 1] and is not used" in line for line in lines)


def test_means_of_something_else_are_no_normalization(tmp_path):
    beside = {"criterion.mu": torch.ones(3), "criterion.sigma": torch.ones(3)}
    network = build(1)
    models.load_weights(network, save({**beside, **prefixed("net.")}, tmp_path / "w.pth"))
    assert network.normalize.mean.flatten().tolist() == pytest.approx([0.3] * 3)


def test_two_fitting_dictionaries_of_which_none_is_an_average_are_refused(tmp_path):
    content = {"best": inner(), "last": inner(7)}
    with pytest.raises(RequestError, match=r"two such networks are in it: 'best'.* and 'last'"):
        models.load_weights(build(1), save(content, tmp_path / "w.pth"))
    network = build(1)
    models.load_weights(network, save({"best": inner(), "last": inner()}, tmp_path / "w.pth"))
    assert same(network.network, inner())


def test_an_average_behind_a_prefix_comes_after_the_network(tmp_path):
    content = {"state_dict": {**prefixed("model."), **prefixed("ema_model.", 7)}}
    network = build(1)
    models.load_weights(network, save(content, tmp_path / "w.pth"))
    assert same(network.network, inner())


def test_integers_are_no_weights(tmp_path):
    weights = {key: value.long() for key, value in inner().items()}
    with pytest.raises(RequestError, match="of another type"):
        models.load_weights(build(1), save(weights, tmp_path / "w.pth"))


def test_dictionaries_that_share_parts_are_read_once(tmp_path):
    from raybust.models.unpickle import read_tensors

    shared = {"w": torch.ones(2)}
    for _ in range(30):
        shared = {"a": shared, "b": shared}
    path = save({"best": np.float64(1), **shared}, tmp_path / "w.pth")
    found, _ = read_tensors(path)
    assert set(found) == {"a"}, "b is the same again"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_diverged_are_refused(tmp_path, value):
    weights = inner()
    weights["linear.bias"][3] = value
    with pytest.raises(RequestError, match=r"linear.bias holds NaN or infinity"):
        models.load_weights(build(1), save(weights, tmp_path / "w.pth"))


COPIES = ("ema.", "ema_model.", "teacher.", "averaged.module.")


@pytest.mark.parametrize("prefix", COPIES)
@pytest.mark.parametrize("nested", [False, True])
def test_bare_weights_come_before_an_average_beside_them(tmp_path, prefix, nested):
    content = {**inner(), **prefixed(prefix, 7)}
    network = build(1)
    path = save({"state_dict": content} if nested else content, tmp_path / "w.pth")
    lines = models.load_weights(network, path)
    assert same(network.network, inner())
    assert any("not read, though they fit too" in line for line in lines)


@pytest.mark.parametrize("prefix", ["init.", "best.", "momentum_encoder.", "module."])
def test_bare_weights_beside_a_copy_that_is_no_average_are_refused(tmp_path, prefix):
    content = {**inner(), **prefixed(prefix, 7)}
    with pytest.raises(RequestError, match="two such networks are in it"):
        models.load_weights(build(1), save(content, tmp_path / "w.pth"))


MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.3, 0.2, 0.1])
STORED = {
    "beside the state dict": lambda: {"state_dict": inner(), "mean": MEAN, "std": STD},
    "lists": lambda: {"model": inner(), "mean": MEAN.tolist(), "std": tuple(STD.tolist())},
    "a dictionary": lambda: {"net": inner(), "normalize": {"mean": MEAN, "std": STD}},
    "a transform": lambda: {"net": inner(), "transform": {"mean": MEAN, "std": STD.tolist()}},
    "beside bare weights": lambda: {**inner(), "mean": MEAN, "std": STD},
    "four dimensions": lambda: {
        "model": inner(), "mean": MEAN.view(1, 3, 1, 1), "std": STD.view(1, 3, 1, 1)
    },
}  # fmt: skip


@pytest.mark.parametrize("form", STORED)
def test_a_normalization_beside_the_state_dict_is_taken(tmp_path, form):
    network = build(1)
    models.load_weights(network, save(STORED[form](), tmp_path / "w.pth"))
    assert network.normalize.mean.flatten().tolist() == pytest.approx(MEAN.tolist())
    assert network.normalize.std.flatten().tolist() == pytest.approx(STD.tolist())


def test_one_number_of_a_normalization_is_that_of_every_channel(tmp_path):
    network = build(1)
    layer = {"0.mean": MEAN, "0.std": torch.tensor([0.25])}
    models.load_weights(network, save({**layer, **prefixed("1.")}, tmp_path / "w.pth"))
    assert network.normalize.mean.flatten().tolist() == pytest.approx(MEAN.tolist())
    assert network.normalize.std.flatten().tolist() == pytest.approx([0.25] * 3)


def test_a_single_number_beside_the_state_dict_is_that_of_every_channel(tmp_path):
    """But a sigma is more often the noise of the training."""
    network = build(1)
    content = {"state_dict": inner(), "mean": 0.4, "std": 0.2, "epoch": 3}
    models.load_weights(network, save(content, tmp_path / "w.pth"))
    assert network.normalize.mean.flatten().tolist() == pytest.approx([0.4] * 3)
    assert network.normalize.std.flatten().tolist() == pytest.approx([0.2] * 3)
    before = build(1).normalize.mean.tolist()
    network = build(1)
    models.load_weights(network, save({**content, "std": "?", "sigma": 0.25}, tmp_path / "v.pth"))
    assert network.normalize.mean.tolist() == before


@pytest.mark.parametrize("other", [{}, {"norm.var": STD}])
def test_half_a_normalization_is_warned_of(tmp_path, other):
    content = {"norm.mean": MEAN, **other, **prefixed("net.")}
    lines = models.load_weights(build(1), save(content, tmp_path / "w.pth"))
    assert any("norm.mean" in line and "may be a normalization" in line for line in lines)
    with pytest.raises(RequestError, match="not the weights of this network"):
        models.load_weights(build(1), save({"0.mean": MEAN, **prefixed("1.")}, tmp_path / "w.pth"))


class Itself(nn.Module):
    """Normalizes its images itself, by buffers of the names that a normalizing layer has."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", MEAN.view(3, 1, 1))
        self.register_buffer("std", STD.view(3, 1, 1))
        self.body = nn.Linear(3 * 64, 10)

    def forward(self, images):
        return self.body(((images - self.mean) / self.std).flatten(1))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_buffers_of_a_network_that_normalizes_itself_are_not_applied_twice(tmp_path, prefix):
    network = models.Normalized(models.Normalize((0.3,) * 3, (0.2,) * 3), Itself())
    content = {prefix + key: value for key, value in Itself().state_dict().items()}
    lines = models.load_weights(network, save(content, tmp_path / "w.pth"))
    assert network.normalize.mean.flatten().tolist() == pytest.approx([0.3] * 3)
    assert not any("normalization" in line for line in lines)


def test_the_normalization_of_whole_weights_gives_way_to_the_users(tmp_path):
    content = {key: v.clone() for key, v in build(0).state_dict().items()}
    content["normalize.mean"].fill_(0.6)
    network = build(1)
    path = save(content, tmp_path / "w.pth")
    lines = models.load_weights(network, path, normalization=False)
    assert network.normalize.mean.flatten().tolist() == pytest.approx([0.3] * 3)
    assert any("is not used, another one is set" in line for line in lines)
    models.load_weights(network, path)
    assert network.normalize.mean.flatten().tolist() == pytest.approx([0.6] * 3)


def test_the_normalization_of_whole_weights_of_other_images_is_not_used(tmp_path):
    content = {key: v.clone() for key, v in build(0).state_dict().items()}
    content["normalize.mean"].fill_(123.0)
    network = build(1)
    lines = models.load_weights(network, save(content, tmp_path / "w.pth"))
    assert network.normalize.mean.flatten().tolist() == pytest.approx([0.3] * 3)
    assert any("is not of images in [0, 1] and is not used" in line for line in lines)


@pytest.mark.parametrize(
    "change",
    [lambda v: v.to_sparse(), lambda v: v.to("meta")],
    ids=["sparse", "without values"],
)
def test_weights_that_are_no_plain_tensors_are_one_line(tmp_path, change):
    content = inner()
    last = list(content)[-1]
    content[last] = change(content[last])
    with pytest.raises(RequestError, match=f"{last} is sparse or has no values"):
        models.load_weights(build(1), save(content, tmp_path / "w.pth"))


@pytest.mark.parametrize("first", ["sigma", "std"])
def test_a_noise_beside_the_standard_deviation_is_not_taken_for_it(tmp_path, first):
    layer = {"sigma": torch.tensor(0.25), "std": torch.tensor([0.3, 0.2, 0.1])}
    order = {first: layer[first]} | layer
    network, file = build(1), tmp_path / "w.pt"
    torch.save({"state_dict": inner(), "mean": torch.tensor([0.5, 0.4, 0.3]), **order}, file)
    models.load_weights(network, file)
    assert network.normalize.std.flatten().tolist() == pytest.approx([0.3, 0.2, 0.1])

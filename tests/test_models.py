"""Networks: published parameter counts, external weights, normalization, tracing, rejections."""

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import fx, nn

from raybust import methods, models
from raybust.config.inputs import Model
from raybust.errors import RequestError

SHARED = Path(__file__).resolve().parents[2] / "shared"
RESNET20 = SHARED / "checkpoints/akamaster_resnet20/resnet20-12fca82f.th"
CNN_A = SHARED / "checkpoints/cnn_a_adv/cifar_cnn_a_adv.model"
CIFAR = SHARED / "data/cifar10-subset.npz"
needs_shared = pytest.mark.skipif(
    not (RESNET20.exists() and CNN_A.exists() and CIFAR.exists()),
    reason="the shared folder with checkpoints and data is not beside this checkout",
)

CHANNEL_STATISTICS = {1: ((0.3,), (0.37,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


def build(name="small_cnn", shape=(3, 32, 32), num_classes=10, seed=0, width=8, **statistics):
    torch.manual_seed(seed)
    mean, std = CHANNEL_STATISTICS[shape[0]]
    statistics = {"mean": mean, "std": std, **statistics}
    return models.build(
        Model(name=name, width=width), shape=shape, num_classes=num_classes, **statistics
    )


def images_of(shape, count=3, seed=1):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def cifar_test(count):
    with np.load(CIFAR) as arrays:
        images = torch.from_numpy(arrays["x_test"][:count]).permute(0, 3, 1, 2) / 255
        return images.contiguous(), torch.from_numpy(arrays["y_test"][:count].astype(np.int64))


def accuracy(network, images, labels):
    with torch.no_grad():
        return (network.eval()(images).argmax(1) == labels).double().mean().item()


def user_module(folder, monkeypatch, text, name="their_networks"):
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)


# --- built-in networks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("resnet20", 269_722, 40_551_040),
        ("resnet56", 853_018, 125_485_696),
        ("resnet110", 1_727_962, 252_887_680),
        ("preact_resnet18", 11_172_170, 555_422_720),
        ("wrn28_10", 36_479_194, 5_243_328_768),
        ("wrn16_4", 2_748_890, None),  # of the paper: 2.7 million; 8.9 and 11.0 million
        ("wrn40_4", 8_949_210, None),
        ("wrn16_8", 10_961_370, None),
        # 3 -> 32 at 32x32, 32 -> 64 at 16x16, 64 -> 64 at 8x8, 4096 -> 128 -> 10, with biases
        (
            "small_cnn",
            (27 + 1) * 32 + (288 + 1) * 64 + (576 + 1) * 64 + 4097 * 128 + 129 * 10,
            27 * 32 * 1024 + 288 * 64 * 256 + 576 * 64 * 64 + 4096 * 128 + 1280,
        ),
    ],
)
def test_sizes_are_the_published_ones(name, parameters, multiply_adds):
    before = torch.get_rng_state()
    found = models.describe(name)
    assert found["name"] == name
    assert found["parameters"] == parameters
    assert multiply_adds in (None, found["multiply_adds"])
    assert found["source"]
    assert torch.equal(before, torch.get_rng_state())


def test_names_are_the_described_ones():
    assert models.names() == [
        "small_cnn",
        "lenet",
        "resnet20",
        "resnet56",
        "resnet110",
        "preact_resnet18",
        "wrn28_10",
    ]


@pytest.mark.parametrize("name", ["wrn30_10", "wrn4_2"])
def test_a_wide_network_of_another_depth_is_refused(name):
    with pytest.raises(RequestError, match=rf"got '{name}', expected a depth of 6 n \+ 4"):
        build(name, (1, 8, 8))


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize(
    ("activation", "function"), [("silu", torch.nn.SiLU), ("softplus", torch.nn.Softplus)]
)
def test_another_activation_takes_the_place_of_every_relu(name, activation, function):
    """The weights are the same: initialization does not depend on it."""
    torch.manual_seed(0)
    given = {"shape": (1, 8, 8), "num_classes": 3, "mean": [0.5], "std": [0.5]}
    plain = models.build(Model(name=name), **given)
    torch.manual_seed(0)
    other = models.build(Model(name=name, activation=activation), **given)
    kinds = [type(module) for module in other.modules()]
    expected = [type(module) for module in plain.modules()]
    assert [function if kind is torch.nn.ReLU else kind for kind in expected] == kinds
    assert function in kinds
    assert torch.nn.ReLU not in kinds
    for mine, theirs in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_networks_of_others_keep_their_activation():
    config = Model(name="torchvision:resnet18", activation="silu")
    with pytest.raises(RequestError, match=r"model\.activation: got 'silu', expected relu"):
        models.build(config, shape=(3, 32, 32), num_classes=3, mean=[0.5] * 3, std=[0.5] * 3)


@pytest.mark.parametrize("mode", ["diagonal", "channel", "channel_exact"])
def test_covariances_and_bounds_refuse_another_activation(mode):
    network = models.build(
        Model(width=2, activation="silu"), shape=(1, 8, 8), num_classes=3, mean=[0.5], std=[0.5]
    )
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    with pytest.raises(RequestError, match=r"\(SiLU\) has no rule for covariances"):
        methods.get("covariance")(mode=mode).setup(network, images, labels)
    with pytest.raises(RequestError, match=r"\(SiLU\) has no rule for bounds"):
        methods.get("ibp")().setup(network, images, labels)


@pytest.mark.parametrize("name", models.names())
def test_traced_by_fx_and_gradient_reaches_all_parameters(name):
    shape = (1, 8, 8)
    network = build(name, shape, num_classes=7)
    assert network.training
    assert all(module.training for module in network.modules())
    traced = fx.symbolic_trace(network)
    network(images_of(shape)).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key
    images = images_of(shape)
    logits = network.eval()(images)
    assert logits.shape == (3, 7)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(traced.eval()(images), logits, rtol=0, atol=0)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert len(called) == len(set(called)), "a module is used twice: hooks could not tell the uses"
    assert not any(getattr(module, "inplace", False) for module in network.modules())


@pytest.mark.parametrize("name", ["small_cnn", "resnet20", "preact_resnet18"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 33, 20), (3, 64, 64)])
def test_any_size_of_image(name, shape):
    assert build(name, shape, num_classes=4)(images_of(shape, 2)).shape == (2, 4)


def test_lenet_has_the_weights_of_the_paper_and_takes_small_images():
    network = build("lenet", (1, 28, 28)).network
    assert sum(part.numel() for part in network.parameters()) == 61_706
    for shape in ((1, 4, 4), (1, 8, 8), (3, 19, 20), (3, 20, 20), (3, 32, 32), (1, 28, 20)):
        assert build("lenet", shape)(torch.rand(2, *shape)).shape == (2, 10)


def test_small_cnn_has_its_width_and_no_normalization_layer():
    network = build("small_cnn", (1, 4, 4), width=5).network
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [5, 10, 10]
    assert {type(m) for m in network} == {nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear}


def test_weights_are_he_initialized_and_follow_the_seed():
    one, same, other = (build("small_cnn", seed=seed, width=64) for seed in (3, 3, 4))
    for key, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[key]), key
    assert not torch.equal(one.network[0].weight, other.network[0].weight)
    for module in (m for m in one.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
        fan_in = module.weight[0].numel()
        tolerance = 5 / (2 * module.weight.numel()) ** 0.5  # five standard errors
        assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=tolerance)
        assert not module.bias.any()


def test_option_a_shortcut_by_hand():
    shortcut = build("resnet20", (1, 8, 8)).network.layer2[0].shortcut
    features = images_of((16, 5, 5))
    expected = torch.zeros(3, 32, 3, 3)
    expected[:, 8:24] = features[:, :, [0, 2, 4]][..., [0, 2, 4]]
    assert torch.equal(shortcut(features), expected)
    assert not list(shortcut.parameters())


# --- normalization ----------------------------------------------------------------------------


def test_normalization_is_the_formula_and_follows_type_and_layout():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    network = build("small_cnn", (3, 8, 8), mean=mean, std=std).eval()
    images = images_of((3, 8, 8))
    expected = images.clone()
    for channel in range(3):
        expected[:, channel] = (images[:, channel] - mean[channel]) / std[channel]
    assert torch.equal(network.normalize(images), expected)
    logits = network(images)
    assert torch.equal(logits, network.network(expected))
    last = images.to(memory_format=torch.channels_last)
    assert network.normalize(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network.to(memory_format=torch.channels_last)(last), logits)
    double = network.double()(images.double())
    assert double.dtype == torch.float64
    assert network.normalize.mean.dtype == torch.float64
    torch.testing.assert_close(double.float(), logits, rtol=1e-4, atol=1e-5)


def test_state_dict_round_trip_carries_normalization():
    one = build("resnet20", (1, 8, 8), seed=0).eval()
    other = build("resnet20", (1, 8, 8), seed=1, mean=(0.9,), std=(0.1,)).eval()
    images = images_of((1, 8, 8))
    assert not torch.equal(one(images), other(images))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(images), other(images))
    assert {"normalize.mean", "normalize.std"} <= one.state_dict().keys()


# --- the networks of others -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision:mobilenet_v3_small", (1, 32, 32)),
        ("torchvision:squeezenet1_1", (3, 32, 32)),
        ("timm:test_resnet", (1, 32, 32)),
        ("timm:test_vit.r160_in1k", (3, 32, 32)),  # wants img_size, has a tag
        ("timm:test_vit", (1, 32, 48)),
    ],
)
def test_networks_of_libraries(name, shape):
    one, same = build(name, shape, num_classes=6), build(name, shape, num_classes=6)
    images = images_of(shape)
    assert torch.equal(one.eval()(images), same.eval()(images))
    assert one.train()(images).shape == (3, 6)
    first = next(m for m in one.modules() if isinstance(m, nn.Conv2d))
    assert first.in_channels == first.weight.shape[1] == shape[0]


def test_torchvision_auxiliary_heads_are_off():
    assert build("torchvision:googlenet", (3, 32, 32))(images_of((3, 32, 32))).shape == (3, 10)


def test_callable_gets_the_keywords_that_it_accepts(tmp_path, monkeypatch):
    user_module(
        tmp_path,
        monkeypatch,
        """
        from torch import nn
        seen = {}
        def some(image_size, num_classes=2, other=5):
            seen["some"] = (image_size, num_classes, other)
            return nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))
        def all_of_them(**keywords):
            seen["all"] = keywords
            return nn.Sequential(nn.Flatten(), nn.LazyLinear(keywords["num_classes"])).eval()
        """,
    )
    path = list(sys.path)
    build("their_networks:some", (3, 4, 4), num_classes=6)
    network = build("their_networks:all_of_them", (1, 4, 6), num_classes=3)
    import their_networks

    assert their_networks.seen["some"] == (4, 6, 5)
    assert their_networks.seen["all"] == {"num_classes": 3, "in_channels": 1, "image_size": (4, 6)}
    assert not network.network.training, "the check left a mode that was not the user's"
    assert sys.path == path


def test_callable_of_a_package_beside_no_working_directory(tmp_path, monkeypatch):
    """A console script does not have the working directory on its path."""
    (tmp_path / "package_of_theirs").mkdir()
    (tmp_path / "package_of_theirs/net.py").write_text(
        "from torch import nn\n"
        "def make(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    network = build("package_of_theirs.net:make", (1, 4, 4))
    assert network(images_of((1, 4, 4))).shape == (3, 10)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet21", ["unknown model 'resnet21'", "Did you mean 'resnet20'", "timm:NAME"]),
        ("torchvision:resnet19", ["unknown torchvision model", "Did you mean 'resnet18'"]),
        ("torchvision:fasterrcnn_resnet50_fpn", ["unknown torchvision model"]),
        ("torchvision:", ["unknown torchvision model ''"]),
        ("timm:resnet5O", ["unknown timm model", "Did you mean 'resnet50'", "The closest of"]),
        ("timm:resnet18.nonsense", ["weight tag of timm:resnet18 'nonsense'", "a1_in1k"]),
        ("timm:resnet18.a1_in1", ["tag of timm:resnet18 'a1_in1'", "Did you mean 'a1_in1k'"]),
        ("timm:hf-hub:a/b", ["unknown timm model 'hf-hub:a/b'. The closest of"]),
        ("torchvision:vit_b_16", ["torchvision:vit_b_16", "images of 3x8x8"]),
        ("torchvision:squeezenet1_1", ["images of 3x8x8", "RuntimeError", "expected finite"]),
        ("no_such_module_x:make", ["'no_such_module_x' cannot be imported", "module:callable"]),
        (":make", ["cannot be imported"]),
        ("broken_x:make", ["'broken_x' cannot be imported", "ZeroDivisionError"]),
        ("syntax_x:make", ["'syntax_x' cannot be imported", "SyntaxError"]),
        ("bad_x:goot", ["unknown callable of module 'bad_x' 'goot'", "Did you mean 'good'"]),
        ("bad_x:number", ["unknown callable of module 'bad_x' 'number'"]),
        ("bad_x:", ["unknown callable of module 'bad_x' ''"]),
        ("bad_x:raises", ["'bad_x:raises' fails", "KeyError", "oops"]),
        ("bad_x:wants_more", ["'bad_x:wants_more' fails", "depth"]),
        ("bad_x:no_module", ["returned type int", "expected a torch.nn.Module"]),
        ("bad_x:fails_forward", ["bad_x:fails_forward", "images of 3x8x8", "RuntimeError"]),
        ("bad_x:wrong_count", ["shape (2, 11)", "logits of shape (2, 10)"]),
        ("bad_x:not_finite", ["not finite", "logits of shape (2, 10)"]),
        ("bad_x:gives_tuple", ["gives a tuple", "logits of shape (2, 10)"]),
    ],
)
def test_refused_names(name, words, tmp_path, monkeypatch):
    (tmp_path / "broken_x.py").write_text("1 / 0\n")
    (tmp_path / "syntax_x.py").write_text("def (:\n")
    user_module(
        tmp_path,
        monkeypatch,
        """
        import torch
        from torch import nn
        number = 3
        def good(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        def raises(): raise KeyError("oops\\nsecond line")
        def wants_more(depth): return good()
        def no_module(): return 3
        def fails_forward(): return nn.Linear(5, 10)
        def wrong_count(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 11))
        def not_finite(): return nn.Sequential(good(), nn.Threshold(1e9, float("nan")))
        class gives_tuple(nn.Module):
            def forward(self, images): return images, images
        """,
        name="bad_x",
    )
    with pytest.raises(RequestError) as caught:
        build(name, (3, 8, 8))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    for word in words:
        assert word in message, message


def test_describe_refuses_what_is_not_built_in():
    with pytest.raises(RequestError, match="Did you mean 'resnet56'"):
        models.describe("resnet65")


# --- weights files ----------------------------------------------------------------------------


@needs_shared
def test_resnet20_of_others_is_as_accurate_as_published():
    network = build("resnet20")
    models.load_weights(network, RESNET20)
    images, labels = cifar_test(500)
    assert accuracy(network, images, labels) == pytest.approx(0.918, abs=0.03)
    inner = build("resnet20", seed=5).network
    models.load_weights(inner, RESNET20)
    assert torch.equal(inner.layer3[2].bn2.running_var, network.network.layer3[2].bn2.running_var)


@needs_shared
def test_adversarially_trained_cnn_of_others_through_a_callable(tmp_path, monkeypatch):
    user_module(
        tmp_path,
        monkeypatch,
        """
        from torch import nn
        def cnn_a(num_classes, in_channels):
            return nn.Sequential(
                nn.Conv2d(in_channels, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1),
                nn.ReLU(), nn.Flatten(), nn.Linear(2048, 100), nn.ReLU(),
                nn.Linear(100, num_classes))
        """,
    )
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    network = build("their_networks:cnn_a", mean=mean, std=std)
    models.load_weights(network, CNN_A)
    assert accuracy(network, *cifar_test(2000)) == pytest.approx(0.700, abs=0.0005)


def save(content, path):
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("part", ["whole", "inner"])
@pytest.mark.parametrize("form", ["bare", "state_dict", "model", "parallel", "safetensors"])
def test_forms_of_weights_files(part, form, tmp_path):
    one = build("resnet20", (1, 8, 8), seed=0, mean=(0.7,))
    one(images_of((1, 8, 8)))  # moves the statistics of batch norm
    weights = (one if part == "whole" else one.network).state_dict()
    content = {
        "state_dict": {"state_dict": weights, "epoch": 3},
        "model": {"model": weights, "best": 0.5},
        "parallel": {"state_dict": {f"module.{key}": value for key, value in weights.items()}},
    }.get(form, weights)
    path = save(content, tmp_path / f"w.{'safetensors' if form == 'safetensors' else 'pt'}")
    other = build("resnet20", (1, 8, 8), seed=1)
    models.load_weights(other, path)
    kept = other.normalize.mean.item()
    assert kept == pytest.approx(0.7 if part == "whole" else 0.3)
    for key, value in one.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[key]), key
    if form == "safetensors":
        assert load_file(path).keys() == weights.keys()


def changed(weights, *, drop=(), add=(), reshape=()):
    kept = {key: value for key, value in weights.items() if key not in drop}
    return {**kept, **{key: torch.zeros(2) for key in (*add, *reshape)}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drop": ["0.weight"]}, ["1 missing: 0.weight"]),
        ({"drop": ["0.weight", "0.bias", "2.weight", "2.bias"]}, ["4 missing", "2.weight, ..."]),
        ({"add": ["99.bias"]}, ["1 unexpected: 99.bias"]),
        ({"reshape": ["9.bias"]}, ["1 of another shape: 9.bias is (2,) instead of (10,)"]),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_that_do_not_match_leave_the_network_alone(change, words, suffix, tmp_path):
    network = build("small_cnn", (1, 8, 8))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    weights = {key: value + 1 for key, value in network.network.state_dict().items()}
    path = save(changed(weights, **change), tmp_path / f"w.{suffix}")
    with pytest.raises(RequestError) as caught:
        models.load_weights(network, path)
    for word in (str(path), *words):
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Harmless:
    """A class of someone's code."""


@pytest.mark.parametrize("how", ["torch", "pickle", 2, 0, "object"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(how, tmp_path):
    trace, path = tmp_path / "was_run", tmp_path / "w.pt"
    content = {"state_dict": Harmless() if how == "object" else Malicious(trace)}
    if how in ("pickle", 2, 0):
        path.write_bytes(pickle.dumps(content, protocol=None if how == "pickle" else how))
    else:
        torch.save(content, path)
    with pytest.raises(RequestError, match="not loaded: the file would run code") as caught:
        models.load_weights(build("small_cnn", (1, 8, 8)), path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    if how != "object":
        torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())
        assert trace.exists(), "the file was not malicious, so this test showed nothing"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.pt", None, "cannot be read: No such file"),
        ("w.safetensors", None, "cannot be read: No such file"),
        ("w.pt", b"", "not a weights file"),
        ("w.pt", b"no pickle at all", "not a weights file"),
        ("w.pt", b"PK\x03\x04 a torn zip", "not a weights file"),
        ("w.safetensors", b"\xff" * 64, "not a weights file"),
        ("w.pt", pickle.dumps([1, 2]), "not a weights file"),
        ("w.pt", pickle.dumps({"epoch": 3, "lr": 0.1}), "not a weights file"),
        ("w.pt", pickle.dumps({"state_dict": {}}), "not a weights file"),
    ],
)
def test_files_that_hold_no_weights(name, content, words, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError) as caught:
        models.load_weights(build("small_cnn", (1, 8, 8)), path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_weights_file(tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        models.load_weights(build("small_cnn", (1, 8, 8)), tmp_path)


def test_importing_models_imports_neither_torchvision_nor_timm():
    code = "import sys, raybust.models; print(sorted({'timm', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"

"""`raybust.testing`: its checks of networks and data sets can fail, and its classes run them.

The checks of methods are held to the same in tests/methods/test_conformance.py.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from raybust import data, models, testing
from raybust.config.inputs import Data
from raybust.data import Parts, Source, Split
from raybust.errors import RequestError
from raybust.methods.standard import Standard
from raybust.testing import distributed

SMALL, COLOR = (1, 8, 8), (3, 32, 32)


class TestSmallCnn(testing.NetworkConformance):
    network = "small_cnn"


class TestLenet(testing.NetworkConformance):
    network = "lenet"


class TestResnet20(testing.NetworkConformance):
    network = "resnet20"


class TestPreactResnet18(testing.NetworkConformance):
    network = "preact_resnet18"
    shapes = (SMALL,)


class TestDigits(testing.DatasetConformance):
    dataset = "digits"


class TestNpz(testing.DatasetConformance):
    dataset = "npz"

    @pytest.fixture
    def config(self, tmp_path):
        draw = np.random.default_rng(0)
        np.savez(
            tmp_path / "set.npz",
            x_train=draw.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8),
            y_train=np.arange(40) % 4,
            x_test=draw.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8),
            y_test=np.arange(12) % 4,
        )
        return Data(name="npz", path=str(tmp_path / "set.npz"))


# --- networks ---------------------------------------------------------------------------------


class Faulty(nn.Module):
    """Breaks what the checks guard, one rule at a time."""

    made = itertools.count()

    def __init__(self, fault, classes, channels):
        super().__init__()
        self.fault = fault
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, track_running_stats=fault != "batch")
        self.head = nn.Linear(4, classes + (fault == "count"))
        if fault == "dead":
            self.unused = nn.Linear(3, 3)
        elif fault == "lost weights":
            self.scale = [torch.rand(4)]
        elif fault == "shared":
            self.again = nn.Linear(4, classes)
            self.again.weight = self.head.weight
        elif fault == "unseeded":
            with torch.no_grad():
                self.head.bias.add_(next(self.made))
        elif fault == "no copy":
            self.stream = (number for number in range(3))

    def train(self, mode=True):
        super().train(mode)
        if self.fault == "mode" and not mode:
            self.norm.training = True
        return self

    def forward(self, images):
        if self.fault == "cut":
            images = images.detach()
        hidden = self.norm(self.conv(images)).relu().mean((2, 3))
        if self.fault == "random":
            hidden = nn.functional.dropout(hidden, 0.5, training=True)
        if self.fault == "lost weights":
            hidden = hidden * self.scale[0]
        logits = self.head(hidden)
        if self.fault == "shared":
            logits = logits + self.again(hidden)
        if self.fault == "nan" and self.training:
            logits = logits / 0
        return logits


def faulty(fault):
    """Returns what makes a faulty network."""
    return lambda num_classes, in_channels: Faulty(fault, num_classes, in_channels)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("count", testing.check_logits),
        ("nan", testing.check_logits),
        ("mode", testing.check_modes),
        ("random", testing.check_modes),
        ("lost weights", testing.check_state_dict),
        ("shared", testing.check_state_dict),
        ("no copy", testing.check_state_dict),
        ("dead", testing.check_gradients),
        ("cut", testing.check_gradients),
        ("batch", testing.check_independence),
        ("unseeded", testing.check_seed),
    ],
)
def test_the_checks_of_networks_can_fail(fault, check):
    check(faulty("none"), SMALL)
    with pytest.raises((AssertionError, RuntimeError, RequestError, TypeError)):
        check(faulty(fault), SMALL)


def test_a_name_and_a_callable_are_built_as_a_run_builds_them():
    for network in ("resnet20", lambda num_classes: models._BUILT_IN["resnet20"].make(
        COLOR, num_classes, None
    )):  # fmt: skip
        built = testing.built(network, COLOR)
        assert isinstance(built, models.Normalized)
        assert built(torch.rand(2, *COLOR)).shape == (2, testing.CLASSES)


# --- data sets --------------------------------------------------------------------------------

_loads = itertools.count()


def split(count, fault="", part="train"):
    """Returns one part; a fault breaks one rule."""
    draw = torch.Generator().manual_seed(next(_loads) if fault == f"unstable {part}" else 0)
    images = torch.randint(0, 256, (count, 1, 5, 4), generator=draw, dtype=torch.uint8)
    labels, indices = torch.arange(count) % 3, torch.arange(count)
    if fault == f"labels {part}":
        labels[0] = 3
    elif fault == f"negative {part}":
        labels[0] = -1
    elif fault == f"float labels {part}":
        labels = labels.double()
    elif fault == f"repeated {part}":
        indices[0] = 1
    elif fault == f"short {part}":
        indices = indices[1:]
    scale = 100.0 if fault == f"scale {part}" else 255.0
    return Split(images, labels, indices, scale)


def source(fault=""):
    def read(config):
        train, test = split(60, fault), split(20, fault, "test")
        if fault == "seeded test":
            test = split(20 + config.split_seed)
        if fault == "other shape":
            test = Split(test.images[:, :, :4], test.labels, test.indices)
        classes = ("a", "b", "a") if fault == "classes" else ("a", "b", "c")
        return Parts(classes, train, test)

    shape = (1, 4, 5) if fault == "told shape" else (1, 5, 4)
    told = (61, 20) if fault == "told examples" else (60, 20)
    count = 4 if fault == "told classes" else 3
    return Source(read=read, about="Noise.", shape=shape, classes=count, examples=told)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("told shape", testing.check_parts),
        ("told examples", testing.check_parts),
        ("told classes", testing.check_parts),
        ("classes", testing.check_parts),
        ("other shape", testing.check_parts),
        ("labels train", testing.check_labels),
        ("labels test", testing.check_labels),
        ("negative test", testing.check_labels),
        ("float labels test", testing.check_labels),
        ("scale train", testing.check_images),
        ("scale test", testing.check_images),
        ("repeated test", testing.check_indices),
        ("repeated train", testing.check_indices),
        ("short test", testing.check_indices),
        ("seeded test", testing.check_indices),
        ("unstable train", testing.check_digests),
        ("unstable test", testing.check_digests),
    ],
)
def test_the_checks_of_data_sets_can_fail(fault, check):
    config = Data(name="noise")
    check(source(), config)
    with pytest.raises((AssertionError, RequestError)):
        check(source(fault), config)


def test_a_callable_is_a_source():
    for check in testing.DATASET_CHECKS:
        check(source().read, Data(name="noise"))


def test_a_name_is_loaded_as_a_run_loads_it():
    loaded = testing.loaded("digits", Data(name="digits"))
    assert loaded.digest == data.load(Data(name="digits")).digest


# --- the classes ------------------------------------------------------------------------------

PLUGIN_TESTS = """
from dataclasses import dataclass, field

import torch
from theirs import Bad, Good, Wrapping, bad_network, good_network, source

from raybust.testing import DatasetConformance, MethodConformance, NetworkConformance


class TestGood(MethodConformance):
    method = Good


class TestBad(MethodConformance):
    method = Bad


class TestWrapping(MethodConformance):
    method = Wrapping
    settings = {"weight": 0.5}


class TestGoodNetwork(NetworkConformance):
    network = good_network
    shapes = ((1, 8, 8),)


class TestBadNetwork(NetworkConformance):
    network = bad_network
    shapes = ((1, 8, 8),)


class TestGoodData(DatasetConformance):
    dataset = source()


class TestBadData(DatasetConformance):
    dataset = source("labels test")
"""
THEIRS = '''
from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from test_testing import faulty, source

from raybust.config import option
from raybust.methods import Method
from raybust.methods.standard import Standard


@dataclass(frozen=True, kw_only=True)
class Good(Method):
    """Cross entropy, smoothed."""

    smoothing: float = option(0.1, "Share of the uniform distribution.", ge=0, lt=1)
    kind: Literal["mean", "sum"] = option("mean", "How the batch is reduced.")

    def loss(self, network, images, targets, context):
        loss = F.cross_entropy(
            network(images), targets, label_smoothing=self.smoothing, reduction=self.kind
        )
        context.metrics["theirs/loss"] = loss.detach()
        return loss


@dataclass(frozen=True, kw_only=True)
class Bad(Good):
    """It logs NaN for a batch of one class, and with `kind` sum it leaves the network in eval
    mode."""

    def loss(self, network, images, targets, context):
        if self.kind == "sum":
            network.eval()
        hard = targets if targets.ndim == 1 else targets.argmax(1)
        context.metrics["theirs/classes"] = 1.0 if hard.unique().numel() > 1 else float("nan")
        return super().loss(network, images, targets, context)


@dataclass(frozen=True, kw_only=True)
class Wrapping(Method):
    """Weighs the loss of `base`, and forgets its sigma."""

    base: Method = field(default_factory=Standard)
    weight: float = option(2.0, "Factor of the loss.", gt=0)

    def loss(self, network, images, targets, context):
        return self.weight * self.base.loss(network, images, targets, context)

    def noise(self):
        return None


good_network, bad_network = faulty("none"), faulty("batch")
'''


@pytest.mark.slow
def test_the_classes_run_the_checks(tmp_path):
    """What is right passes, and each fault fails in the test that is about it and in no other."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    (tmp_path / "test_theirs.py").write_text(PLUGIN_TESTS)
    here = os.pathsep.join([str(tmp_path), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "test_theirs.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": here}, capture_output=True, text=True,
    )  # fmt: skip
    found = {}
    for line in done.stdout.splitlines():
        outcome, _, rest = line.partition(" test_theirs.py::")
        if rest and outcome in ("PASSED", "FAILED", "ERROR"):
            test = rest.split(" - ")[0]
            found.setdefault(test.partition("::")[0], {})[test.partition("::")[2]] = outcome
    failed = {
        name: {test for test, outcome in tests.items() if outcome != "PASSED"}
        for name, tests in found.items()
    }
    assert failed == {
        "TestGood": set(),
        "TestBad": {"test_variant[kind=sum]", "test_metrics_on_two_ranks"},
        "TestWrapping": {"test_composition[gaussian]", "test_delegation"},
        "TestGoodNetwork": set(),
        "TestBadNetwork": {"test_independence[1x8x8]"},
        "TestGoodData": set(),
        "TestBadData": failed["TestBadData"],
    }, done.stdout
    assert failed["TestBadData"]
    assert "SKIPPED" in done.stdout
    assert len(found["TestGood"]) >= len(testing.STEP_CHECKS) + 4
    assert "assert" in done.stdout, "the asserts of the package are explained by pytest"


def _without_ddp(rank, methods, folder):
    distributed.DistributedDataParallel = lambda module: module
    distributed._rank(rank, methods, folder)


@pytest.mark.slow
def test_gradients_that_are_not_averaged_are_seen(tmp_path):
    """The same on two ranks, but without DDP."""
    testing.run_ranks(_without_ddp, tmp_path, [Standard()], tmp_path)
    for rank in range(2):
        (found,) = json.loads((tmp_path / f"{rank}.json").read_text())
        assert f"rank {rank}: network.network.head.weight" in found["gradients"][-2]
        wrong = testing.OnRanks("standard", found["gradients"], {}, [], [])
        with pytest.raises(AssertionError, match="head"):
            testing.check_gradients_on_ranks(wrong)


@pytest.mark.slow
def test_what_a_rank_raises_is_raised(tmp_path):
    with pytest.raises(ProcessRaisedException, match="'str' object has no attribute"):
        testing.on_two_ranks(["no method"], tmp_path)


def test_raybust_does_not_import_pytest():
    """Nor does any module of it but `raybust.testing`."""
    code = (
        "import sys, pkgutil, importlib, raybust\n"
        "names = [m.name for m in pkgutil.iter_modules(raybust.__path__, 'raybust.')]\n"
        "for name in names:\n"
        "    if name not in ('raybust.testing', 'raybust.__main__'):\n"
        "        importlib.import_module(name)\n"
        "assert 'raybust.methods' in sys.modules\n"
        "print([m for m in sys.modules if m.partition('.')[0] in ('pytest', '_pytest')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

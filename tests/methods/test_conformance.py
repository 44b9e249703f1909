"""The conformance suite: what holds for every method that is found, whoever wrote it."""

import pkgutil
import sys
from pathlib import Path

import pytest
import torch
from installed import install
from torch import nn

from raybust import methods, plugins, testing
from raybust.errors import RequestError
from raybust.methods import Method

SPACES = Path(__file__).parents[2] / "search_spaces"
OWN = sorted({module.name for module in pkgutil.iter_modules(methods.__path__)} - {"base"})


def test_own_methods_are_found_by_file_name():
    assert {"standard", "gaussian"} <= set(OWN) <= set(methods.names())
    for name in methods.names():
        assert methods.get(name).key == name


@pytest.fixture(scope="module")
def all_on_ranks(tmp_path_factory):
    """What every method does on two ranks, which are started once."""
    made = [methods.get(name)() for name in methods.names()]
    found = testing.on_two_ranks(made, tmp_path_factory.mktemp("ranks"))
    return {one.method: one for one in found}


class Conformance(testing.MethodConformance):
    """The class for plug-ins, but for the start of the ranks."""

    @pytest.fixture(scope="class")
    @classmethod
    def on_ranks(cls, all_on_ranks):
        return all_on_ranks[cls.method.key]


for _name in methods.names():
    _facts = {
        "method": methods.get(_name),
        "space": SPACES / f"{_name}.yaml" if _name in OWN else None,
    }
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (Conformance,), _facts)


class Careless(Method):
    """Breaks what the checks guard, one rule at a time."""

    def __init__(self, fault):
        object.__setattr__(self, "fault", fault)

    def loss(self, network, images, targets, context):
        if self.fault == "input":
            images.add_(0.01)
        elif self.fault == "global":
            images = images + torch.rand_like(images)
        elif self.fault == "mode":
            network.eval()
        elif self.fault == "flags":
            network.requires_grad_(True)
        elif self.fault == "gradient":
            nn.functional.cross_entropy(network(images), targets).backward()
        elif self.fault == "statistics":
            with torch.no_grad():
                network(images)
        elif self.fault == "uncounted":
            network = network.network
        elif self.fault == "dtype":
            images = images.float()
            return nn.functional.cross_entropy(network.float()(images), targets.float())
        elif self.fault == "targets" and targets.ndim == 2:
            targets = targets.argmax(1)
        elif self.fault == "partial":
            return network(images).mean() * 0
        elif self.fault == "ignored seed":
            torch.rand(1, generator=context.generator)
        elif self.fault == "graph":
            context.metrics["careless/logit"] = network(images).mean()
        return nn.functional.cross_entropy(network(images), targets)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("input", testing.check_inputs_untouched),
        ("global", testing.check_randomness),
        ("ignored seed", testing.check_randomness),
        ("mode", testing.check_network_untouched),
        ("flags", testing.check_network_untouched),
        ("gradient", testing.check_network_untouched),
        ("statistics", testing.check_network_untouched),
        ("uncounted", testing.check_passes),
        ("dtype", testing.check_loss_and_gradient),
        ("partial", testing.check_loss_and_gradient),
        ("targets", testing.check_targets),
        ("graph", testing.check_metrics),
    ],
)
def test_the_checks_can_fail(fault, check):
    check(Careless("none"))
    with pytest.raises((AssertionError, RuntimeError)):
        check(Careless(fault))


PLUGIN = '''
from dataclasses import dataclass

from raybust.config.options import option
from raybust.methods.standard import Standard


@dataclass(frozen=True, kw_only=True)
class Louder(Standard):
    """Standard training, louder."""

    volume: float = option(2.0, "Factor of the loss.", gt=0)

    def loss(self, network, images, targets, context):
        return self.volume * super().loss(network, images, targets, context)
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Puts a distribution with an entry point on the path, as pip would install it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "louder_plugin", raising=False)
    monkeypatch.chdir(tmp_path)

    def add(value, source=PLUGIN):
        entries = {"raybust.methods": {"loud": value}}
        install(tmp_path, "louder", entries, {"louder_plugin": source})

    yield add
    plugins.points.cache_clear()


def test_method_of_another_package(plugin, cli):
    plugin("louder_plugin:Louder")
    assert "loud" in methods.names()
    testing.check_class(methods.get("loud"))
    testing.check_step(methods.get("loud")(volume=3.0))
    listed = cli("methods")
    assert listed.code == 0
    assert "Standard training, louder." in listed.out
    shown = cli("methods", "loud")
    assert shown.code == 0
    assert "method.volume" in shown.out
    dry = cli("train", "--dry-run", "method.name=loud", "method.volume=5")
    assert dry.code == 0
    assert "volume: 5.0" in dry.out
    assert cli("train", "--dry-run", "method.name=loud", "method.volume=-5").code == 2


@pytest.mark.parametrize("value", ["louder_plugin:Missing", "no_such_plugin:Louder", "os:path"])
def test_broken_plugin_is_named(plugin, cli, value):
    """One broken package must not hide the methods of all others."""
    plugin(value)
    result = cli("train", "--dry-run", "method.name=loud")
    assert result.code == 2
    assert "loud" in result.err
    assert value.partition(":")[0] in result.err
    assert cli("train", "--dry-run", "method.name=gaussian").code == 0
    listed = cli("methods")
    assert listed.code == 0
    assert "gaussian" in listed.out


def test_unknown_method():
    with pytest.raises(RequestError, match="Did you mean 'gaussian'"):
        methods.get("gausian")

"""The conformance suite: what holds for every method that is found, whoever wrote it."""

import copy
import pkgutil
import sys
from dataclasses import fields
from pathlib import Path

import checks
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raybust import methods
from raybust.errors import RequestError
from raybust.methods import Method
from raybust.methods.gaussian import Gaussian
from raybust.methods.standard import Standard
from raybust.train.objective import Objective

SPACES = Path(__file__).parents[2] / "search_spaces"
OWN = sorted({module.name for module in pkgutil.iter_modules(methods.__path__)} - {"base"})
WRAPPERS = [
    name for name in methods.names() if "base" in {f.name for f in fields(methods.get(name))}
]


@pytest.fixture(params=methods.names())
def cls(request):
    return methods.get(request.param)


def test_own_methods_are_found_by_file_name():
    assert {"standard", "gaussian"} <= set(OWN) <= set(methods.names())
    for name in methods.names():
        assert methods.get(name).key == name


def test_class(cls):
    checks.check_class(cls)


@pytest.mark.parametrize("check", checks.STEP_CHECKS, ids=lambda check: check.__name__)
def test_step(cls, check):
    check(cls())


VARIANTS = [
    pytest.param(method, id=f"{name}-{field}={value}")
    for name in methods.names()
    for field, value, method in checks.variants(methods.get(name))
]


@pytest.mark.parametrize("method", VARIANTS)
def test_variant(method):
    """What a choice or a flag turns on keeps the rules as well."""
    checks.check_randomness(method, converges=True)
    checks.check_network_untouched(method)


@pytest.mark.parametrize("base", [Gaussian(sigma=0.5), Standard()], ids=lambda base: base.key)
@pytest.mark.parametrize("name", WRAPPERS)
def test_composition(name, base):
    method = methods.get(name)(base=base)
    checks.check_step(method)
    assert method.noise() is not None or base.noise() is None, "the base's sigma is lost"


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_a_wrapper_does_not_say_is_as_its_base_says(name):
    class Asking(Gaussian):
        balanced_classes = 3

        def front(self):
            return nn.Flatten()

    method = methods.get(name)(base=Asking(sigma=0.5))
    assert method.wrapped == Asking(sigma=0.5)
    assert method.balanced_classes == 3
    assert method.noise() == 0.5
    assert any(isinstance(module, nn.Flatten) for module in method.front().modules())


@pytest.mark.parametrize("name", OWN)
def test_search_space(name):
    checks.check_space(SPACES / f"{name}.yaml", name)


def test_distributed(tmp_path):
    """Two ranks under DDP end with the mean of their gradients, whatever the method does."""
    run_ranks(_rank, tmp_path, methods.names())


def _rank(rank, names):
    for name in names:
        method = methods.get(name)()
        images, labels, classes = checks.batch(method)
        images = (images + 0.1 * rank).clamp(0, 1)
        network, _ = checks.network_for(method, classes)
        objective = Objective(network.network, method)
        objective.prepare(images, labels)
        single = copy.deepcopy(objective)
        wrapped = DistributedDataParallel(objective)
        for module in (single, wrapped):
            module(images, labels, torch.Generator().manual_seed(rank), 0.5).backward()
        for (key, parameter), own in zip(
            objective.named_parameters(), single.parameters(), strict=True
        ):
            dist.all_reduce(own.grad)
            torch.testing.assert_close(
                parameter.grad, own.grad / 2, msg=lambda text, at=f"{name}: {key}": f"{at}: {text}"
            )


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
        ("input", checks.check_inputs_untouched),
        ("global", checks.check_randomness),
        ("ignored seed", checks.check_randomness),
        ("mode", checks.check_network_untouched),
        ("flags", checks.check_network_untouched),
        ("gradient", checks.check_network_untouched),
        ("statistics", checks.check_network_untouched),
        ("uncounted", checks.check_passes),
        ("dtype", checks.check_loss_and_gradient),
        ("partial", checks.check_loss_and_gradient),
        ("targets", checks.check_targets),
        ("graph", checks.check_metrics),
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

    def install(value, source=PLUGIN):
        info = tmp_path / "louder-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: louder\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[raybust.methods]\nloud = {value}\n")
        (tmp_path / "louder_plugin.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "louder_plugin", raising=False)
        monkeypatch.chdir(tmp_path)
        methods._outside.cache_clear()

    yield install
    methods._outside.cache_clear()


def test_method_of_another_package(plugin, cli):
    plugin("louder_plugin:Louder")
    assert "loud" in methods.names()
    checks.check_class(methods.get("loud"))
    checks.check_step(methods.get("loud")(volume=3.0))
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

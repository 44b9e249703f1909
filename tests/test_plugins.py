"""Methods, networks and data sets of installed packages: found, listed, checked, kept apart."""

import json
import sys

import pytest
import torch
from installed import install

from raybust import data, methods, models, plugins
from raybust.config.inputs import Data, Model
from raybust.errors import RequestError

SOURCE = '''
"""A package of somebody else."""

from dataclasses import dataclass

import torch
from torch import nn

from raybust.config.options import option
from raybust.data import Parts, Source, parts_of_arrays
from raybust.methods.standard import Standard


@dataclass(frozen=True, kw_only=True)
class Louder(Standard):
    """Standard training, louder."""

    volume: float = option(2.0, "Factor of the loss.", gt=0)


def flat(num_classes, in_channels, image_size):
    """A linear classifier.

    More of it.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))


class Flat(nn.Module):
    def __init__(self, num_classes, in_channels=3, image_size=32):
        super().__init__()
        self.inner = flat(num_classes, in_channels, image_size)

    def forward(self, images):
        return self.inner(images)


def arrays(config):
    """Noise in two classes, from a callable."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 4, 4), generator=draw, dtype=torch.uint8).numpy()
    labels = torch.arange(60).numpy() % 2
    return parts_of_arrays((images[:40], labels[:40]), (images[40:], labels[40:]), None, "noise: ")


noise = Source(read=arrays, about="Noise in two classes.", shape=(1, 4, 4), classes=2,
               examples=(40, 20), augment="flip")


def fails(*given, **keywords):
    raise ValueError("oops\\nsecond line")


def nothing(config):
    return None


def strange_labels(config):
    parts = arrays(config)
    parts.test.labels[0] = 7
    return parts
'''
GROUPS = {
    "raybust.methods": {"loud": "louder:Louder"},
    "raybust.models": {"flat": "louder:flat", "flat_class": "louder:Flat"},
    "raybust.datasets": {"noise": "louder:noise", "noise_call": "louder:arrays"},
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs distributions that tests name; the working directory is another folder."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = set(sys.modules)

    def add(entries, name="louder", source=SOURCE):
        install(tmp_path / "site", name, entries, {name: source})

    yield add
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]
    plugins.points.cache_clear()


def rows(cli, what):
    """Returns the rows of `raybust methods | models | datasets` by name."""
    done = cli(what, "--json")
    assert done.code == 0, done.err
    return {next(iter(row.values())): row for row in json.loads(done.out)}


# --- found -----------------------------------------------------------------------------------


def test_names_of_packages_come_after_our_own(package):
    own = methods.names(), models.names(), data.names()
    package(GROUPS)
    assert methods.names() == sorted([*own[0], "loud"])
    assert models.names() == [*own[1], "flat", "flat_class"]
    assert data.names() == sorted([*own[2], "noise", "noise_call"])


def test_a_scan_imports_nothing(package):
    package(GROUPS)
    assert {"loud"} <= set(methods.names())
    assert {"flat"} <= set(models.names())
    assert {"noise"} <= set(data.names())
    assert "louder" not in sys.modules


@pytest.mark.parametrize("name", ["flat", "flat_class"])
def test_network(package, cli, name):
    package(GROUPS)
    models.check(name)
    network = models.build(
        Model(name=name), shape=(3, 4, 4), num_classes=5, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    assert network(torch.rand(2, 3, 4, 4)).shape == (2, 5)
    shown = rows(cli, "models")[name]
    assert shown["parameters"] == 3072 * 10 + 10
    assert "louder 1.0" in shown["source"]
    assert ("A linear classifier." in shown["source"]) == (name == "flat")
    assert "More of it" not in shown["source"]
    assert cli("models", name).code == 0


@pytest.mark.parametrize("name", ["noise", "noise_call"])
def test_data_set(package, cli, name):
    package(GROUPS)
    dataset = data.load(Data(name=name))
    assert (dataset.name, dataset.shape, len(dataset.classes)) == (name, (1, 4, 4), 2)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (36, 4, 20)
    assert dataset.augment == ("flip" if name == "noise" else "none")
    assert "Noise in two classes" in rows(cli, "datasets")[name]["about"]
    assert "louder 1.0" in rows(cli, "datasets")[name]["about"]
    assert cli("datasets", name).code == 0


def test_dry_run_of_all_three(package, cli):
    package(GROUPS)
    dry = cli("train", "--dry-run", "method.name=loud", "model.name=flat", "data.name=noise")
    assert dry.code == 0, dry.err
    for name in ("loud", "flat", "noise"):
        assert f"name: {name}" in dry.out


@pytest.mark.parametrize(
    ("setting", "near"),
    [
        ("method.name=lound", "loud"),
        ("model.name=flat_clas", "flat_class"),
        ("data.name=noize", "noise"),
    ],
)
def test_did_you_mean(package, cli, setting, near):
    package(GROUPS)
    done = cli("train", "--dry-run", setting)
    assert done.code == 2
    assert f"Did you mean '{near}'?" in done.err


def test_a_networks_domain_may_name_them(package, cli, tmp_path):
    package(GROUPS)
    space = tmp_path / "work" / "space.yaml"
    space.write_text(
        "data: {name: noise}\nsearch: {model.name: {choice: [flat, small_cnn], default: flat}}\n"
    )
    assert cli("tune", space, "--dry-run").code == 0
    space.write_text(space.read_text().replace("[flat, ", "[flat, flta, "))
    assert "Did you mean 'flat'" in cli("tune", space, "--dry-run").err


# --- broken ----------------------------------------------------------------------------------

KINDS = {
    "methods": ("raybust.methods", "method.name", "gaussian"),
    "models": ("raybust.models", "model.name", "small_cnn"),
    "datasets": ("raybust.datasets", "data.name", "digits"),
}
BROKEN = {
    "attribute": ("louder:Missing", SOURCE),
    "module": ("no_such_module:Louder", SOURCE),
    "kind": ("os:sep", SOURCE),
    "raises": ("louder:Louder", "raise RuntimeError('first line\\nsecond line')"),
    "exits": ("louder:Louder", "import sys\nsys.exit(3)"),
    "syntax": ("louder:Louder", "def ("),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_package_is_named_and_hides_no_other(package, cli, kind, fault):
    group, key, own = KINDS[kind]
    value, source = BROKEN[fault]
    package({**GROUPS, group: {**GROUPS[group], "broken": value}}, source=source)
    done = cli("train", "--dry-run", f"{key}=broken")
    assert done.code == 2, done.out
    assert len(done.err.strip().splitlines()) == 1
    for word in ("'broken'", value, "louder 1.0"):
        assert word in done.err
    assert cli("train", "--dry-run", f"{key}={own}").code == 0
    listed = rows(cli, kind)
    assert own in listed
    assert "broken" in listed
    assert any(value in str(fact) for fact in listed["broken"].values())
    assert len({tuple(row) for row in listed.values()}) == 1
    single = cli(kind, "broken")
    assert single.code == 2
    assert value in single.err


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("louder:fails", ("ValueError", "oops")),
        ("louder:nothing", ("NoneType", "Parts")),
        ("louder:strange_labels", ("labels", "0 to 7", "test")),
    ],
)
def test_data_sets_that_cannot_be_read_are_one_line(package, value, words):
    package({"raybust.datasets": {"bad": value}})
    with pytest.raises(RequestError) as refused:
        data.load(Data(name="bad"))
    text = str(refused.value)
    assert "\n" not in text
    assert "second line" not in text
    for word in ("'bad'", *words):
        assert word in text


def test_a_network_that_cannot_be_built_is_one_line(package):
    package({"raybust.models": {"bad": "louder:fails"}})
    models.check("bad")
    with pytest.raises(RequestError, match=r"'bad'.*ValueError: oops") as refused:
        models.build(Model(name="bad"), shape=(1, 4, 4), num_classes=2, mean=[0.5], std=[1.0])
    assert "\n" not in str(refused.value)


# --- one name, two owners ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "taken"), [("methods", "gaussian"), ("models", "resnet20"), ("datasets", "digits")]
)
def test_a_name_of_ours_is_not_shadowed(package, cli, kind, taken):
    group, key, _ = KINDS[kind]
    value = next(iter(GROUPS[group].values()))
    package({**GROUPS, group: {**GROUPS[group], taken: value}})
    done = cli("train", "--dry-run", f"{key}={taken}")
    assert done.code == 2, done.out
    assert len(done.err.strip().splitlines()) == 1
    for word in (f"'{taken}'", "louder 1.0", value, "raybust"):
        assert word in done.err
    assert "louder" not in sys.modules
    listed = rows(cli, kind)
    assert [*listed].count(taken) == 1
    assert any("louder 1.0" in str(fact) for fact in listed[taken].values())
    new = next(iter(GROUPS[group]))
    assert cli("train", "--dry-run", f"{key}={new}").code == 0


def test_two_packages_with_one_name(package, cli):
    package({"raybust.models": {"flat": "louder:flat"}})
    package({"raybust.models": {"flat": "quieter:flat", "good": "quieter:Flat"}}, "quieter")
    done = cli("train", "--dry-run", "model.name=flat")
    assert done.code == 2
    assert "louder 1.0" in done.err
    assert "quieter 1.0" in done.err
    assert cli("train", "--dry-run", "model.name=good").code == 0
    assert models.names().count("flat") == 1


def test_a_class_is_one_method(package):
    package({"raybust.methods": {"loud": "louder:Louder", "louder": "louder:Louder"}})
    assert methods.get("loud").key == "loud"
    with pytest.raises(RequestError, match=r"'louder'.*'loud'"):
        methods.get("louder")
    assert methods.get("loud").key == "loud"


def test_our_own_class_keeps_its_key(package):
    package({"raybust.methods": {"mine": "raybust.methods.gaussian:Gaussian"}})
    with pytest.raises(RequestError, match=r"'mine'.*'gaussian'"):
        methods.get("mine")
    assert methods.get("gaussian").key == "gaussian"


# --- nothing is imported because a file names it ----------------------------------------------


@pytest.mark.parametrize("key", ["method.name", "model.name", "data.name"])
@pytest.mark.parametrize("name", ["bystander", "bystander.make"])
def test_a_file_cannot_have_a_module_imported(package, cli, tmp_path, key, name):
    package(GROUPS)
    work = tmp_path / "work"
    (work / "bystander.py").write_text("raise SystemExit('imported')")
    section, _, field = key.partition(".")
    (work / "run.yaml").write_text(f"{section}: {{{field}: '{name}'}}\n")
    done = cli("train", "run.yaml", "--dry-run")
    assert done.code == 2
    assert "unknown" in done.err
    assert "bystander" not in sys.modules


def test_only_the_entry_point_that_is_named_is_imported(package, cli):
    package(GROUPS)
    trap = {"raybust.models": {"trap": "trap:make"}, "raybust.datasets": {"traps": "trap:make"}}
    package(trap, "trap", "raise SystemExit('imported')")
    done = cli("train", "--dry-run", "method.name=loud", "model.name=flat", "data.name=noise")
    assert done.code == 0, done.err
    assert "louder" in sys.modules
    assert "trap" not in sys.modules

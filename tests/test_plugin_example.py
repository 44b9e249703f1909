"""`examples/plugin`, installed: its own tests pass, and raybust knows its names.

hatchling is no package of requirements.lock, and pip would download it. So the entry points of its
pyproject.toml are installed as pip would write them; where there is a hatchling, pip also builds
the wheel.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from installed import install

EXAMPLE = Path(__file__).parents[1] / "examples" / "plugin"
DOCUMENTATION = Path(__file__).parents[1] / "docs" / "plugins.md"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
NAMES = ("method.name=logit_squeezing", "model.name=conv_mixer", "data.name=shapes")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder in which the plug-in is installed."""
    folder = tmp_path_factory.mktemp("site")
    (package,) = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    shutil.copytree(EXAMPLE / package, folder / Path(package).name)
    install(folder, PROJECT["project"]["name"], PROJECT["project"]["entry-points"])
    return folder


def run(site, folder, *command):
    """Runs a command where the plug-in is installed; returns the finished process."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def raybust(site, folder, *arguments):
    return run(site, folder, sys.executable, "-m", "raybust", *arguments)


def test_it_registers_one_of_each():
    groups = PROJECT["project"]["entry-points"]
    assert {group: list(points) for group, points in groups.items()} == {
        f"raybust.{kind}": [setting.partition("=")[2]]
        for kind, setting in zip(("methods", "models", "datasets"), NAMES, strict=True)
    }


def test_the_documentation_shows_the_example():
    """Every block of code in docs/plugins.md is in a file of the example, as it is shown."""
    files = [path.read_text() for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml")]
    blocks = re.findall(r"```(?:python|toml)\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        assert any(block.strip() in text for text in files), block


def test_its_tests_pass(site, tmp_path):
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    shutil.copy(EXAMPLE / "pyproject.toml", tmp_path)
    done = run(site, tmp_path, sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    for name, least in (("TestLogitSqueezing", 14), ("TestConvMixer", 12), ("TestShapes", 5)):
        passed = [line for line in done.stdout.splitlines() if line.startswith("PASSED")]
        assert sum(f"::{name}::" in line for line in passed) >= least, done.stdout


def test_dry_run_with_its_names(site, tmp_path):
    dry = raybust(site, tmp_path, "train", "--dry-run", *NAMES)
    assert dry.returncode == 0, dry.stderr
    for setting in NAMES:
        assert f"name: {setting.partition('=')[2]}" in dry.stdout
    without = raybust(tmp_path, tmp_path, "train", "--dry-run", *NAMES)
    assert without.returncode == 2
    wrong = raybust(site, tmp_path, "train", "--dry-run", "model.name=conv_mixr")
    assert "Did you mean 'conv_mixer'?" in wrong.stderr


@pytest.mark.parametrize("setting", NAMES)
def test_it_is_listed(site, tmp_path, setting):
    section, _, name = setting.partition("=")
    command = {"method.name": "methods", "model.name": "models", "data.name": "datasets"}[section]
    listed = raybust(site, tmp_path, command, "--json")
    assert name in [next(iter(row.values())) for row in json.loads(listed.stdout)]


LEARN = """
import sys
import torch
from raybust import data, methods
from raybust.config import compose, leaves_of_arguments
from raybust.training.fit import fit

config = compose(leaves_of_arguments(sys.argv[1:]), methods.get)
*_, last = fit(config, data.load(config.data), torch.device("cpu"))
print(last.metrics["validation/accuracy"], last.metrics["logit_squeezing/size"])
"""


def test_the_three_learn_together(site, tmp_path):
    """The loop that every run goes through, without Ray: five epochs, four classes."""
    settings = ["train.epochs=5", "train.batch_size=64", "certified_fast.every=0"]
    done = run(site, tmp_path, sys.executable, "-c", LEARN, *NAMES, *settings)
    assert done.returncode == 0, done.stderr
    accuracy, size = map(float, done.stdout.split())
    assert accuracy > 0.6
    assert size > 0


@pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None,
    reason="hatchling, which builds the wheel, is not installed",
)
def test_pip_installs_it(tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
           "--no-build-isolation", "--target", str(tmp_path / "site"), str(EXAMPLE)]  # fmt: skip
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    dry = raybust(tmp_path / "site", tmp_path, "train", "--dry-run", *NAMES)
    assert dry.returncode == 0, dry.stderr

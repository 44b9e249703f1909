"""The examples of the documentation work: a new method passes the conformance suite and a dry run.

An example is the fenced block below a line `<!-- example: NAME -->` of one of the pages.
"""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raybust import methods, testing
from raybust.methods import Method

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKER, SPACE = "<!-- example: method -->", "<!-- example: search space -->"


def page_with(marker):
    """Returns the text of the one page that has a marker on a line of its own."""
    found = [text for page in PAGES if f"\n{marker}\n" in (text := page.read_text())]
    assert len(found) == 1, f"{len(found)} pages have {marker}"
    return found[0]


def example(marker):
    """Returns the fenced block below a marker."""
    found = re.match(r"\s*```\w+\n(.*?)\n```", page_with(marker).split(marker)[1], re.DOTALL)
    assert found, f"no fenced block follows {marker}"
    return found[1] + "\n"


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The example's method as a new file in `raybust/methods` would be: found by its name."""
    source = example(MARKER)
    name = method_name()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"raybust.methods.{name}", raising=False)
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield methods.get(name)
    sys.modules.pop(f"raybust.methods.{name}", None)
    vars(methods).pop(name, None)


def method_name():
    """Returns the file name of the example: `methods/NAME.py` in the text before the marker."""
    before = page_with(MARKER).split(MARKER)[0]
    named = re.findall(r"methods/(\w+)\.py", before)
    assert named, f"the text before {MARKER} names no file methods/NAME.py"
    return named[-1]


def test_method(added):
    assert issubclass(added, Method)
    testing.check_class(added)
    testing.check_step(added())


def test_search_space(added, tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text(example(SPACE))
    testing.check_space(path, added.key)


def test_dry_runs(added, tmp_path, cli):
    (tmp_path / "example.yaml").write_text(example(SPACE))
    assert cli("methods", added.key).code == 0
    shown = cli("train", "--dry-run", f"method.name={added.key}")
    assert shown.code == 0, shown.err
    assert f"name: {added.key}" in shown.out
    shown = cli("tune", "example.yaml", "--dry-run")
    assert shown.code == 0, shown.err


@pytest.mark.parametrize("name", ["certify your own", "python"])
def test_a_network_of_ones_own(name, tmp_path):
    """The lines from an own network to a certificate, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:raybust", "-c",
         example(f"<!-- example: {name} -->")],
        capture_output=True, text=True, cwd=tmp_path, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    assert name == "python" or "certified" in done.stdout or "ACR" in done.stdout

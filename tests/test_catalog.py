"""What there is, as rows."""

import re
from dataclasses import dataclass, field
from typing import Literal

import pytest

from raybust import data, methods, models
from raybust.cli import facts
from raybust.config import option
from raybust.errors import RequestError
from raybust.methods import Method
from raybust.methods.gaussian import Gaussian


def test_every_name_is_a_row():
    assert [row["method"] for row in facts.methods(None)] == methods.names()
    assert [row["dataset"] for row in facts.datasets(None)] == data.names()
    assert [row["network"] for row in facts.models(None)] == [*models.names(), *models.FORMS]
    for rows in (facts.methods(None), facts.datasets(None), facts.models(None)):
        assert len({tuple(row) for row in rows}) == 1, "rows of one table have the same columns"


def test_facts():
    found = {row["fact"]: row["value"] for row in facts.datasets("digits")}
    assert re.findall(r"\d+", str(found["shape"])) == ["1", "8", "8"]
    assert int(found["classes"]) == 10
    found = {row["fact"]: row["value"] for row in facts.models("resnet110")}
    parameters = int(re.sub(r"\D", "", str(found["parameters"])))
    assert parameters == pytest.approx(1.73e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("timm:convnext_tiny", 28_589_128), ("torchvision:resnet50", 25_557_032)],
)
def test_facts_of_networks_of_others(name, parameters):
    """As published: of 1,000 classes."""
    found = {row["fact"]: row["value"] for row in facts.models(name)}
    assert found["parameters"] == parameters
    assert (found["images"], found["classes"]) == ("3x224x224", 1000)


def test_facts_of_a_callable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "its_nets.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))\n"
    )
    found = {row["fact"]: row["value"] for row in facts.models("its_nets:make")}
    assert found["parameters"] == 30_730
    assert (found["images"], found["classes"]) == ("3x32x32", 10)


@pytest.mark.parametrize(("form", "one"), [("timm", "convnext_tiny"), ("torchvision", "resnet50")])
def test_networks_of_others_are_listed(form, one):
    rows = facts.models(f"{form}:NAME")
    assert {"network": f"{form}:{one}"} in rows


def test_fields_of_a_wrapper(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Toy(Method):
        """A toy.

        More of it.
        """

        base: Method = field(default_factory=Gaussian, metadata={"doc": "What it wraps."})
        kind: Literal["a", "b"] = option("a", "A kind.")
        share: float = option(0.5, "A share.", ge=0, le=1, unit="images")

    monkeypatch.setattr(methods, "get", lambda name: Toy)
    monkeypatch.setattr(methods, "names", lambda: ["toy"])
    base, kind, share = facts.methods("toy")
    assert (base["key"], base["default"]) == ("method.base", "gaussian")
    assert (kind["type"], kind["domain"]) == ("a | b", "")
    assert (share["type"], share["domain"], share["unit"]) == ("float", ">= 0, <= 1", "images")
    assert facts.methods(None) == [{"method": "toy", "what": "A toy."}]
    assert facts.about("toy") == "What there is, as rows.\n\nA toy."


def test_every_method_has_a_short_title_and_its_source():
    for row in facts.methods(None):
        assert 3 < len(row["what"]) < 60
        about = facts.about(row["method"])
        assert "arXiv:" in about or row["method"] == "standard"
        assert "loss" in about.lower() or "entropy" in about.lower()


def test_a_method_without_fields():
    (row,) = facts.methods("standard")
    assert "no fields" in row["what"]


@pytest.mark.parametrize("what", [facts.methods, facts.datasets, facts.models])
def test_unknown(what):
    with pytest.raises(RequestError, match="Available: "):
        what("nothing like it")

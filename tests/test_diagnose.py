"""`raybust methods covariance --diagnose RUN`: a network that traces, one that does not; and
`raybust methods geodesic --theory OUT`."""

import json
from pathlib import Path

import pytest
import torch

from raybust import methods
from raybust.config import compose, leaves_of_arguments
from raybust.data import load
from raybust.errors import RequestError
from raybust.studies.moments import MODES, diagnose
from raybust.training.objective import assemble


@pytest.fixture(scope="module")
def network():
    config = compose(leaves_of_arguments(["model.width=4"]), methods.get)
    dataset = load(config.data)
    torch.manual_seed(0)
    return assemble(config, dataset).eval(), dataset.test


def test_the_papers_rule_overestimates_more_than_exact_moments(
    network,
):
    found = diagnose(*network, 0.25, examples=4, draws=100)
    assert tuple(found) == MODES
    ratios = {mode: [one.ratio for one in layers] for mode, layers in found.items()}
    assert ratios["diagonal"][0] == pytest.approx(1, rel=0.1)
    assert ratios["channel"][-1] > ratios["channel_exact"][-1]


def test_a_layer_without_a_rule_is_named(network):
    class Odd(torch.nn.Module):
        def forward(self, images):
            return torch.sin(images).flatten(1)

    with pytest.raises(RequestError, match=r"cannot be diagnosed.*sin"):
        diagnose(Odd().eval(), network[1], 0.25)


def test_only_covariance_is_diagnosed(cli):
    assert cli("methods", "gaussian", "--diagnose", "run").code == 2
    assert json.loads(cli("methods", "--json").out)


def test_the_theory_s_two_questions_are_one_command(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("raybust.studies.geodesic.IMAGES", (4, 8))
    monkeypatch.setattr("raybust.studies.geodesic.SIZES", (4, 8))
    monkeypatch.setattr("raybust.studies.geodesic.LOCATIONS", (0.0, 0.5))
    monkeypatch.setattr("raybust.studies.geodesic.theory.__defaults__", (2,))
    found = cli("methods", "geodesic", "--theory", str(tmp_path / "a" / "b"), "--json")
    assert found.code == 0
    printed = json.loads(found.out)
    assert [panel["title"].split(",")[0].split()[0] for panel in printed["panels"]] == (
        ["Gaussians"] * 3 + ["Images"] * 3
    )
    first = printed["panels"][0]["lines"][0]
    assert first["values"][0] == pytest.approx(first["exact"][0], abs=0.1)
    table, picture = printed["files"]
    assert (tmp_path / "a" / "b" / "theory.md").read_text().count("\n|---|") == 6
    assert table.endswith("theory.md")
    assert Path(picture).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("arguments", [("gaussian",), (), ("geodesic", "--diagnose", "run")])
def test_the_theory_is_of_geodesic(cli, tmp_path, arguments):
    found = cli("methods", *arguments, "--theory", str(tmp_path))
    assert found.code == 2
    assert "raybust methods geodesic --theory OUT" in found.err


def test_a_folder_that_cannot_be_made_is_named(cli, tmp_path):
    (tmp_path / "file").write_text("")
    found = cli("methods", "geodesic", "--theory", str(tmp_path / "file" / "out"))
    assert found.code == 2
    assert "--theory" in found.err

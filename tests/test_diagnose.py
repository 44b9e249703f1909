"""`raybust methods covariance --diagnose RUN`: a network that traces, one that does not."""

import json

import pytest
import torch

from raybust import methods
from raybust.config import compose, leaves_of_arguments
from raybust.data import load
from raybust.errors import RequestError
from raybust.evaluate.moments import MODES, diagnose
from raybust.objective import assemble


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

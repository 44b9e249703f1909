"""The learning-rate range test: its rates, its repeatability, and whether its suggestion trains."""

import json
import re

import pytest
import torch
from few import few_digits
from torch import nn

from raybust import config as configuration
from raybust import data, methods
from raybust.errors import WorkError
from raybust.stages import bars
from raybust.training import loop
from raybust.training.fit import fit
from raybust.training.rates import STEPS, range_test

CPU = torch.device("cpu")


def make(*settings):
    leaves = ["data.name=digits", "model.width=16", "certified_fast.every=0", *settings]
    return configuration.compose(configuration.leaves_of_arguments(leaves), methods.get)


def test_rates_rise_by_a_constant_factor_from_step_to_step():
    found = range_test(make(), few_digits(), CPU)
    assert 50 < len(found.rates) <= STEPS
    assert len(found.losses) == len(found.smoothed) == len(found.rates)
    factors = [later / rate for rate, later in zip(found.rates, found.rates[1:], strict=False)]
    assert found.rates[0] == pytest.approx(1e-4)
    assert factors == pytest.approx([1e5 ** (1 / (STEPS - 1))] * len(factors))


def test_the_smoothed_loss_is_the_bias_corrected_exponential_mean():
    found = range_test(make(), few_digits(), CPU)
    for end in (1, 2, 10):
        weights = [0.9 ** (end - 1 - i) for i in range(end)]
        mean = sum(w * loss for w, loss in zip(weights, found.losses, strict=False)) / sum(weights)
        assert found.smoothed[end - 1] == pytest.approx(mean)
    assert found.smoothed[found.rates.index(found.lowest)] == min(found.smoothed)
    assert found.suggestion == pytest.approx(found.lowest / 2, rel=0.34)  # one digit


def test_the_same_configuration_gives_the_same_losses():
    config = make("method.name=gaussian", "method.sigma=0.5", "train.ema=0.9")
    first, second = (range_test(config, few_digits(), CPU) for _ in range(2))
    assert first == second
    assert range_test(make("seed=1"), few_digits(), CPU).losses != first.losses


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", ["standard", "gaussian", "pgd"])
def test_the_suggestion_trains(method, optimizer):
    settings = [f"method.name={method}", f"train.optimizer={optimizer}", "train.epochs=3"]
    settings += ["method.steps=2"] * (method == "pgd")
    config = make(*settings)
    digits = data.load(config.data)
    rate = range_test(config, digits, CPU).suggestion
    *_, last = fit(make(*settings, f"train.lr={rate}"), digits, CPU)
    assert last.metrics["validation/accuracy"] > 0.85


class Broken(nn.Module):
    """A network whose outputs are NaN."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(10, 64))

    def forward(self, images):
        return images.flatten(1) @ self.weight.T * float("nan")


def test_a_loss_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setattr(loop, "assemble", lambda *_: Broken())
    with pytest.raises(WorkError, match="the loss is nan at the first step"):
        range_test(make(), few_digits(), CPU)


def test_the_command_writes_a_picture_and_starts_no_run(cli, tmp_path):
    done = cli(
        "train", "data.name=digits", "model.width=8", "--find-lr", "--json", "--out", tmp_path
    )
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["metrics"]["suggestion"] == pytest.approx(found["metrics"]["lowest"] / 2, rel=0.34)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_rates"]
    rows = (tmp_path / "_rates").glob("*.tsv")
    (table,) = rows
    lines = table.read_text().splitlines()
    assert lines[0] == "rate\tloss\tsmoothed"
    assert len(lines) - 1 <= STEPS
    assert table.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_says_how_far_it_is(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(bars, "_LINE_S", 0.05)
    done = cli("train", "data.name=digits", "model.width=8", "--find-lr", "--out", tmp_path)
    counts = [int(n) for n in re.findall(rf"range test, steps (\d+) of {STEPS} after", done.err)]
    assert counts == sorted(counts)
    assert 0 < counts[-1] <= STEPS, done.err


def test_a_range_test_does_not_run_elsewhere(cli):
    done = cli("train", "--find-lr", "--address", "http://127.0.0.1:9")
    assert done.code == 2
    assert "--find-lr" in done.err
    assert "--address" in done.err

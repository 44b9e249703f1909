"""Metrics of certificates, and the cheap certificate."""

import pytest
import torch
from networks import convolutional

from raybust.certification import Row, fast_certificate, summarize
from raybust.config.assess import FastCertify


def row(idx, predict, radius):
    rest = {"n0_count": 1, "count": 1, "n": 1, "p_lower": 0.9, "draws": 1, "counts": ((0, 1),)}
    return Row(idx=idx, label=1, predict=predict, radius=radius, time=0.0, top=predict, **rest)


def test_summary():
    rows = [row(0, 1, 0.5), row(1, 1, 0.2), row(2, 0, 0.9), row(3, -1, 0.0)]
    assert summarize(rows, (0.0, 0.25), "certified") == {
        "certified/acr": pytest.approx(0.7 / 4),
        "certified/abstention": 0.25,
        "certified/accuracy_at/0": 0.5,
        "certified/accuracy_at/0.25": 0.25,
    }
    assert summarize([], (0.0,), "certified") == {}


def test_fast_certificate_is_that_of_its_examples_in_any_split():
    torch.manual_seed(1)
    images, labels = torch.rand(8, 1, 5, 5), torch.zeros(8, dtype=torch.int64)
    config = FastCertify(n=500, radii=(0.0, 0.25))

    def fast(which):
        chosen = torch.tensor(which)
        return fast_certificate(
            convolutional(),
            images[chosen],
            labels[chosen],
            chosen,
            sigma=0.5,
            config=config,
            seed=0,
        )

    whole, halves = fast(range(8)), [fast([0, 2, 4, 6]), fast([1, 3, 5, 7])]
    assert set(whole) == {
        "certified_fast/acr",
        "certified_fast/abstention",
        "certified_fast/accuracy_at/0",
        "certified_fast/accuracy_at/0.25",
    }
    for key, value in whole.items():
        assert value == pytest.approx(sum(half[key] for half in halves) / 2)

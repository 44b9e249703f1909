"""The warning that names catastrophic overfitting."""

import pytest

from raybust import config as configuration
from raybust import methods
from raybust.stages.epochs import overfitting


def warning(training, validation, *settings):
    leaves = configuration.leaves_of_arguments(["attacked_fast.every=1", *settings])
    config = configuration.compose(leaves, methods.get)
    found = {"train/attacked_accuracy": training, "attacked_fast/robust_accuracy": validation}
    return overfitting(config, {k: v for k, v in found.items() if v is not None}, 64)


PGD = ("method.name=pgd", "method.eps=0.1", "attacked_fast.eps=0.1")


@pytest.mark.parametrize(
    "settings",
    [
        PGD,
        ("method.name=trades", "method.rms=0.1", "attacked_fast.eps=0.1"),
        ("method.name=pgd", "method.norm=l2", "method.rms=0.1", "attacked_fast.norm=l2",
         "attacked_fast.eps=0.8"),
        ("method.name=awp", "method.base.name=pgd", "method.base.eps=0.1", "attacked_fast.eps=0.1"),
    ],
)  # fmt: skip
def test_a_gap_beyond_the_threshold_is_named(settings):
    text = warning(0.95, 0.05, *settings)
    assert "catastrophic overfitting" in text
    assert "0.9500 in training but 0.0500 in validation" in text
    assert "train.select=attacked_fast/robust_accuracy" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("training", "validation", "settings"),
    [
        (0.7, 0.4, PGD),
        (0.3, 0.9, PGD),
        (0.95, None, PGD),
        (None, 0.1, PGD),
        (0.95, 0.05, ("method.name=pgd", "method.eps=0.1", "attacked_fast.eps=0.2")),
        (0.95, 0.05, (*PGD, "method.norm=l2")),
        (0.95, 0.05, ("method.name=gaussian", "attacked_fast.eps=0.1")),
    ],
    ids=["0.3", "better", "not measured", "no attack", "radius", "norm", "method"],
)
def test_no_warning_where_nothing_is_comparable_or_wrong(training, validation, settings):
    assert warning(training, validation, *settings) is None


@pytest.mark.slow
def test_a_run_warns_once(tmp_path, cli):
    """Few images and a large network: after some epochs training withstands the attack."""
    done = cli(
        "train", "method.name=pgd", "method.eps=0.15", "method.steps=1", "method.start=center",
        "data.limit=40", "train.batch_size=20", "train.epochs=60", "train.lr=0.02", "model.width=8",
        "certified_fast.every=0", "attacked_fast.every=10", "attacked_fast.eps=0.15",
        f"track.uri=sqlite:///{tmp_path}/m.db", "--out", tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (done.out + done.err).count("warning: catastrophic overfitting") == 1, done.out

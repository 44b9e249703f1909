"""The transfer matrix: the prediction by concentration, the figure and the table."""

import math

import numpy as np
import pytest
import torch

from raybust.corruptions import Cell, Corrupted
from raybust.errors import RequestError
from raybust.numerics.lp_sets import CIFAR_SHAPE, NORMS, named
from raybust.reporting import transfer
from raybust.reporting.transfer import Training, plot_transfer, predicted, transfer_table

INF = math.inf


def training(name, rows, level=0.5):
    return Training(name=name, rows=rows, accuracy=dict.fromkeys(NORMS, level))


def column(rows):
    return dict(zip(NORMS, predicted([training("x", rows)], CIFAR_SHAPE)[:, 0], strict=True))


def test_dense_noise_covers_what_has_no_larger_rms():
    covered = column(((2.0, 4.0),))
    # the authors' experiment: L2 4 equals Linf 0.125, L1 156.8, L0.5 248,692, L10 0.228
    assert covered[2.0] == 0.9
    assert covered[INF] == 0.9  # 0.005 to 0.12
    assert covered[1.0] == 0.8  # 12.5 to 150
    assert covered[0.5] == 0.6  # 25k to 200k
    assert covered[10.0] == 0.8  # 0.02 to 0.2
    assert covered[0.0] == 0.0


def test_impulses_cover_impulses_alone():
    covered = column(((0.0, 0.03),))
    assert covered[0.0] == 0.5
    assert sum(covered.values()) == 0.5


def test_sets_cover_themselves_and_standard_training_nothing():
    assert set(column(named("C1", CIFAR_SHAPE).rows).values()) == {1.0}
    assert set(column(()).values()) == {0.0}


def example():
    columns = []
    for name, rows, level in (("standard", (), 0.3), ("L2", ((2.0, 4.0),), 0.6)):
        columns.append(training(name, rows, level))
    return columns


def test_measured_is_a_share_of_the_best():
    found = transfer.measured(example())
    assert found.shape == (len(NORMS), 2)
    assert np.allclose(found, [0.5, 1.0])
    assert [one.accuracy[2.0] for one in example()] == pytest.approx([0.3, 0.6])
    assert transfer.rank_correlation(example(), CIFAR_SHAPE) == pytest.approx(1.0)
    assert math.isnan(transfer.rank_correlation(example()[:1], CIFAR_SHAPE))


def test_table_and_picture(tmp_path):
    table = transfer_table(example(), CIFAR_SHAPE)
    assert "| tested | standard | L2 |" in table
    assert "| p=inf | 50.0 (0) | 100.0 (90) |" in table
    assert "| rms of training noise | - | 0.072 |" in table
    path = plot_transfer(example(), CIFAR_SHAPE, tmp_path / "transfer.png", title="digits")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RequestError, match="no training"):
        plot_transfer([], CIFAR_SHAPE, path)


def counts_of(errors):
    """Counts of 100 examples per noise of C1, and of one that is not in it."""
    rows = [*named("C1", CIFAR_SHAPE).rows, (2.0, 50.0)]
    cells = [
        Cell(kind="lp", name=f"p={p:g}", level=eps, p=p, examples=100,
             correct=100 - errors((p, eps)), bins=torch.zeros(3, 15))
        for p, eps in rows
    ]  # fmt: skip
    return Corrupted(cells=tuple(cells), sets={})


def test_a_run_becomes_a_column_of_c1_alone():
    found = transfer.training_of_counts(
        "run", ((2.0, 1.0),), counts_of(lambda row: 90 if row == (2.0, 50.0) else 10), CIFAR_SHAPE
    )
    assert found.accuracy == pytest.approx(dict.fromkeys(NORMS, 0.9))
    counts = counts_of(lambda row: 10)
    few = Corrupted(cells=counts.cells[1:], sets={})
    with pytest.raises(RequestError, match=r"run: lacks p=.*; run `raybust evaluate run"):
        transfer.training_of_counts("run", (), few, CIFAR_SHAPE)

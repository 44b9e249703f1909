"""Metrics on hand-built tables, and calibration against its definition."""

import math

import pytest
import torch

from raybust.corruptions import (
    COMMON,
    EXTRA,
    NOISE_NAMES,
    Cell,
    Corrupted,
    calibration_error,
    ice,
    mean_corruption_error,
    merge,
)
from raybust.corruptions.metrics import BINS, calibration_bins
from raybust.errors import RequestError
from raybust.numerics.lp_sets import CIFAR_SHAPE, named

ERRORS = {
    name: {level: 0.01 * number + 0.05 * level for level in range(1, 6)}
    for number, name in enumerate((*COMMON, *EXTRA))
}


def cell(kind, name, level, wrong, p=math.nan, examples=1000):
    return Cell(
        kind=kind,
        name=name,
        level=level,
        p=p,
        examples=examples,
        correct=examples - wrong,
        bins=torch.ones(3, BINS, dtype=torch.float64),
    )


def test_mce_is_the_plain_mean():
    assert mean_corruption_error(ERRORS) == pytest.approx(0.15 + 0.01 * 9, abs=1e-9)
    rest = [n for n, name in enumerate((*COMMON, *EXTRA)) if name not in NOISE_NAMES]
    assert len(rest) == 15
    expected = 0.15 + 0.01 * sum(rest) / 15
    assert mean_corruption_error(ERRORS, without=NOISE_NAMES) == pytest.approx(expected, abs=1e-9)
    assert math.isnan(mean_corruption_error({}))


def test_ice():
    assert ice([0.1, 0.12, 0.11, 0.1, 0.1, 0.13], 0.1) == pytest.approx(0.1, abs=1e-9)
    assert ice([0.09], 0.1) == pytest.approx(-0.1, abs=1e-9)
    assert math.isnan(ice([0.1], 0.0))
    assert math.isnan(ice([], 0.1))


def test_calibration_error_by_its_definition():
    confidence = torch.tensor([0.105, 0.105, 0.955, 1.0])
    bins = calibration_bins(confidence, torch.tensor([True, False, True, False]))
    gaps = [(0.5 - 0.105, 2), (1 - 0.955, 1), (0 - 1.0, 1)]
    expected = math.sqrt(sum(n / 4 * gap**2 for gap, n in gaps))
    assert calibration_error(bins) == pytest.approx(expected, abs=1e-7)
    halves = [
        calibration_bins(confidence[at], torch.tensor([True, False, True, False])[at])
        for at in (slice(0, 2), slice(2, 4))
    ]
    assert calibration_error(halves[0] + halves[1]) == pytest.approx(expected, abs=1e-7)
    assert math.isnan(calibration_error(torch.zeros(3, BINS, dtype=torch.float64)))


def whole(clean_wrong=100):
    sets = {name: named(name, CIFAR_SHAPE).rows for name in ("C1", "C2", "iCE")}
    cells = [cell("clean", "clean", 0.0, clean_wrong)]
    for number, (p, eps) in enumerate(sets["C1"]):
        cells.append(cell("lp", f"p={p:g}", eps, number + 100, p=p))
    for name, row in ERRORS.items():
        cells += [cell("published", name, s, round(1000 * e)) for s, e in row.items()]
    return Corrupted(cells=tuple(cells), sets=sets)


def test_report_of_a_hand_built_table():
    found = whole().metrics()
    rows = named("C1", CIFAR_SHAPE).rows
    assert found["error/clean"] == pytest.approx(0.1)
    assert found["mCE_Lp"] == pytest.approx(0.1 + 0.001 * 44.5, abs=1e-9)
    c2 = [rows.index(row) for row in named("C2", CIFAR_SHAPE).rows]
    assert found["mCE_Lp/C2"] == pytest.approx(0.1 + 0.001 * sum(c2) / 30, abs=1e-9)
    six = [rows.index(row) for row in named("iCE", CIFAR_SHAPE).rows]
    assert found["iCE"] == pytest.approx(0.001 * sum(six) / 6 / 0.1, abs=1e-9)
    assert found["mCE"] == pytest.approx(mean_corruption_error(ERRORS), abs=1e-9)
    expected = mean_corruption_error(ERRORS, without=NOISE_NAMES)
    assert found["mCE_xN"] == pytest.approx(expected, abs=1e-9)
    assert found["mCE_15"] == pytest.approx(0.15 + 0.07, abs=1e-9)
    assert found["error/fog"] == pytest.approx(0.15 + 0.09, abs=1e-9)
    assert found["error/p_0.5"] == pytest.approx(0.1 + 0.0145, abs=1e-9)
    assert found["calibration/corrupted"] == 0.0
    assert whole().notes() == []


def test_ice_at_clean_error_zero_is_nan_with_a_reason():
    report = whole(clean_wrong=0)
    assert math.isnan(report.metrics()["iCE"])
    assert report.notes() == ["iCE is nan: it is relative to the clean error, which is 0"]


def test_incomplete_and_generated_sets_are_labeled():
    cells = [cell("clean", "clean", 0.0, 100)]
    cells += [cell("published", name, s, 200) for name in COMMON for s in range(1, 6)]
    cells += [cell("generated", name, s, 300) for name in ERRORS for s in range(1, 6)]
    report = Corrupted(cells=tuple(cells), sets={})
    found = report.metrics()
    assert "mCE" not in found
    assert found["mCE_15"] == pytest.approx(0.2)
    assert found["generated/mCE"] == pytest.approx(0.3)
    assert len(report.notes()) == 2
    assert "not CIFAR-C" in report.notes()[0]
    assert "speckle_noise" in report.notes()[1]
    table = report.table()
    assert "| fog (on the fly) | 30.00 | 1: 30.0," in table
    assert "| clean | 10.00 |  |" in table


def test_workers_add_up():
    one = whole()
    both = merge([one, one])
    assert both.cells[3].examples == 2000
    assert both.metrics()["mCE_Lp"] == one.metrics()["mCE_Lp"]
    with pytest.raises(RequestError, match="different corruptions"):
        merge([one, Corrupted(cells=one.cells[:2], sets=one.sets)])

"""Numbers of a table, formatted for people and for RobustBench."""

import json
from types import SimpleNamespace

import pytest
from nets import Small, protocol, quantized
from test_suite import run

from raybust.evaluate import curve_points, robustbench_record, summarize
from raybust.evaluate.robustness import show_eps
from raybust.stages.attacked import _records


@pytest.fixture(scope="module")
def summary():
    plan = protocol(eps=(2 / 255, 8 / 255))
    return summarize(run(Small(), plan), plan)


def test_the_record_has_robustbenchs_twelve_fields(summary):
    record = robustbench_record(summary, 8 / 255, name="mine", architecture="small_cnn")
    assert list(record) == [
        "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue",
        "architecture", "eps", "clean_acc", "reported", "autoattack_acc",
    ]  # fmt: skip
    assert record["eps"] == "8/255"
    assert record["clean_acc"] == "90.00"
    assert record["reported"] == f"{100 * summary.points[1].robust:.2f}"
    assert record["autoattack_acc"] is None, "raybust's figure is not AutoAttack's"
    json.dumps(record)


@pytest.fixture(scope="module")
def blind():
    """Of a network whose gradients are 0, without an attack that would start further rounds."""
    plan = protocol(eps=(8 / 255,), attacks=("pgd",), sanity=False)
    return summarize(run(quantized(), plan), plan)


def test_robust_accuracy_behind_flat_gradients_is_an_upper_bound(blind, summary):
    assert [flag.name for flag in blind.flags] == ["flat_gradients"]
    assert "**at most " in blind.text()
    assert "further" not in blind.text()
    assert blind.metrics()["attacked/linf_0.0313725/upper_bound"] == 1.0
    assert not any(point.upper_bound for point in summary.points)


def test_a_flagged_evaluation_has_no_record(blind, summary, tmp_path):
    """The format has no place for flags."""
    run_of = SimpleNamespace(
        folder=tmp_path, config=SimpleNamespace(model=SimpleNamespace(name="small_cnn"))
    )
    path = tmp_path / "one.tsv"
    assert list(_records(run_of, summary, path)) == ["record 2/255", "record 8/255"]
    assert _records(run_of, blind, path) == {}
    assert [file.name for file in tmp_path.iterdir()] == ["one.robustbench-2of255.json"]


def test_metrics_and_curve(summary):
    metrics = summary.metrics()
    assert metrics["attacked/robust_accuracy"] == summary.points[1].robust
    assert metrics["attacked/clean_accuracy"] == pytest.approx(0.9)
    assert metrics["attacked/linf_0.0313725/pgd"] == summary.points[1].own["pgd"]
    assert metrics["attacked/sanity/linf_1/robust_accuracy"] == 0.0
    assert [point[0] for point in curve_points(summary)] == [0.0, 2 / 255, 8 / 255]
    assert all(low <= value <= high for _, value, low, high in curve_points(summary))
    json.dumps(summary.plain())


def test_the_table_for_a_person(summary):
    text = summary.text()
    assert "| attack | eps 2/255 | eps 8/255 | eps 1 (whole box) |" in text
    assert "| clean | 90.00 |" in text
    assert "| ... and apgd-t |" in text
    assert "**robust**" in text
    assert "DISTRUST" not in text


def test_radii_as_people_write_them():
    shown = [show_eps(eps) for eps in (8 / 255, 0.5, 1.0, 2.0, 0.031, 0.0313725)]
    assert shown == ["8/255", "0.5", "1", "2", "0.031", "8/255"]

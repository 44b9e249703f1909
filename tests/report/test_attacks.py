"""A table of evaluations under attack, from the summaries on disk."""

import json

import pytest

from raybust.errors import RequestError
from raybust.report.attacks import compare_attacks


def summary(view, robust, front=""):
    points = [
        {"eps": 0.1, "robust": robust, "low": robust - 0.1, "high": robust + 0.1},
        {"eps": 8.0, "robust": 0.0, "low": 0.0, "high": 0.01},  # the whole box
    ]
    protocol = {"view": view, "front": front, "attacks": ["pgd", "square"], "norm": "linf",
                "eps": [0.1], "examples": 50, "split": "test", "restarts": 1, "pgd_steps": 20,
                "queries": 500, "steps": 40}  # fmt: skip
    flags = [{"name": "oblivious", "text": "?"}] if view == "oblivious" else []
    return {"protocol": protocol, "clean": 0.9, "points": points, "flags": flags}


def test_rows_name_their_protocol_and_views_stand_before_the_headline(tmp_path):
    plain, whole = tmp_path / "plain.json", tmp_path / "whole.json"
    plain.write_text(json.dumps(summary("adaptive", 0.5)))
    views = {"alone": summary("alone", 0.4), "oblivious": summary("oblivious", 0.7, "B")}
    whole.write_text(json.dumps({**summary("adaptive", 0.45, "B"), "views": views}))
    found = compare_attacks([("one", plain), ("two", whole)], tmp_path / "report")
    rows = found.markdown.splitlines()[2:]
    assert rows[0] == (
        "| one | adaptive, pgd 20 steps, square 500 queries, 1 restart | pgd, square | linf 0.1 |"
        " 90.00 | 50.00 [40.00, 60.00] | 50 test | none |"
    )
    views = [row.split(" | ")[1].partition(",")[0] for row in rows[1:]]
    assert views == ["alone", "oblivious", "adaptive"]
    assert rows[2].endswith("| 70.00 [60.00, 80.00] | 50 test | oblivious |")
    assert found.files == (tmp_path / "report" / "attacked.md",)
    plain = json.loads(json.dumps(found.plain()))
    assert [row["front"] for row in plain["attacks"]] == ["", "", "B", "B"]
    assert found.text().endswith("attacked.md")


def test_a_summary_that_its_rows_contradict_is_refused(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps(summary("adaptive", 0.5)))
    rows = [f"{n}\t0.1\t{int(n < 25)}\n" for n in range(50)] + [f"{n}\t8.0\t0\n" for n in range(50)]
    table = "# {}\nidx\teps\trobust\n" + "".join(rows)
    path.with_suffix(".tsv").write_text(table)
    compare_attacks([("one", path)], tmp_path / "report")
    path.write_text(json.dumps(summary("adaptive", 0.9)))
    with pytest.raises(RequestError, match=r"robust accuracy of 0.9000 at 0.1, but its rows give"):
        compare_attacks([("one", path)], tmp_path / "report")

"""Result files: atomic writes, and earlier versions put aside."""

import json
import math
import os

import pytest

from raybust.disk.files import (
    check_digest,
    digest_of,
    is_aside,
    put_aside,
    read_json,
    replace_text,
    step_of,
)
from raybust.errors import RequestError


def test_versions_are_kept_with_what_was_made_of_them_and_no_other_table_is_one(tmp_path):
    path = tmp_path / "test_gaussian_l2_sigma0.25_n100_r1.tsv"
    others = {"r1.5.tsv", "r10.tsv", "r1_alone.tsv", "r1.journal.jsonl"}
    made = {"r1.png", "r1.md", "r1.json", "r1.robustbench-8of255.json", "r1.robustbench-0.5.json"}
    for name in others | made:
        (tmp_path / f"test_gaussian_l2_sigma0.25_n100_{name}").write_text(name)
    put_aside(path)  # there is none: nothing happens
    assert len(list(tmp_path.iterdir())) == len(others | made)
    for number in range(3):  # all within one second
        path.write_text(f"version {number}")
        os.utime(path, ns=(number, 1_700_000_000_000_000_000 + number))
        put_aside(path)
        assert not path.exists()
    aside = {file.read_text(): file for file in tmp_path.iterdir() if is_aside(file)}
    assert set(aside) == {"version 0", "version 1", "version 2"} | made
    assert ".1700000000000000000." in aside["r1.md"].name
    left = {file.read_text() for file in tmp_path.iterdir() if not is_aside(file)}
    assert left == others


def test_every_protocol_has_a_step_of_its_own_and_the_newest_measurement_the_last(tmp_path):
    one, other = tmp_path / "one.tsv", tmp_path / "other.tsv"
    one.write_text("rows")
    assert step_of(one, "n = 100") == 0
    other.write_text("rows")
    assert [step_of(other, "n = 1000") for _ in range(3)] == [1, 1, 1]
    assert [step_of(one, "n = 100") for _ in range(3)] == [2, 2, 2]
    put_aside(one)
    one.write_text("rows")
    assert step_of(one, "n = 100, other weights") == 3
    assert step_of(other, "n = 1000") == 4


def test_results_of_raybust_0_1_which_kept_no_ledger_share_no_step(tmp_path):
    for name in ("one", "one.1700000000000000000", "other"):  # at most at the steps 0 and 1
        (tmp_path / f"{name}.tsv").write_text("rows")
    new = tmp_path / "new.tsv"
    new.write_text("rows")
    assert step_of(new, "n = 5") > 1


def test_what_cannot_be_written_whole_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    replace_text(path, '{"a": 1}')

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_text(path, '{"a": 2}')
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize("content", ["", '{"a": ', "[]", "3"])
def test_a_broken_result_is_named(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(RequestError, match=r"x\.json: is not a complete result"):
        read_json(tmp_path / "x.json")


def test_a_result_that_was_edited_has_another_digest(tmp_path):
    path, whole = tmp_path / "one.json", {"metrics": {"iCE": math.nan, "a": 0.1}, "notes": ("x",)}
    path.write_text(json.dumps({**whole, "digest": digest_of(whole)}))
    check_digest(path, read_json(path), "raybust evaluate")
    for change in ({"notes": []}, {"metrics": {"iCE": 1.0, "a": 0.1}}, {"more": 1}):
        with pytest.raises(RequestError, match="was changed after it was written; run `raybust"):
            check_digest(path, read_json(path) | change, "raybust evaluate")

"""Files of results: whole or as they were, and how many versions lie aside."""

import os

import pytest

from raybust.errors import RequestError
from raybust.files import kept_aside, put_aside, read_json, replace_text


def test_versions_are_kept_and_counted_and_no_other_table_is_one(tmp_path):
    path = tmp_path / "test_gaussian_l2_sigma0.25_n100_r1.tsv"
    (tmp_path / "test_gaussian_l2_sigma0.25_n100_r1.5.tsv").write_text("other radii")
    (tmp_path / "test_gaussian_l2_sigma0.25_n100_r1.png").write_text("")
    put_aside(path)
    assert kept_aside(path) == 0
    for number in range(3):  # all within one second
        path.write_text(f"version {number}")
        os.utime(path, ns=(number, 1_700_000_000_000_000_000 + number))
        put_aside(path)
        assert not path.exists()
        assert kept_aside(path) == number + 1
    found = {file.read_text() for file in tmp_path.glob("*_r1.[0-9]*00000000[0-9].tsv")}
    assert found == {"version 0", "version 1", "version 2"}


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
    with pytest.raises(RequestError, match=r"x\.json: is no whole result"):
        read_json(tmp_path / "x.json")

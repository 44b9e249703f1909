"""The file of rows: killed at any byte, opened again, finished the same."""

import pytest
import torch
from networks import convolutional, protocol

from raybust.certify import CertificateLog, Row, certify_examples, write_cohen
from raybust.certify.log import COLUMNS, format_time, parse_time
from raybust.certify.protocol import Protocol
from raybust.errors import RequestError

HEADER = protocol(shape=(1, 5, 5), weights="abc")


@pytest.fixture(scope="module")
def rows():
    torch.manual_seed(1)
    found = certify_examples(
        convolutional(), torch.rand(5, 1, 5, 5), torch.zeros(5), range(5), HEADER
    )
    return list(found)


def without_time(text):
    lines = [line.split("\t") for line in text.splitlines()]
    return [line[:5] + line[6:] for line in lines]


def test_a_row_is_read_as_it_was_written(rows):
    for row in rows:
        again = Row.parse(row.line())
        assert again.same(row)
        assert again.line() == row.line()
        assert repr(again.radius) == repr(row.radius)


def test_the_form_is_cohens_with_further_columns(rows, tmp_path):
    log = CertificateLog(tmp_path / "deep" / "log.tsv", HEADER)
    log.append(rows[:1])
    header, names, line = log.path.read_text().splitlines()
    assert Protocol.from_json(header.removeprefix("# ")) == HEADER
    assert names.split("\t") == list(COLUMNS)
    assert names.startswith("idx\tlabel\tpredict\tradius\tcorrect\ttime\t")
    assert len(line.split("\t")) == len(COLUMNS)


def test_killed_at_any_byte_it_ends_the_same(rows, tmp_path):
    whole = CertificateLog(tmp_path / "whole.tsv", HEADER)
    for row in rows[::-1]:
        whole.append([row])
    before = whole.path.read_bytes()
    assert whole.finish() == sorted(rows, key=lambda row: row.idx)
    finished = whole.path.read_bytes()
    path = tmp_path / "torn.tsv"
    for cut in range(0, len(before), 7):
        path.write_bytes(before[:cut])
        log = CertificateLog(path, HEADER)
        assert log.places <= {0, 1, 2, 3, 4}
        for row in rows:
            log.append([row])
        log.finish()
        assert path.read_bytes() == finished
    assert CertificateLog(path, HEADER).places == {0, 1, 2, 3, 4}
    assert {item.name for item in tmp_path.iterdir()} == {"whole.tsv", "torn.tsv"}


def test_rows_merge_by_key(rows, tmp_path):
    log = CertificateLog(tmp_path / "log.tsv", HEADER)
    for row in rows + rows[:2]:
        log.append([row])
    assert len(log.path.read_text().splitlines()) == 2 + len(rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "def"}, "weights: abc -> def"),
        ({"seed": 3, "n": 2000}, "n: 1000 -> 2000; seed: 0 -> 3"),
    ],
)
def test_another_protocol_is_refused_and_nothing_written_over(rows, tmp_path, changes, message):
    path = tmp_path / "log.tsv"
    CertificateLog(path, HEADER).append(rows[:1])
    path.write_bytes(path.read_bytes() + b"torn")
    before = path.read_bytes()
    with pytest.raises(RequestError, match=message):
        CertificateLog(path, protocol(**({"shape": (1, 5, 5), "weights": "abc"} | changes)))
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["hello\n", "idx\tlabel\n1\t2\n", "# [1]\n", '# {"a": 1}\n'])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "log.tsv"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"no log of raybust's|another protocol"):
        CertificateLog(path, HEADER)
    assert path.read_text() == text


def test_a_broken_row_in_the_middle_is_an_error(rows, tmp_path):
    path = tmp_path / "log.tsv"
    CertificateLog(path, HEADER).append(rows[:1])
    path.write_text(path.read_text() + "1\t2\n" + rows[1].line())
    with pytest.raises(RequestError, match="line 4 is no row"):
        CertificateLog(path, HEADER)


def test_cohens_bare_columns(rows, tmp_path):
    write_cohen(rows, tmp_path / "cohen.tsv")
    names, *lines = (tmp_path / "cohen.tsv").read_text().splitlines()
    assert names.split("\t") == ["idx", "label", "predict", "radius", "correct", "time"]
    for row, line in zip(rows, lines, strict=True):
        radius = line.split("\t")[3]
        assert float(radius) <= row.radius
        assert float(radius) == pytest.approx(row.radius, rel=1e-2)


def test_both_time_formats():
    assert parse_time("0:00:13.736080") == pytest.approx(13.73608)
    assert parse_time("1:02:03") == 3723
    assert parse_time("15.4") == 15.4
    assert format_time(3723.5) == "1:02:03.500000"
    with pytest.raises(ValueError, match="could not convert"):
        parse_time("soon")

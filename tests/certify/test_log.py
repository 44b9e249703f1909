"""The log file: killed at any byte, reopened, and finished identically."""

import dataclasses

import pytest
import torch
from networks import convolutional, protocol

from raybust.certification import CertificateLog, Row, certify_examples, write_cohen
from raybust.certification.log import COLUMNS, format_time, parse_time
from raybust.certification.protocol import Protocol
from raybust.errors import RequestError
from raybust.reporting import read_log

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
    with pytest.raises(RequestError, match=r"not a raybust log|another protocol"):
        CertificateLog(path, HEADER)
    assert path.read_text() == text


def test_a_broken_row_in_the_middle_is_an_error(rows, tmp_path):
    path = tmp_path / "log.tsv"
    CertificateLog(path, HEADER).append(rows[:1])
    path.write_text(path.read_text() + "1\t2\n" + rows[1].line())
    with pytest.raises(RequestError, match="line 4 is not a row"):
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


def log_with(path, rows, cell=None, lines=()):
    """Writes a log with a changed cell in its third row and further lines at the end."""
    CertificateLog(path, HEADER).append(rows)
    text = path.read_text().splitlines()
    if cell is not None:
        column, value = cell
        cells = text[4].split("\t")
        cells[COLUMNS.index(column)] = value(cells[COLUMNS.index(column)])
        text[4] = "\t".join(cells)
    path.write_text("\n".join([*text, *lines]) + "\n")


CHANGED = [
    ("radius", lambda cell: repr(float(cell) + 0.01)),
    ("radius", lambda cell: repr(float(cell) * (1 - 1e-6))),
    ("radius", lambda cell: "nan"),
    ("p_lower", lambda cell: repr(min(1.0, float(cell) + 1e-6))),
    ("count", lambda cell: str(int(cell) - 1)),
    ("n", lambda cell: "500"),
    ("n", lambda cell: "0"),
    ("draws", lambda cell: "100000"),
    ("n0_count", lambda cell: "101"),
    ("n0_count", lambda cell: "-1"),
    ("top", lambda cell: str((int(cell) + 1) % 4)),
    ("counts", lambda cell: cell.replace(":", ":1", 1)),
    ("counts", lambda cell: f"{cell} {cell}"),
]


@pytest.mark.parametrize("change", CHANGED, ids=lambda change: change[0])
def test_a_row_that_contradicts_itself_is_refused_by_its_number(rows, tmp_path, change):
    path = tmp_path / "log.tsv"
    log_with(path, rows, change)
    before = path.read_bytes()
    with pytest.raises(RequestError, match="line 5 ") as told:
        CertificateLog(path, HEADER)
    assert "\n" not in str(told.value)
    assert path.read_bytes() == before


def test_a_row_whose_class_is_not_what_its_bound_proves(rows, tmp_path):
    path = tmp_path / "log.tsv"
    row = rows[2]
    wrong = dataclasses.replace(row, predict=-1 if row.predict >= 0 else row.top)
    CertificateLog(path, HEADER).append([wrong])
    with pytest.raises(RequestError, match="line 3 was changed after it was written: predict"):
        CertificateLog(path, HEADER)


@pytest.mark.parametrize("schedule", ["fixed", "looks", "sequence"])
@pytest.mark.parametrize("noise", ["gaussian", "uniform", "ablation"])
def test_every_row_that_the_engine_writes_agrees_with_itself(schedule, noise):
    targets = () if schedule == "fixed" else (0.05,)
    norm = {"gaussian": "linf", "uniform": "l1", "ablation": "l0"}[noise]
    header = protocol(
        shape=(1, 5, 5), noise=noise, norm=norm, keep=20, schedule=schedule, targets=targets
    )
    torch.manual_seed(2)
    images = torch.rand(6, 1, 5, 5)
    for row in certify_examples(convolutional(), images, torch.zeros(6), range(6), header):
        assert row.fault(header) is None
        assert Row.parse(row.line()).fault(header) is None


def test_a_row_that_is_there_twice_is_one_row(rows, tmp_path):
    path = tmp_path / "log.tsv"
    later = dataclasses.replace(rows[1], time=rows[1].time + 1)
    log_with(path, rows, lines=[rows[0].line().rstrip(), later.line().rstrip()])
    kept = CertificateLog(path, HEADER).finish()
    for row, old in zip(kept, sorted(rows, key=lambda row: row.idx), strict=True):
        assert row.same(old)
    assert len(path.read_text().splitlines()) == 2 + len(rows)


def test_two_different_rows_of_an_example_are_refused_by_number(rows, tmp_path):
    path = tmp_path / "log.tsv"
    other = dataclasses.replace(rows[0], n0_count=rows[0].n0_count - 1)
    log_with(path, rows, lines=[other.line().rstrip()])
    with pytest.raises(RequestError, match=r"line 8 was changed after .*earlier row of 0"):
        CertificateLog(path, HEADER)


def test_rows_of_other_examples_or_labels_are_refused(rows, tmp_path):
    log = CertificateLog(tmp_path / "log.tsv", HEADER)
    log.append(rows)
    log.check_examples(dict.fromkeys(range(9), 0))
    for labels in (dict.fromkeys(range(4), 0), {**dict.fromkeys(range(5), 0), 3: 1}):
        with pytest.raises(RequestError, match="matches no example that the protocol selects"):
            log.check_examples(labels)


def test_the_header_stays_as_it_was_written(rows, tmp_path):
    path = tmp_path / "log.tsv"
    CertificateLog(path, HEADER).append(rows)
    finished = CertificateLog(path, HEADER)
    finished.finish()
    before = path.read_bytes()
    rounded = dataclasses.replace(HEADER, outputs=(1.0 + 1e-7,))
    CertificateLog(path, rounded).finish()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda cells: [*cells, ""], "got 14 cells, expected 13, one for each column"),
        (lambda cells: cells[:12], "got 12 cells, expected 13, one for each column"),
        (lambda cells: cells[:6], "got 6 cells, expected 13, one for each column"),
        (lambda cells: cells, "radius: got 0.01, but p_lower gives"),
    ],
)
def test_an_edited_row_with_any_number_of_cells_is_refused(rows, tmp_path, edit, message):
    log = CertificateLog(tmp_path / "log.tsv", HEADER)
    log.append(rows)
    head, names, first, *others = log.path.read_text().splitlines()
    assert len(read_log(log.path)) == len(rows)
    cells = first.split("\t")
    cells[2:4] = cells[6], "0.01"  # another radius
    cells[4] = str(int(cells[2] == cells[1]))
    log.path.write_text("\n".join([head, names, "\t".join(edit(cells)), *others]) + "\n")
    with pytest.raises(RequestError, match=message):
        read_log(log.path)
    with pytest.raises(RequestError, match="line 3"):
        CertificateLog(log.path, HEADER)


def test_columns_that_check_no_row_are_refused_and_any_order_is_read(rows, tmp_path):
    log = CertificateLog(tmp_path / "log.tsv", HEADER)
    log.append(rows)
    head, *lines = log.path.read_text().splitlines()
    table = [line.split("\t") for line in lines]
    turned = ["\t".join(reversed(cells)) for cells in table]
    log.path.write_text("\n".join([head, *turned]) + "\n")
    assert len(read_log(log.path)) == len(rows)
    cut = ["\t".join(cells[:12]) for cells in table]
    log.path.write_text("\n".join([head, *cut]) + "\n")
    with pytest.raises(RequestError, match="columns: got none of counts, without which no row"):
        read_log(log.path)

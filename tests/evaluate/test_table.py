"""The table on disk: headers, torn lines, other protocols."""

import dataclasses

import pytest
from nets import Small, protocol
from test_suite import run

from raybust.errors import RequestError
from raybust.evaluate import AttackTable
from raybust.evaluate.table import COLUMNS


@pytest.fixture(scope="module")
def rows():
    return run(Small(), protocol())


def test_rows_come_back(tmp_path, rows):
    path = tmp_path / "deep" / "table.tsv"
    table = AttackTable(path, protocol())
    table.append(reversed(rows[:45]))
    again = AttackTable(path, protocol())
    assert again.rows == rows[:45]
    assert again.has(row.idx for row in rows[:45])
    assert not again.has(row.idx for row in rows)
    again.append(rows)
    assert again.finish() == rows
    assert AttackTable(path, protocol()).rows == rows


def test_a_table_killed_at_any_byte_resumes(tmp_path, rows):
    path = tmp_path / "table.tsv"
    table = AttackTable(path, protocol())
    table.append(rows)
    whole = table.finish() and path.read_bytes()
    for length in [*range(0, 200, 7), *range(len(whole) - 300, len(whole), 11)]:
        path.write_bytes(whole[:length])
        again = AttackTable(path, protocol())
        again.append(rows)
        again.finish()
        assert path.read_bytes() == whole


def test_another_protocol_is_refused_and_the_file_left(tmp_path, rows):
    path = tmp_path / "table.tsv"
    AttackTable(path, protocol()).append(rows)
    before = path.read_bytes()
    with pytest.raises(RequestError, match="queries: 200 -> 300"):
        AttackTable(path, protocol(queries=300))
    assert path.read_bytes() == before
    path.write_text("hello\nworld\n")
    with pytest.raises(RequestError, match="not a raybust table"):
        AttackTable(path, protocol())


def test_a_broken_row_is_named(tmp_path, rows):
    path = tmp_path / "table.tsv"
    AttackTable(path, protocol()).append(rows)
    lines = path.read_text().splitlines(keepends=True)
    lines[4] = "1\t2\n"
    path.write_text("".join(lines))
    with pytest.raises(RequestError, match="line 5 is not a row"):
        AttackTable(path, protocol())


BROKEN, STANDS, ERRS = "broken", "stands", "errs"
CHANGED = [
    (BROKEN, "distance", lambda cell: "1e9"),
    (BROKEN, "distance", lambda cell: "-1.0"),
    (BROKEN, "distance", lambda cell: "nan"),
    (BROKEN, "broken_by", lambda cell: "-"),
    (BROKEN, "robust", lambda cell: "1"),
    (BROKEN, "step", lambda cell: "-1"),
    (BROKEN, "eps", lambda cell: "0.02"),
    (STANDS, "predict", lambda cell: str((int(cell) + 1) % 5)),
    (STANDS, "broken_by", lambda cell: "pgd"),
    (STANDS, "attacks", lambda cell: cell.replace(":-1", ":3", 1)),
    (ERRS, "label", lambda cell: "same"),
    (ERRS, "broken_by", lambda cell: "-"),
]


def kind_of(row):
    if row.broken_by == "clean":
        return ERRS
    return STANDS if row.robust else BROKEN


@pytest.mark.parametrize("change", CHANGED, ids=lambda change: f"{change[0]}-{change[1]}")
def test_a_row_that_contradicts_itself_is_refused_by_its_number(tmp_path, rows, change):
    kind, column, value = change
    path = tmp_path / "table.tsv"
    row = next(row for row in rows if kind_of(row) == kind)
    AttackTable(path, protocol()).append([row])
    *head, line = path.read_text().splitlines()
    cells = line.split("\t")
    at = COLUMNS.index(column)
    cells[at] = str(row.predict) if value(cells[at]) == "same" else value(cells[at])
    path.write_text("\n".join([*head, "\t".join(cells)]) + "\n")
    with pytest.raises(RequestError, match="line 3 "):
        AttackTable(path, protocol())


def test_every_row_agrees_with_itself(rows):
    assert [row.fault(protocol()) for row in rows] == [None] * len(rows)
    assert {kind_of(row) for row in rows} == {BROKEN, STANDS, ERRS}


def test_the_attack_that_broke_a_row_is_one_that_met_it():
    plan = protocol(10, eps=(0.1,))
    found = run(Small(), plan, 10)
    broken = next(row for row in found if kind_of(row) == BROKEN and row.eps == 0.1)
    assert broken.fault(plan) is None
    others = tuple((name, -1) for name, _ in broken.attacks)
    changed = dataclasses.replace(broken, attacks=others)
    assert changed.fault(plan) == f"step: got {broken.step}, but {broken.broken_by} has -1"
    for changed in (
        dataclasses.replace(broken, broken_by="nonsense"),
        dataclasses.replace(broken, attacks=(*broken.attacks, ("deepfool", 3))),
    ):
        assert "which is not in the protocol" in changed.fault(plan)

"""The live table: aligned rows, the best so far, the share of the budget; a bar on a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import cloudpickle
import kit
import pytest

from raybust.search.records import TrialRecord
from raybust.stages.bars import silent
from raybust.stages.live import Table


def record(number, state="COMPLETE", value=0.5, epoch=3, feasible=None, reason=None, **point):
    known = value is not None
    point = {"train.lr": 0.05} | {k.replace("__", "."): v for k, v in point.items()}
    return TrialRecord(
        number, str(point.get("method.name", "gaussian")), state, point, value,
        {"validation/accuracy": 0.75} if known else {},
        history={epoch: value} if known else {}, spent={epoch: 1.5} if known else {},
        feasible=feasible, reason=reason,
    )  # fmt: skip


def rows(capsys):
    """The printed lines."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


@pytest.fixture
def config(tmp_path):
    return kit.config(tmp_path, "tune.trials=6")


def test_rows_are_aligned_under_one_header(config, capsys):
    with Table(config, print) as table:
        table.row(record(0))
        table.row(record(1, "PRUNED", 0.25, 1))
        table.row(record(2, "FAIL", None, 0, reason="the loss became nan"))
        table.row(record(3, value=0.75))
    head, *lines = rows(capsys)
    assert head.split()[:4] == ["trial", "state", "method", "budget"]
    assert len(lines) == 4
    end = head.index("certified_fast/acr") + len("certified_fast/acr")
    assert [line[:end].split()[-1] for line in lines if "failed" not in line] == [
        "0.5000", "0.2500", "0.7500",
    ]  # fmt: skip
    assert [line[: head.index("settings")].rstrip()[-6:] for line in lines] == [
        "0.7500", "0.7500", "0.5000", "0.7500",
    ]  # fmt: skip
    assert lines[1].split()[:5] == ["1", "stopped", "early", "gaussian", "1/3"]
    assert lines[2].endswith("lr=0.05  (the loss became nan)")
    assert all(line[head.index("settings") :].startswith("lr=0.05") for line in lines)


def test_the_best_counts_no_early_stop_and_no_missed_constraint(config, capsys):
    with Table(config, print, [record(0, value=0.3), record(1, "RUNNING", 0.99)]) as table:
        table.row(record(1, "PRUNED", 0.9, 1))
        table.row(record(2, value=0.8, feasible=False))
        table.row(record(3, value=0.4, feasible=True))
    head, *lines = rows(capsys)
    end = head.index(" best") + 5
    assert [line[:end].split()[-1] for line in lines] == ["0.3000", "0.3000", "0.4000"]
    assert "infeasible" in lines[1]


def test_less_is_better(tmp_path, capsys):
    with Table(kit.config(tmp_path, "tune.mode=min"), print) as table:
        table.row(record(0, value=0.3))
        table.row(record(1, value=0.2))
        table.row(record(2, value=0.4))
    head, *lines = rows(capsys)
    end = head.index(" best") + 5
    assert [line[:end].split()[-1] for line in lines] == ["0.3000", "0.2000", "0.2000"]


def test_a_budget_that_is_searched_and_a_budget_of_passes(tmp_path, capsys, config):
    with Table(config, print) as table:
        table.row(record(0, epoch=4, train__epochs=8))
    assert " 4/8 " in rows(capsys)[1]
    with Table(kit.config(tmp_path, "train.passes=3"), print) as table:
        table.row(record(0))
    assert " 50% " in rows(capsys)[1]


def test_a_long_method_moves_no_later_row_out_of_line(config, capsys):
    with Table(config, print) as table:
        table.row(record(0, method__name="interpolated_adversarial"))
        table.row(record(1, method__name="pgd"))
    _, *lines = rows(capsys)
    assert lines[0].index("3/3") == lines[1].index("3/3")


TERMINAL = """
import sys
sys.path[:0] = {path!r}
import cloudpickle
import kit
from test_live import Table, record
with Table(kit.config("runs", "tune.trials=6"), print) as table:
    for number in range(3):
        table.row(record(number, value=number / 10), running=2)
"""


def test_on_a_terminal_a_bar_says_what_is_running_and_what_is_best(tmp_path):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    code = TERMINAL.format(path=[str(Path(__file__).parent)])
    done = subprocess.Popen(
        [sys.executable, "-c", code], stderr=slave, cwd=tmp_path, start_new_session=True
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert done.wait() == 0
    text = seen.decode()
    assert "2 running, best 0.2000 (trial 2)" in text
    assert "3/6" in text
    assert text.count("certified_fast/acr") == 1


def test_it_can_be_copied_and_a_silent_one_prints_nothing(config, capsys, monkeypatch):
    """Ray copies what a sweep calls; the stream of a bar may have no copy."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Table(config, print) as table:
        assert cloudpickle.loads(cloudpickle.dumps(table.row))
    capsys.readouterr()
    with Table(config, silent) as table:
        table.row(record(0))
    assert rows(capsys) == []

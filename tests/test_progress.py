"""Progress of long work: lines in a pipe, a bar on a terminal, nothing when it is to be quiet."""

import json
import time
from pathlib import Path

import pytest

from raybust import api, config
from raybust.disk import pulse
from raybust.errors import WorkError
from raybust.methods import get
from raybust.stages import bars
from raybust.stages.epochs import Chance, epoch_lines


@pytest.fixture
def often(monkeypatch):
    """Progress without the waits that keep a log short."""
    monkeypatch.setattr(bars, "_LINE_S", 0.05)
    monkeypatch.setattr(pulse, "_EVERY_S", 0.0)
    monkeypatch.setattr("raybust.stages.epochs._POLL_S", 0.01)


def wait_for(said, words):
    deadline = time.monotonic() + 60
    while not any(words in line for line in said):
        assert time.monotonic() < deadline, said
        time.sleep(0.01)


def test_a_line_says_how_much_is_done_and_how_long_the_rest_takes(often):
    said = []
    with bars.progress_bar(100, "certified", said.append, 20) as bar:
        wait_for(said, "certified 20 of 100 after 00:00")
        bar.update(40)
        bar.set_postfix_str("0.9 robust")
        wait_for(said, "certified 60 of 100 after 00:00, about 00:00 left, 0.9 robust")
    count = len(said)
    time.sleep(0.2)
    assert len(said) <= count + 1, "a closed bar goes on"


def test_short_work_prints_no_line():
    said = []
    with bars.progress_bar(10, "certified", said.append) as bar:
        bar.update(10)
    assert said == []


def test_a_quiet_bar_shows_nothing(often, capfd):
    with bars.progress_bar(10, "certified", bars.silent) as bar:
        bar.update(5)
        time.sleep(0.2)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with bars.progress_bar(10, "certified", print) as bar:
        bar.update(5)
        bar.refresh()
    found = capsys.readouterr()
    assert "certified:  50%" in found.err
    assert found.out == ""


def of_digits(*settings):
    leaves = config.leaves_of_arguments(["data.name=digits", "method.name=standard", *settings])
    return config.compose(leaves, get)


def test_the_epoch_under_way_is_shown_with_the_time_left(often, tmp_path):
    said, chance = [], Chance(0.1, 100, of_digits("train.epochs=5"))
    pulse.Recorder(tmp_path)(pulse.Pulse(4, 9, 10, 0.9))  # left by a kill: not of this start
    with epoch_lines(tmp_path, said.append, chance):
        wait_for(said, "waiting for the first step 00:00")
        assert not any("epoch 4" in line for line in said)
        record = pulse.Recorder(tmp_path)
        record(pulse.Pulse(1, 3, 10, 0.06))
        wait_for(said, "epoch 1 of 5, step 3 of 10 after 00:00")
        record(pulse.Pulse(1, 5, 10, 0.10))
        wait_for(said, "epoch 1 of 5, step 5 of 10 after 00:00, about 00:00 left, the run about")
        record(pulse.Pulse(1, 10, 10, 0.2))
        wait_for(said, "epoch 1 of 5, validating")
        with (tmp_path / "journal.jsonl").open("a") as journal:
            values = {"train/loss": 1.0, "validation/accuracy": 0.9}
            journal.write(json.dumps({"e": "metrics", "step": 1, "values": values}) + "\n")
        wait_for(said, "epoch   1  loss 1.0000  validation accuracy 0.9000")
        count = len(said)
        time.sleep(0.2)
        assert not any("epoch 1 of" in line for line in said[count + 1 :]), "its pulse is old"
    assert not (tmp_path / pulse.FILE).exists()


def test_a_run_is_followed_while_it_trains(often, tmp_path, capsys):
    api.train("data.name=digits", "train.epochs=2", "train.batch_size=8", out=tmp_path)
    said = capsys.readouterr().err
    assert "epoch 1 of 2, step " in said
    assert "epoch 2 of 2, validating" in said
    assert not list(tmp_path.rglob(pulse.FILE))


def test_a_budget_in_passes_has_no_number_of_epochs(often, tmp_path):
    said, chance = [], Chance(0.1, 100, of_digits("train.passes=4"))
    with epoch_lines(tmp_path, said.append, chance):
        pulse.Recorder(tmp_path)(pulse.Pulse(2, 1, 10, 0.5))
        wait_for(said, "epoch 2, step 1 of 10")
    assert not any("epoch 2 of" in line for line in said)


def test_a_full_disk_does_not_end_a_run_for_its_progress(often, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pulse, "replace_text", full)
    pulse.Recorder(tmp_path)(pulse.Pulse(1, 1, 10, 0.1))
    assert pulse.read(tmp_path) is None


def test_a_read_only_disk_keeps_the_message_of_what_ended_the_run(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    ended = epoch_lines(tmp_path, print, Chance(0.1, 100, of_digits()))
    with pytest.raises(WorkError, match="what ended it"), ended:
        raise WorkError("what ended it")


def test_the_first_advice_after_few_steps_is_to_train_for_longer():
    """Accuracy 0.1583 of 120 examples is above the share of the largest class, within its error."""
    chance = Chance(14 / 120, 120, of_digits(), steps=12)
    said = chance.warning(1, 19 / 120)
    assert "after 1 epoch, validation accuracy 0.1583 is not clearly better" in said
    assert "(0.1167, with two standard errors 0.1753); train for longer; if" in said
    assert "; lower train.lr (now" in chance.warning(50, 19 / 120)
    assert chance.warning(1, 22 / 120) is None

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from tracking import lines, python

from raybust.errors import RequestError
from raybust.track import Journal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "journal.jsonl"


def started(path):
    journal = Journal(path)
    journal.start("key", "e", "name")
    return journal


def test_importing_track_loads_neither_mlflow_nor_ray_nor_torch():
    code = "import sys, raybust.track; print({'mlflow', 'ray', 'torch'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_starting_again_counts_an_attempt_and_nothing_else(path):
    with Journal(path) as journal:
        journal.start("key", "e", "name", tags={"a": 1}, params={"lr": 0.1}, parent_key="sweep")
    with Journal(path) as journal:
        journal.start("key", "e", "other name", tags={"a": 2}, params={"lr": 0.2})
    first, second = lines(path)
    assert first["params"] == {"lr": "0.1"}
    assert first["parent"] == "sweep"
    assert (second["e"], second["attempt"]) == ("resume", 2)


def test_a_point_that_is_in_the_file_is_not_appended_again(path):
    with started(path) as journal:
        journal.metrics({"loss": 1.0}, 1)
        journal.metrics({"loss": 5.0}, 1)
    with Journal(path) as journal:
        journal.metrics({"loss": 2.0, "acc": 0.5}, 1)
        journal.metrics({"loss": 3.0}, 2)
    values = [(e["step"], e["values"]) for e in lines(path) if e["e"] == "metrics"]
    assert values == [(1, {"loss": 1.0}), (1, {"acc": 0.5}), (2, {"loss": 3.0})]


def test_a_text_is_appended_again_only_when_it_changed(path):
    with started(path) as journal:
        journal.text("a: 1", "config.yaml")
    with Journal(path) as journal:
        journal.text("a: 1", "config.yaml")
        journal.text("a: 2", "config.yaml")
    assert [e["content"] for e in lines(path) if e["e"] == "text"] == ["a: 1", "a: 2"]


@pytest.mark.parametrize("torn", [b'{"t":1,"e":"metr', b"{", b'{"t":1,"e":"tags","tags":{}}'])
def test_a_torn_last_line_is_dropped_on_reopening(path, torn):
    with started(path) as journal:
        journal.metrics({"loss": 1.0}, 1)
    with path.open("ab") as file:
        file.write(torn)
    with Journal(path) as journal:
        journal.metrics({"loss": 2.0}, 2)
    assert [e["e"] for e in lines(path)] == ["start", "metrics", "metrics"]


def test_killing_the_writer_loses_no_entry_that_was_written(path):
    code = """
import sys
from raybust.track import Journal
journal = Journal(sys.argv[1])
journal.start("key", "e", "name")
for step in range(10**9):
    journal.metrics({f"metric/{i}": step / 7 for i in range(50)}, step)
    print(step, flush=True)
"""
    process = python(code, path)
    for _ in range(40):
        last = int(process.stdout.readline())
    process.kill()
    process.wait()
    with Journal(path) as journal:
        journal.start("key", "e", "name")
        journal.metrics({"metric/0": 0.0}, last)
    entries = lines(path)
    steps = [e["step"] for e in entries if e["e"] == "metrics"]
    assert steps == list(range(len(steps)))
    assert len(steps) > last
    assert entries[-1]["e"] == "resume"


def test_numbers_that_json_has_not_are_kept_as_text(path):
    with started(path) as journal:
        values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32(0.5)}
        journal.metrics(values, 1)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    entry = json.loads(path.read_text().splitlines()[1], parse_constant=refuse)
    assert entry["values"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 0.5}


def test_files_in_the_run_folder_are_kept_by_relative_path(path, tmp_path):
    with started(path) as journal:
        journal.artifact(path.parent / "certificates" / "a.tsv", "certificates")
        journal.artifact(tmp_path / "elsewhere.txt")
    kept = [(e["path"], e["folder"]) for e in lines(path)[1:]]
    assert kept == [("certificates/a.tsv", "certificates"), (str(tmp_path / "elsewhere.txt"), "")]


def test_attaching_counts_no_attempt(path):
    for _ in range(2):
        with Journal(path) as journal:
            journal.attach("key", "e")
    assert [e["e"] for e in lines(path)] == ["attach"]


def test_misuse_is_refused(path, tmp_path):
    with pytest.raises(RequestError, match=r"journal\.jsonl"):
        Journal(tmp_path / "log.txt")
    with Journal(path) as journal:
        with pytest.raises(RuntimeError, match="comes first"):
            journal.metrics({"loss": 1.0}, 1)
        journal.start("key", "e", "name")
        with pytest.raises(ValueError, match="RUNNING"):
            journal.end("RUNNING")
        with pytest.raises(RequestError, match="belongs to run 'key', not 'other'"):
            journal.start("other", "e", "name")
    assert len(lines(path)) == 1

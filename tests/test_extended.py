"""More examples of the same protocol: finished rows are kept, the result is that of a new log."""

import json
import shutil

import pytest
from small_run import small_run

CERTIFY = ("certify", "one", "certify.n=500", "certify.skip=3")
BOUND = ("certify", "one", "certify.bound=ibp")
ATTACK = ("evaluate", "one", "evaluate.attacks=[apgd-ce,square]", "evaluate.eps=0.05",
          "evaluate.steps=10", "evaluate.queries=60", "evaluate.shard=8")  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs") / "one", train__epochs=1)


@pytest.fixture
def out(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "one")
    return tmp_path


def rows_of(path):
    """The rows by index without their seconds, and the header."""
    head, names, *lines = path.read_text().splitlines()
    time = names.split("\t").index("time") if "time" in names else None
    cells = [line.split("\t") for line in lines]
    rows = {}
    for row in cells:
        rows.setdefault(int(row[0]), []).append([c for at, c in enumerate(row) if at != time])
    return rows, json.loads(head.removeprefix("# "))


@pytest.mark.parametrize(
    ("command", "key", "folder", "counts", "kept"),
    [
        (CERTIFY, "certify", "certified", (10, 25), "10 of 25 rows"),
        (BOUND, "certify", "certified", (70, 90), "64 of 90 rows"),
        (ATTACK, "evaluate", "attacked", (10, 25), "1 of 4 shards"),
    ],
)
def test_more_examples_go_on_where_fewer_ended(cli, out, command, key, folder, counts, kept):
    def run(count, *more):
        done = cli(*command, f"{key}.examples={count}", "--out", out, *more)
        assert done.code == 0, done.err
        return done

    few, many = counts
    run(few)
    (path,) = (out / "one" / folder).glob("*.tsv")
    done = run(many)
    assert kept in done.out + done.err
    found = rows_of(path)
    assert len(found[0]) == many
    run(many, "--no-resume")
    assert rows_of(path) == found


def test_all_examples_go_on_after_some(cli, out):
    assert cli(*CERTIFY, "certify.examples=100", "--out", out).code == 0
    done = cli(*CERTIFY, "--out", out, "certify.examples=null")
    assert done.code == 0
    assert "100 of 120 rows are done" in done.out + done.err
    assert cli("report", "one", "--out", out).code == 0


def test_fewer_examples_are_another_protocol(cli, out):
    assert cli(*CERTIFY, "certify.examples=6", "--out", out).code == 0
    (path,) = (out / "one" / "certified").glob("*.tsv")
    before = path.read_bytes()
    done = cli(*CERTIFY, "certify.examples=5", "--out", out)
    assert done.code == 2
    assert "another protocol (examples: 6 -> 5)" in done.err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("certify.skip=2",), "another protocol (skip: 3 -> 2)"),
        (("certify.seed=5",), "another protocol (seed: 0 -> 5)"),
        (("certify.split=validation", "--name", "own"), "(split: test -> validation"),
    ],
)
def test_more_examples_of_another_protocol_are_refused(cli, out, change, word):
    own = ("--name", "own") if "--name" in change else ()
    assert cli(*CERTIFY, "certify.examples=6", "--out", out, *own).code == 0
    (path,) = (out / "one" / "certified").glob("*.tsv")
    before = path.read_bytes()
    done = cli(*CERTIFY, "certify.examples=9", "--out", out, *change)
    assert done.code == 2
    assert word in done.err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("data", "0" * 64, "other images"),
        ("labels", "0" * 64, "other labels"),
        ("weights", "0" * 64, "another function"),
        ("outputs", [0.5], "another function"),
    ],
)
def test_more_examples_of_another_origin_are_refused(cli, out, field, value, word):
    assert cli(*CERTIFY, "certify.examples=6", "--out", out).code == 0
    (path,) = (out / "one" / "certified").glob("*.tsv")
    head, rest = path.read_text().split("\n", 1)
    header = json.loads(head.removeprefix("# ")) | {field: value}
    path.write_text(f"# {json.dumps(header)}\n{rest}")
    before = path.read_bytes()
    done = cli(*CERTIFY, "certify.examples=9", "--out", out)
    assert done.code == 2
    assert word in done.err
    assert "examples" not in done.err.partition("comes from")[2]
    assert path.read_bytes() == before


def test_changed_rows_are_refused(cli, out):
    assert cli(*CERTIFY, "certify.examples=6", "--out", out).code == 0
    (path,) = (out / "one" / "certified").glob("*.tsv")
    head, names, first, *lines = path.read_text().splitlines(keepends=True)
    cells = first.split("\t")
    cells[1] = str((int(cells[1]) + 1) % 10)
    cells[4] = str(int(cells[2] == cells[1]))
    path.write_text("".join([head, names, "\t".join(cells), *lines]))
    done = cli(*CERTIFY, "certify.examples=9", "--out", out)
    assert done.code == 2
    assert "matches no example" in done.err

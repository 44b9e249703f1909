"""A table of evaluations under attack, from the summaries and rows on disk."""

import dataclasses
import json

import pytest

from raybust.disk.files import digest_of
from raybust.errors import RequestError
from raybust.evaluate import HEADLINE, AttackProtocol, AttackRow, AttackTable, summarize
from raybust.reporting.attacks import compare_attacks

PROTOCOL = AttackProtocol(
    norm="linf", eps=(0.1,), reach=0.0, attacks=("pgd", "square"), every=False, pgd_steps=20,
    steps=40, restarts=1, targets=9, queries=500, rounds=3, eot=1, seed=0, shard=100,
    dataset="digits", split="test", examples=50, device="cpu",
)  # fmt: skip


def rows(robust):
    """45 of 50 clean images are right; `robust` of them withstand both attacks."""
    for idx in range(50):
        kind = "clean" if idx >= 45 else "-" if idx < robust else "pgd"
        fooled = kind == "pgd"
        tried = {"clean": (), "pgd": (("pgd", 3),), "-": (("pgd", -1), ("square", -1))}[kind]
        yield AttackRow(
            idx=idx, eps=0.1, label=1, predict=1 if idx < 45 else 2, broken_by=kind,
            step=3 if fooled else -1, distance=0.1 * fooled, becomes=1 if kind == "-" else 2,
            attacks=tried,
        )  # fmt: skip


def write(path, robust, views=(), front=""):
    """Writes the rows of an evaluation and its summary."""
    found = {}
    for view in (*views, HEADLINE):
        protocol = dataclasses.replace(PROTOCOL, view=view, front="" if view == "alone" else front)
        end = "" if view == HEADLINE else f"_{view}"
        table = AttackTable(path.with_name(f"{path.stem}{end}.tsv"), protocol)
        table.append(rows(robust[view]))
        found[view] = summarize(table.finish(), protocol).plain()
    whole = found.pop(HEADLINE)
    whole = {**whole, "views": found} if found else whole
    path.write_text(json.dumps({**whole, "digest": digest_of(whole)}))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "one.json"
    write(path, {HEADLINE: 25})
    return path


def test_other_images_and_averaged_gradients_are_told(path, tmp_path, monkeypatch):
    other = tmp_path / "other.json"
    changed = dataclasses.replace(PROTOCOL, data="d" * 8, labels="l" * 8, eot=4)
    monkeypatch.setattr(f"{__name__}.PROTOCOL", changed)
    write(other, {HEADLINE: 25})
    found = compare_attacks([("one", path), ("two", other)], tmp_path / "report")
    assert "> two: is of other images or labels, compared with one" in found.markdown
    assert "1 restart, average of 4 passes" in found.markdown


def test_rows_name_their_protocol_and_views_stand_before_the_headline(path, tmp_path):
    whole = tmp_path / "whole.json"
    robust = {"alone": 20, "oblivious": 35, HEADLINE: 22}
    write(whole, robust, views=("alone", "oblivious"), front="B")
    found = compare_attacks([("one", path), ("two", whole)], tmp_path / "report")
    lines = found.markdown.splitlines()[2:]
    assert lines[0] == (
        "| one | adaptive, pgd 20 steps, square 500 queries, 1 restart | pgd, square | linf 0.1 |"
        " 90.00 | 50.00 [35.53, 64.47] | 50 test of digits | none |"
    )
    views = [line.split(" | ")[1].partition(",")[0] for line in lines[1:]]
    assert views == ["alone", "oblivious", "adaptive"]
    assert lines[2].endswith("| 70.00 [55.39, 82.14] | 50 test of digits | oblivious |")
    assert found.files == (tmp_path / "report" / "attacked.md",)
    plain = json.loads(json.dumps(found.plain()))
    assert [row["front"] for row in plain["attacks"]] == ["", "", "B", "B"]
    assert found.text().endswith("attacked.md")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"robust": 0.9}, r"states robust at 0.1 = 0.9000, but its rows give 0.5000"),
        ({"low": 0.49}, r"states low at 0.1 = 0.4900, but its rows give 0.3553"),
        ({"high": 0.99}, r"states high at 0.1 = 0.9900, but its rows give 0.6447"),
        ({"upper_bound": True}, r"states upper_bound at 0.1 = True, but its rows give False"),
        ({"after": {"pgd": 0.5, "square": 0.4}}, r"states after at 0.1 = "),
    ],
)
def test_a_summary_that_its_rows_contradict_is_refused(path, tmp_path, change, message):
    compare_attacks([("one", path)], tmp_path / "report")
    whole = json.loads(path.read_text())
    whole["points"][0] |= change
    path.write_text(json.dumps(whole))
    with pytest.raises(RequestError, match=message):
        compare_attacks([("one", path)], tmp_path / "report")


def test_flags_that_were_removed_are_missed(path, tmp_path):
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "flags": [{"name": "random", "text": "of nobody"}]}))
    with pytest.raises(RequestError, match="was changed after it was written; run `raybust eval"):
        compare_attacks([("one", path)], tmp_path / "report")
    two = tmp_path / "two.json"
    write(two, {"oblivious": 35, HEADLINE: 22}, views=("oblivious",), front="B")
    whole = json.loads(two.read_text())
    assert [flag["name"] for flag in whole["views"]["oblivious"]["flags"]] == ["oblivious"]
    del whole["digest"]  # as raybust 0.1 wrote it
    compare_attacks([("two", two)], tmp_path / "report")
    whole["views"]["oblivious"]["flags"] = []
    two.write_text(json.dumps(whole))
    with pytest.raises(RequestError, match="lacks the flag oblivious, which its rows give"):
        compare_attacks([("two", two)], tmp_path / "report")


def test_clean_accuracy_and_protocol_of_a_summary_are_those_of_its_rows(path, tmp_path):
    whole = json.loads(path.read_text())
    for changed, message in (
        (whole | {"clean": 0.95}, "states clean = 0.9500, but its rows give 0.9000"),
        (whole | {"protocol": {**whole["protocol"], "pgd_steps": 1000}}, "states protocol = "),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(RequestError, match=message):
            compare_attacks([("one", path)], tmp_path / "report")


def test_rows_that_are_gone_cut_or_changed_are_refused(path, tmp_path):
    table = path.with_suffix(".tsv")
    whole = table.read_text()
    for text, message in (
        ("\n".join(whole.splitlines()[:-3]) + "\n", "is not complete"),
        (whole.replace("\t1\t-\t-1\t", "\t0\t-\t-1\t", 1), "`robust` contradicts `broken_by`"),
        (whole.replace("\t0.1\t2\tFalse", "\t0.1\t2\tFalse").replace("\tpgd\t3\t0.1\t",
                                                                    "\tpgd\t3\t0.2\t", 1),
         "distance: got 0.2, expected at most 0.1, in row 26"),
    ):  # fmt: skip
        table.write_text(text)
        with pytest.raises(RequestError, match=message):
            compare_attacks([("one", path)], tmp_path / "report")
    table.unlink()
    with pytest.raises(RequestError, match=r"its rows, one\.tsv, are gone"):
        compare_attacks([("one", path)], tmp_path / "report")


def test_a_table_of_another_version_is_reported_unchecked(path, tmp_path):
    table = path.with_suffix(".tsv")
    head, *rest = table.read_text().splitlines()
    fields = json.loads(head.removeprefix("# "))
    del fields["rounds"]  # raybust 0.1
    table.write_text("\n".join([f"# {json.dumps(fields)}", *rest]) + "\n")
    assert "50.00" in compare_attacks([("one", path)], tmp_path / "report").markdown


def test_rows_that_look_alike_have_the_name_of_their_file(path, tmp_path, monkeypatch):
    """`targets` and `seed` are in no column."""
    other = tmp_path / "five.json"
    monkeypatch.setattr(f"{__name__}.PROTOCOL", dataclasses.replace(PROTOCOL, targets=5))
    write(other, {HEADLINE: 20})
    found = compare_attacks([("mine", path), ("mine", other)], tmp_path / "report")
    assert "| mine (one) |" in found.markdown
    assert "| mine (five) |" in found.markdown
    alone = compare_attacks([("mine", path)], tmp_path / "report")
    assert "| mine |" in alone.markdown

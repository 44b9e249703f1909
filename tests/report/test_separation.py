"""Which finalists a sweep could separate: the first sentence and the picture of its page."""

import re

import numpy as np
import pytest
from boards import board, entry

from raybust.reporting.separation import separate
from raybust.reporting.sweep_page import DIFFERENCE, PICTURES, publish

HEAD = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


def finalist(folder, number, shift, count=300, first=0, method="gaussian"):
    """A trial with a log whose radii are those of all others, moved and blurred."""
    radii = np.random.default_rng(0).gamma(2.0, 0.25, count) + shift
    radii = np.maximum(radii + np.random.default_rng(number + 1).normal(0, 0.05, count), 0)
    path = folder / f"{number}.tsv"
    rows = (f"{first + at}\t0\t0\t{radius:.6f}\t1\t0:00:01\n" for at, radius in enumerate(radii))
    path.write_text(HEAD + "".join(rows))
    return entry(number, method, final=True, log=path)


def test_the_page_begins_with_which_finalists_differ(tmp_path):
    made = board(tmp_path, [finalist(tmp_path, 4, 0.1), finalist(tmp_path, 2, 0.1, method="macer"),
                            finalist(tmp_path, 7, 0.0, method="pgd")])  # fmt: skip
    found = separate(made)
    assert found.sentence.startswith("On 300 test images, ")
    for pair in ("trial 4 (gaussian) has a larger ACR than trial 7 (pgd)",
                 "trial 2 (macer) has a larger ACR than trial 7 (pgd)",
                 "the ACR does not tell apart trial 4 (gaussian) and trial 2 (macer)"):  # fmt: skip
        assert pair in found.sentence
    assert list(found.bands) == ["trial 4 minus trial 2", "trial 4 minus trial 7"]
    files = publish(made)
    assert tmp_path / PICTURES / DIFFERENCE in files
    text = re.sub(r"<[^>]*>", " ", (tmp_path / "report.html").read_text())
    assert text.index("On 300 test images") < text.index("Search ranks trial")
    assert "Difference in certified accuracy" in text


def test_the_picture_of_an_earlier_report_goes(tmp_path):
    publish(board(tmp_path, [finalist(tmp_path, 1, 0), finalist(tmp_path, 2, 0)]))
    assert (tmp_path / PICTURES / DIFFERENCE).exists()
    publish(board(tmp_path, [finalist(tmp_path, 1, 0)]))
    assert not (tmp_path / PICTURES / DIFFERENCE).exists()
    assert "Difference in certified accuracy" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("kind", ["one", "other images", "no log"])
def test_without_two_logs_of_the_same_images_nothing_is_said(tmp_path, kind):
    entries = [finalist(tmp_path, 1, 0)]
    if kind == "other images":
        entries.append(finalist(tmp_path, 2, 0, first=5))
    if kind == "no log":
        entries.append(entry(3, final=True))
    assert separate(board(tmp_path, entries)) is None


def test_many_pairs_are_counted(tmp_path):
    entries = [finalist(tmp_path, number, 0, count=40) for number in range(6)]
    sentence = separate(board(tmp_path, entries)).sentence
    assert "the ACR tells apart 0 of the 15 pairs of finalists, but not trial 0" in sentence
    assert "and 6 more pairs" in sentence

"""Tables and figures of our own and other people's logs."""

import math
import re

import pytest
import torch
from scipy.stats import norm
from torch import nn

from raybust.certification import CertificateLog, Protocol, certify_examples
from raybust.errors import RequestError
from raybust.reporting import (
    acr,
    draw_curve,
    interactive_curves,
    latex_table,
    plot_votes,
    read_log,
    read_logs,
    steps,
    table,
    votes,
)
from raybust.reporting.certificates import other_images
from raybust.reporting.plots import vote_steps

THEIRS = (
    "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    "0\t1\t1\t0.25\t1\t3\n20\t1\t2\t0.5\t0\t3\n40\t1\t-1\t0.0\t0\t3\n60\t1\t1\t0.75\t1\t3\n"
)


def ours(path, **changes):
    protocol = Protocol(**({"sigma": 0.5, "shape": (1, 2, 2), "n": 500, "skip": 3} | changes))
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    log = CertificateLog(path, protocol)
    torch.manual_seed(0)
    for row in certify_examples(
        network, torch.rand(9, 1, 2, 2), torch.zeros(9), range(9), protocol
    ):
        log.append([row])
    log.finish()
    return path


@pytest.fixture
def paths(tmp_path):
    theirs = tmp_path / "theirs.tsv"
    theirs.write_text(THEIRS)
    return [ours(tmp_path / "ours.tsv"), theirs]


def test_our_logs_are_read_with_their_protocol(paths):
    log = read_log(paths[0])
    assert (len(log), log.sigma, log.skip) == (9, 0.5, 3)
    assert log.protocol.n == 500
    assert "n = 500, alpha = 0.001; 9 examples, skip 3" in str(acr(log))
    assert "n and alpha unknown; 4 examples, skip 20" in str(acr(read_log(paths[1])))


def test_markdown(paths):
    lines = table(paths, (0.0, 0.25, 0.5), labels=["a", "b"]).splitlines()
    assert lines[0].startswith("| log | 0 | 0.25 | 0.5 | abstain | ACR")
    assert "n = 500, alpha = 0.001" in lines[2]
    assert lines[3].startswith("| b | 50.0 | 50.0 | 25.0 | 25.0 | 0.2500 [")
    assert "n and alpha unknown; 4 examples, skip 20" in lines[3]


def test_numbers_of_a_log_that_stopped_early_are_bounds(tmp_path):
    """Only the target was decided: at other radii, and of abstentions, a bound is known."""
    path = ours(tmp_path / "early.tsv", targets=(0.1,), schedule="looks")
    cells = table([path], (0.0, 0.1, 0.25)).splitlines()[2].split(" | ")
    assert [cell.startswith("≥ ") for cell in cells[1:4]] == [True, False, True]
    assert cells[4].startswith("≤ ")
    assert cells[5].startswith("≥ ")
    text = latex_table([read_log(path), read_log(path)], (0.0, 0.1))
    assert text.count(r"$\geq$") == 4
    assert text.count(r"\textbf") == 2, "the decided radius alone has a best"


def test_the_interval_of_equal_rows_has_a_width(tmp_path):
    """None of forty correct: up to 1 - 0.025^(1/40) of all may be, at up to the largest radius."""
    path = tmp_path / "none.tsv"
    head = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    path.write_text(head + "".join(f"{at}\t1\t2\t0.3\t0\t1\n" for at in range(4)))
    unknown = acr(read_log(path))
    assert (unknown.value, unknown.low) == (0.0, 0.0)
    assert math.isnan(unknown.high), "without n the largest radius is not known"
    log = CertificateLog(tmp_path / "own.tsv", Protocol(sigma=0.5, shape=(1, 2, 2), n=500))
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    images = torch.rand(40, 1, 2, 2)
    log.append(list(certify_examples(network, images, torch.ones(40), range(40), log.protocol)))
    found = acr(read_log(log.path))
    others = 1 - 0.025 ** (1 / 40)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(others * 0.5 * norm.ppf(0.001 ** (1 / 500)), rel=1e-6)


def test_the_interval_does_not_depend_on_the_order_of_the_rows(paths, tmp_path):
    head, *rows = paths[1].read_text().splitlines(keepends=True)
    other = tmp_path / "shuffled.tsv"
    other.write_text(head + "".join(rows[::-1]))
    first, second = (acr(read_log(path)) for path in (paths[1], other))
    assert (first.low, first.high) == (second.low, second.high)


def test_warnings_stand_under_the_table(tmp_path):
    path = tmp_path / "empty.tsv"
    path.write_text("")
    assert "> empty: has no rows" in table([path], (0.0,))
    assert "% empty: has no rows" in table([path], (0.0,), latex=True)


def test_latex(paths):
    text = latex_table([read_log(path) for path in paths], (0.0, 0.5))
    rows = re.findall(r".* \\\\", text)
    assert len(rows) == 3
    assert all(row.count("&") == 4 for row in rows)
    assert r"\textbf" in text
    assert "alpha = 0.001; 9 examples" in text


def test_steps_are_the_exact_curve(paths):
    radii, values = steps(read_log(paths[1]))
    assert values[:-1].tolist() == [0.5, 0.5, 0.25]
    assert radii[:-1].tolist() == [0.0, 0.25, 0.75]
    assert values[-1] == 0.0


@pytest.mark.parametrize("correct", [0, 1, 5])
def test_the_curve_of_votes_goes_from_all_that_are_correct_to_none(tmp_path, correct):
    """Against its definition, at points between the votes of ten examples."""
    rows = [f"{i}\t1\t{1 if i < correct else 2}\t{0.2 * (i + 1)}\t{int(i < correct)}\t1"
            for i in range(10)]  # fmt: skip
    (tmp_path / "log.tsv").write_text("\n".join([THEIRS.split("\n")[0], *rows]) + "\n")
    log = read_log(tmp_path / "log.tsv")
    known = torch.linspace(0.55, 0.95, 10).double().numpy()
    shares, values = vote_steps(log, known)
    assert (shares[0], shares[-1], len(shares)) == (0.0, 1.0, correct + 2)
    for at in (0.5, 0.57, 0.7, 0.97):
        drawn = values[(shares < at).sum()]  # a step up to the next share
        assert drawn == pytest.approx((log.correct & (known >= at)).mean())


def test_pictures(paths, tmp_path):
    logs = [read_log(path) for path in paths]
    for picture in (
        draw_curve(paths, tmp_path / "curve.png"),
        plot_votes(logs, tmp_path / "votes.png"),
    ):
        assert picture.read_bytes().startswith(b"\x89PNG")
    pytest.importorskip("plotly")
    page = interactive_curves(logs, tmp_path / "curve.html").read_text()
    assert "certified accuracy" in page


def test_radii_of_different_norms_are_not_drawn_together(paths, tmp_path):
    other = ours(tmp_path / "linf.tsv", norm="linf")
    with pytest.raises(RequestError, match=r"in different norms \(l2, linf\)"):
        draw_curve([paths[0], other], tmp_path / "curve.png")


def test_nothing_to_draw(tmp_path):
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(RequestError, match="no log has rows"):
        draw_curve([tmp_path / "empty.tsv"], tmp_path / "curve.png")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": "b"}, "other images or labels"),
        ({"labels": "b"}, "other images or labels"),
        ({"dataset": "mnist"}, "the data set mnist, not digits"),
        ({"skip": 1, "data": "b"}, None),  # other examples of the same images
        ({}, None),
    ],
)
def test_logs_of_other_images_are_not_compared_silently(tmp_path, changes, said):
    base = {"data": "a", "labels": "a", "dataset": "digits"}
    logs = [ours(tmp_path / "one.tsv", **base), ours(tmp_path / "two.tsv", **(base | changes))]
    text = table(logs, radii=(0.0,))
    assert ("compared with" in text) == (said is not None)
    assert said is None or said in text


def test_each_log_is_compared_with_one_of_as_many_examples(tmp_path):
    logs = [
        ours(tmp_path / "first.tsv", split="test", examples=30, data="a", labels=""),
        ours(tmp_path / "second.tsv", split="test", examples=20, data="b", labels=""),
        ours(tmp_path / "third.tsv", split="test", examples=20, data="c", labels=""),
    ]
    found = other_images(read_logs(logs))
    assert found == {"third": "is of other images or labels, compared with second"}


@pytest.mark.parametrize(("dataset", "said"), [("npz", True), ("digits", False)])
def test_files_under_one_name_may_be_of_other_images(tmp_path, dataset, said):
    """Digests of other examples say nothing, and the name of the data set does not either."""
    logs = [
        ours(tmp_path / "a.tsv", dataset=dataset, examples=30, data="a", labels="a"),
        ours(tmp_path / "b.tsv", dataset=dataset, examples=20, data="b", labels="b"),
    ]
    text = "is of other examples, perhaps of other files, compared with a"
    assert other_images(read_logs(logs)) == ({"b": text} if said else {})


def test_votes_are_those_of_the_rows(tmp_path):
    """Of any noise and schedule; a log of another norm without rows' votes has none."""
    for changes in ({"norm": "linf"}, {"targets": (0.1,), "schedule": "looks"}):
        log = read_log(ours(tmp_path / "own.tsv", **changes))
        assert votes(log) == pytest.approx(log.share)
        (tmp_path / "own.tsv").unlink()
    bare = tmp_path / "bare_linf.tsv"
    bare.write_text(THEIRS)
    assert votes(read_log(bare)) is None


def test_a_radius_beyond_n_is_refused_in_cohens_columns_too(tmp_path):
    """Under our header every row can be checked against n and alpha."""
    path = ours(tmp_path / "log.tsv")
    header = path.read_text().splitlines()[0]
    for radius, fine in ((0.9, True), (1.2, False)):
        path.write_text(f"{header}\n{THEIRS}80\t1\t1\t{radius}\t1\t3\n")
        if fine:
            read_log(path)
        else:
            with pytest.raises(RequestError, match=r"radius: got 1\.2, expected <= 1\.1"):
                read_log(path)

"""The page, figures and files of a sweep, from synthetic leaderboards of every kind."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import pytest
from boards import board, entry, large

from raybust.reporting import leaderboard
from raybust.reporting.parallel import scales
from raybust.reporting.sweep_page import html, publish
from raybust.reporting.sweep_plots import plot_learning
from raybust.search.leaderboard import Leaderboard
from raybust.stages.current import stale

VOID = {"meta", "img", "br", "link"}
PICTURES = {"pareto", "history", "learning", "importances", "parallel", "compute"}
TEST_ACCURACY = "test accuracy (250 images)"


class Page(HTMLParser):
    """A parsed page; fails on wrongly closed tags.

    Attributes:
        tables: heading of its section to tables, each a list of rows of (text, class).
        attributes: every attribute of every tag.
        text: all text outside style.
    """

    def __init__(self, content):
        super().__init__()
        self.tables, self.attributes, self.text = {}, [], ""
        self.open, self.section, self.rows, self.heading = [], "", None, None
        self.feed(content)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.section = ""
        elif tag == "table":
            self.rows = []
            self.tables.setdefault(self.section, []).append(self.rows)
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1] += [("", dict(attrs).get("class", ""))] * int(
                dict(attrs).get("colspan", 1)
            )

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "h2" in self.open:
            self.section += data
        elif {"th", "td"} & set(self.open):
            text, kind = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, kind)


def published(made):
    files = publish(made)
    assert all(path.is_file() for path in files)
    assert len(set(files)) == len(files)
    return Page((made.folder / "report.html").read_text()), files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(leaderboard, its page, files) of forty trials of ten methods, two objectives, a constraint,
    early stops and failures."""
    made = large(tmp_path_factory.mktemp("whole"))
    return made, *published(made)


def column(table, head):
    """The cells of the column with that heading."""
    at = next(i for row in table for i, (text, _) in enumerate(row) if text == head)
    start = next(i for i, row in enumerate(table) if row[at][0] == head)
    return [row[at] for row in table[start + 1 :]]


def test_the_files_of_a_large_sweep(whole):
    made, _, files = whole
    tmp_path = made.folder
    names = {path.relative_to(tmp_path).as_posix() for path in files}
    expected = {"report.html", "leaderboard.md", "leaderboard.json"}
    expected |= {f"pictures/{name}.png" for name in PICTURES}
    assert names - {"pictures/interactive.html"} == expected
    for name in PICTURES:
        assert (tmp_path / f"pictures/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report.html").stat().st_size < 1.5e6


def test_the_page_needs_nothing_but_itself(whole):
    made, page, _ = whole
    assert len([1 for tag, _, _ in page.attributes if tag == "img"]) > 0
    for tag, key, value in page.attributes:
        assert tag not in ("link", "script", "iframe", "object")
        if key in ("src", "href", "srcset", "action", "data", "style") or key.startswith("on"):
            assert (tag, key) == ("img", "src")
            assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", value)
    content = (made.folder / "report.html").read_text()
    assert not re.search(r"https?:|url\(|@import|//[a-z]", re.sub(r"base64,[^\"]*", "", content))


def test_the_interactive_page_needs_no_network(whole):
    pytest.importorskip("plotly")
    content = (whole[0].folder / "pictures" / "interactive.html").read_text()
    assert "src=" not in re.sub(r"<script[^>]*>.*?</script>", "", content, flags=re.DOTALL)
    assert not re.search(r"<script[^>]+src=", content)
    assert content.count("Plotly.newPlot(") == 4


def test_search_and_publication_stand_in_groups_of_their_own(whole):
    made, page, _ = whole
    table = page.tables["Leaderboard"][0]
    groups, heads = table[0], [text for text, _ in table[1]]
    for head, kind in (
        ("val. accuracy", "search"), ("certified_fast/acr", "search"), ("feasible", "search"),
        (TEST_ACCURACY, "test"), ("ACR", "test"), ("robust at linf 8/255", "test"),
    ):  # fmt: skip
        at = heads.index(head)
        assert kind in groups[at][1].split(), head
        for row in table[1:]:
            assert kind in row[at][1].split(), head
    assert groups[heads.index("val. accuracy")][1] != groups[heads.index("ACR")][1]
    ranks = [text for text, _ in column(table, "trial")]
    assert ranks == [str(one.number) for one in made.entries]
    reached = [text for text, _ in column(table, TEST_ACCURACY)]
    assert reached == ["0.8765"] * 3 + [""] * (len(made.entries) - 3)
    assert [text for text, _ in column(table, "val. accuracy")] == [
        f"{one.metrics['validation/accuracy']:.4f}" for one in made.entries
    ]
    assert "Publication columns: 500 test examples" in page.text
    assert "Search columns: 200 validation examples" in page.text


def test_clean_accuracy_bears_its_number_of_images(tmp_path):
    few = board(tmp_path, [entry(0, final=True, examples=100), entry(1)])
    assert "| test accuracy (100 images) |" in leaderboard.markdown(few)
    assert "from `test accuracy (100 images)` on" in leaderboard.markdown(few)
    unknown = board(tmp_path, [entry(0, final=True, examples=None)])  # of an earlier version
    assert "| test accuracy |" in leaderboard.markdown(unknown)


def test_finalists_with_radii_and_attacks(whole):
    table = whole[1].tables["Finalists on the test set"][0]
    assert [text for text, _ in table[0]][2:] == [
        TEST_ACCURACY, "ACR", "cert. at 0", "cert. at 0.25", "cert. at 0.5", "cert. at 1",
        "robust at linf 2/255", "robust at linf 8/255",
    ]  # fmt: skip
    assert [text for text, _ in column(table, "cert. at 0.5")] == ["0.6500"] * 3
    assert [text for text, _ in column(table, "robust at linf 8/255")] == ["0.1234"] * 3


def test_without_finalists_no_publication_column(tmp_path):
    page, _ = published(board(tmp_path, [entry(0), entry(1, value=0.2)]))
    assert not any(
        "test" in kind.split() for row in page.tables["Leaderboard"][0] for _, kind in row
    )
    assert "No trial was measured on the test set." in page.text
    assert "Finalists on the test set" not in page.tables


def test_what_was_asked_failures_compute_versions_and_how_to_run_it_again(whole):
    made, page, _ = whole
    for text in (
        "certified_fast/acr, as large as possible", "validation/accuracy >= 0.7", "10 epochs",
        "data setdigits; 1 x 8 x 8 pixels, 10 classes", "networksmall_cnn",
        "raybust tune space.yaml", "raybust report made-up", "torch", "2.13",
    ):  # fmt: skip
        assert text in page.text
    assert page.tables["Goal"][0][1][0][0] == "train.lr"
    failed = [one for one in made.others if one.state == "FAIL"]
    assert failed
    rows = page.tables["Failures"][0][1:]
    assert [row[0][0] for row in rows] == [str(one.number) for one in failed]
    assert all(row[3][0] == failed[0].reason for row in rows)
    compute = page.tables["Compute spent"][0]
    passes = [int(text.replace(",", "")) for text, _ in column(compute, "image passes")]
    assert passes[-1] == sum(passes[:-1]) == sum(e.passes for e in (*made.entries, *made.others))
    assert len(page.tables["All trials"][0]) == 1 + 40
    assert len(page.tables["Leaderboard"][1]) == 1 + len(made.pareto)


EVIL = '<script>alert("x")</script>'


def test_what_comes_from_outside_is_escaped(tmp_path):
    point = {"method.name": EVIL, EVIL: EVIL}
    made = board(
        tmp_path,
        [entry(0, EVIL, point=point, final=True), entry(1, EVIL, point=point)],
        [entry(2, EVIL, "FAIL", None, reason=f"{EVIL}</td>", point=point)],
        sweep=EVIL, protocol=EVIL, search=EVIL, budget=EVIL, command=EVIL, constraints=(EVIL,),
        space=((EVIL,) * 4,), dataset=EVIL, network=EVIL, environment={EVIL: EVIL},
        importances={EVIL: 1.0},
    )  # fmt: skip
    page, _ = published(made)
    assert not any(tag == "script" for tag, _, _ in page.attributes)
    content = (tmp_path / "report.html").read_text()
    assert "<script" not in content
    assert content.count("&lt;script&gt;") >= 15
    if (tmp_path / "pictures" / "interactive.html").exists():
        assert EVIL not in (tmp_path / "pictures" / "interactive.html").read_text()


NONE = {
    "none begun": ([], 0, "No trial was started."),
    "all running": ([], 3, "the sweep is running or was interrupted"),
    "failed": ([entry(0, state="FAIL", value=None, reason="out of memory")], 0, "out of memory"),
    "stopped": ([entry(0, state="PRUNED", value=0.1)], 0, "all were stopped early"),
    "of nan": ([entry(0, state="FAIL", value=math.nan, reason="its value is nan")], 0, "is nan"),
}


@pytest.mark.parametrize(("others", "running", "why"), NONE.values(), ids=NONE)
def test_a_page_without_finished_trials_explains_why(tmp_path, others, running, why):
    made = board(tmp_path, [], others, running=running)
    page, files = published(made)
    assert why in page.text
    assert "Nothing to rank" in page.text
    assert why in leaderboard.text(made)
    assert "pareto.png" not in [path.name for path in files]
    read = Leaderboard.read(tmp_path)
    assert (read.entries, read.running) == ((), running)
    assert [one.reason for one in read.others] == [one.reason for one in others]


AWKWARD = {
    "one trial": [entry(0)],
    "equal values": [entry(i, value=0.3) for i in range(5)],
    "zero": [entry(i, value=0.0) for i in range(3)],
    "no metrics": [entry(i, metrics={}, history={}) for i in range(3)],
    "dollar": [entry(i, method="a$_b$", value=i / 9) for i in range(3)],
    "huge": [entry(i, value=10.0**i) for i in range(0, 9, 2)],
    "mixed types": [
        entry(0, point={"method.name": "a", "x": True}), entry(1, point={"x": "yes"}),
        entry(2, point={"x": 3}), entry(3, point={}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("entries", AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("mode", ["max", "min"])
def test_awkward_sweeps_are_drawn(tmp_path, entries, mode):
    _, files = published(board(tmp_path, entries, mode=mode))
    assert "history.png" in [path.name for path in files]


def test_learning_curves_are_over_the_budget_and_not_over_epochs(tmp_path, monkeypatch):
    """Two methods with the same epochs, one of which needs eight times the passes."""
    spent = [{k: cost * k for k in range(1, 11)} for cost in (2.0, 16.0)]
    entries = [entry(i, value=0.3 + i / 10, spent=one) for i, one in enumerate(spent)]
    made = board(tmp_path, entries, unit="passes/per_image")
    drawn = []
    monkeypatch.setattr(
        "raybust.reporting.sweep_plots.save", lambda figure, path: drawn.append(figure)
    )
    plot_learning(made, tmp_path / "learning.png")
    (axes,) = drawn[0].axes
    assert axes.get_xlabel() == "forward and backward passes per training image"
    assert [line.get_xdata().tolist() for line in axes.get_lines()] == [
        list(one.values()) for one in spent
    ]
    monkeypatch.undo()
    page, _ = published(made)
    assert "over forward and backward passes per training image" in page.text
    plain, _ = published(board(tmp_path, entries))
    assert "over epochs" in plain.text


NORMS = [2, 0.5, math.inf, 10, 200, 0]


def test_infinity_is_a_category_of_its_own_on_an_axis_in_order():
    entries = [entry(i, "lp_noise", point={"method.p": p}) for i, p in enumerate(NORMS)]
    (axis,) = (a for a in scales(board("", entries), entries) if a.key == "method.p")
    assert axis.categories == ("0", "0.5", "2", "10", "200", "inf")
    assert [round(5 * axis.place(p)) for p in NORMS] == [2, 1, 5, 3, 4, 0]
    assert axis.ticks()[-1] == (1.0, "inf")
    finite = entries[:2]
    (axis,) = (a for a in scales(board("", finite), finite) if a.key == "method.p")
    assert (axis.categories, axis.low, axis.high) == ((), 0.5, 2.0)


def test_infinity_in_a_point_is_text_in_json_and_comes_back(tmp_path):
    points = [{"method.p": math.inf}, {"method.p": 2}, {"method.p": -math.inf}]
    made = board(tmp_path, [entry(i, point=point) for i, point in enumerate(points)])
    publish(made)
    plain = json.loads((tmp_path / "leaderboard.json").read_text(), parse_constant=pytest.fail)
    assert [one["point"]["method.p"] for one in plain["entries"]] == ["inf", 2, "-inf"]
    assert Leaderboard.read(tmp_path) == made


def test_two_hundred_trials_of_twelve_methods(tmp_path):
    page, _ = published(large(tmp_path, 200, 12))
    assert len(page.tables["All trials"][0]) == 201
    assert (tmp_path / "report.html").stat().st_size < 2.5e6


def test_three_objectives_are_projected(tmp_path):
    names = ("certified_fast/acr", "validation/accuracy", "train/seconds")
    made = large(tmp_path)
    three = dataclasses.replace(made, objectives=tuple((name, "max") for name in names))
    page, _ = published(three)
    assert [text for text, _ in page.tables["Leaderboard"][1][0]][3:] == list(names)


def test_pictures_of_an_earlier_state_go(tmp_path):
    publish(board(tmp_path, [entry(0), entry(1)], importances={"train.lr": 1.0}))
    assert len(list((tmp_path / "pictures").iterdir())) >= len(PICTURES)
    _, files = published(board(tmp_path, [], running=1))
    left = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert left == {path.name for path in files if path.parent.name == "pictures"} == set()


def test_without_plotly_the_pictures_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    page, files = published(board(tmp_path, [entry(0), entry(1)]))
    assert "interactive.html" not in [path.name for path in files]
    assert "pip install 'raybust[plots]'" in page.text


def test_a_leaderboard_is_read_back_as_it_was_written(whole):
    made, _, _ = whole
    assert Leaderboard.read(made.folder) == made
    json.loads((made.folder / "leaderboard.json").read_text(), parse_constant=pytest.fail)


def test_publishing_twice_gives_the_same_page(tmp_path):
    publish(board(tmp_path, [entry(0, final=True), entry(1)]))
    before = (tmp_path / "report.html").read_bytes()
    publish(Leaderboard.read(tmp_path))
    assert (tmp_path / "report.html").read_bytes() == before


def test_a_long_space_is_folded_away(tmp_path):
    keys = [f"method.knob{n}" for n in range(40)]
    long = board(tmp_path, [entry(0)], space=tuple((key, "float", "", "") for key in keys))
    page = html(long, [])
    hidden = page[page.index("The 40 searched keys") :]
    assert all(key in hidden[: hidden.index("</details>")] for key in keys)
    assert "searched keys</summary>" not in html(board(tmp_path, [entry(0)]), [])


@pytest.mark.parametrize(("radius", "said"), [(0.25, ""), (0.5, "now give ACR 0.5000, not 0.2500")])
def test_certificates_that_changed_since_the_sweep_are_named(tmp_path, radius, said):
    log = tmp_path / "log.tsv"
    log.write_text(f"idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t{radius}\t1\t3\n")
    record = dataclasses.replace(entry(0, final=True), log=log, certified={"certified/acr": 0.25})
    made = board(tmp_path, (record,))
    noted = dataclasses.replace(made, notes=tuple(stale(made)))
    assert said in leaderboard.markdown(noted)
    assert said in " ".join(noted.plain()["notes"])
    assert len(noted.notes) == bool(said)
    log.unlink()
    assert "are gone, not 0.2500" in stale(made)[0]

"""`raybust compare`: the same images, the right test, a verdict and what it depends on."""

import json
import math
import shutil

import numpy as np
import pytest
from masked import ROUNDED
from scipy import stats
from small_run import small_run

from raybust.reporting.logs import read_log
from raybust.stages.aligned import _by_protocol

HEAD = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


def write(path, radii, labels=None, first=0, right=None):
    """A bare log: a row per radius; negative ones are wrong."""
    lines = [HEAD]
    for at, radius in enumerate(radii):
        label = int(labels[at]) if labels is not None else at % 3
        correct = radius >= 0 if right is None else right[at]
        predict = label if correct else label + 1
        lines.append(
            f"{first + at}\t{label}\t{predict}\t{max(radius, 0)}\t{int(correct)}\t0:00:01\n"
        )
    path.write_text("".join(lines))
    return path


def draw(seed, count=400, shift=0.0, noise=0.05, wrong=0.1):
    """Radii of a network; images are the same for all seeds."""
    source, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    images = source.gamma(2.0, 0.25, count)
    radii = np.maximum(images + shift + own.normal(0, noise, count), 0)
    return np.where(own.random(count) < wrong, -1, radii)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(cli, *words):
    done = cli("compare", *words, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    return found, {row["column"]: row for row in found["comparisons"]}


def test_two_logs_are_compared_by_mcnemar_and_permutations(place, cli):
    a, b = draw(1, shift=0.1), draw(2)
    write(place / "a.tsv", a)
    write(place / "b.tsv", b)
    found, rows = asked(cli, "a.tsv", "b.tsv", "certify.radii=[0,0.5]")
    assert list(rows) == ["certified at 0", "certified at 0.5", "ACR"]
    only_a, only_b = int(((a >= 0.5) & (b < 0.5)).sum()), int(((a < 0.5) & (b >= 0.5)).sum())
    half = rows["certified at 0.5"]
    assert half["p"] == pytest.approx(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)
    assert half["difference"] == pytest.approx((only_a - only_b) / 400)
    acr = rows["ACR"]
    assert acr["difference"] == pytest.approx(
        np.maximum(a, 0).mean() - np.maximum(b, 0).mean(), abs=1e-6
    )
    assert acr["interval"][0] < acr["difference"] < acr["interval"][1]
    assert (half["verdict"], acr["verdict"]) == ("better", "better")
    assert rows["certified at 0"]["verdict"] == "cannot say"
    assert rows["certified at 0"]["needed"] is None or rows["certified at 0"]["needed"] > 400
    assert any("One seed of a network" in note for note in found["notes"])
    assert any("under different protocols, or under unknown ones" in n for n in found["notes"])
    assert "a against b: better in certified at 0.5, ACR; not told apart in" in found["summary"]
    for name in ("md", "tex", "png", "json"):
        assert (place / "runs/compare" / f"differences.{name}").stat().st_size


def test_exchanged_networks_have_the_opposite_verdict(place, cli):
    write(place / "a.tsv", draw(1, shift=0.1))
    write(place / "b.tsv", draw(2))
    _, one = asked(cli, "a.tsv", "b.tsv")
    _, other = asked(cli, "b.tsv", "a.tsv")
    for column, row in one.items():
        assert other[column]["difference"] == -row["difference"]
        assert other[column]["p"] == pytest.approx(row["p"], rel=0.2)
        low, high = row["interval"]
        assert other[column]["interval"] == pytest.approx([-high, -low], abs=0.01)
    assert one["ACR"]["verdict"] == "better"
    assert other["ACR"]["verdict"] == "worse"


def test_only_images_that_all_have_are_compared_in_any_order(place, cli):
    radii = draw(1)
    whole = write(place / "whole.tsv", radii)
    half = write(
        place / "half.tsv", radii[100:], labels=[(100 + i) % 3 for i in range(300)], first=100
    )
    rows = half.read_text().splitlines(keepends=True)
    half.write_text(rows[0] + "".join(reversed(rows[1:])))
    found, rows = asked(cli, whole, half)
    assert rows["ACR"]["images"] == 300
    assert rows["ACR"]["difference"] == 0
    assert {row["p"] for row in rows.values()} == {1.0}
    assert "Paired on the same 300 images." in found["notes"]


def test_seeds_decide_by_their_own_spread(place, cli):
    """Single networks of one method differ; ten seeds say that the methods do not."""
    source = np.random.default_rng(7)
    for side in "ab":
        for seed in range(5):
            shift = source.normal(0, 0.05)
            write(place / f"{side}{seed}.tsv", draw(seed + 10 * (side == "b"), shift=shift))
    single, _ = [], None
    for seed in range(5):
        _, rows = asked(cli, f"a{seed}.tsv", f"b{seed}.tsv")
        single.append(rows["ACR"]["verdict"])
    assert set(single) & {"better", "worse"}, "training noise is taken for a difference"
    groups = [",".join(f"{side}{seed}.tsv" for seed in range(5)) for side in "ab"]
    found, rows = asked(cli, *groups)
    row = rows["ACR"]
    assert row["seeds"] == [5, 5]
    assert row["verdict"] in ("cannot say", "equivalent")
    logs = [[read_log(place / f"{side}{seed}.tsv") for seed in range(5)] for side in "ab"]
    means = [[(log.radius * log.correct).mean() for log in part] for part in logs]
    assert row["difference"] == pytest.approx(np.mean(means[0]) - np.mean(means[1]))
    (name,) = [key for key in row["checks"] if "t over seeds" in key]
    assert row["checks"][name] == pytest.approx(stats.ttest_ind(*means, equal_var=False).pvalue)
    assert not any("One seed" in note for note in found["notes"])
    assert "a0 and 4 more against b0 and 4 more" in found["summary"]


def test_all_pairs_are_one_family(place, cli):
    for number, shift in enumerate((0.0, 0.02, 0.3)):
        write(place / f"{number}.tsv", draw(number, shift=shift))
    found, _ = asked(cli, "0.tsv", "1.tsv", "2.tsv", "certify.radii=[0.5]")
    rows = found["comparisons"]
    assert [(row["a"], row["b"]) for row in rows] == [
        ("0", "1"), ("0", "1"), ("0", "2"), ("0", "2"), ("1", "2"), ("1", "2")
    ]  # fmt: skip
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    expected = multipletests([row["p"] for row in rows], method="holm")[1]
    assert [row["p_adjusted"] for row in rows] == pytest.approx(list(expected))


def test_a_margin_makes_small_differences_equivalent(place, cli):
    write(place / "a.tsv", draw(1, count=2000, noise=0.001, wrong=0.0, shift=0.004))
    write(place / "b.tsv", draw(1, count=2000, noise=0.001, wrong=0.0))
    _, rows = asked(cli, "a.tsv", "b.tsv")
    assert (rows["ACR"]["verdict"], rows["ACR"]["within_margin"]) == ("better", True)
    _, rows = asked(cli, "a.tsv", "b.tsv", "--acr-margin", "0.001")
    assert (rows["ACR"]["verdict"], rows["ACR"]["within_margin"]) == ("better", False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three measured runs of two seeds."""
    out = tmp_path_factory.mktemp("compared")
    for name, sigma, seed in (("weak", 0.05, 0), ("one", 0.5, 0), ("two", 0.5, 1)):
        small_run(out / name, method__sigma=sigma, seed=seed)
    return out


def test_runs_are_compared_in_all_that_they_have_in_common(runs, cli):
    for name in ("weak", "one", "two"):
        assert cli("certify", name, "--out", runs, "certify.sigma=0.5", "certify.n=200",
                   "certify.examples=40").code == 0  # fmt: skip
        assert cli("evaluate", name, "--out", runs, "evaluate.examples=30", "evaluate.eps=[0.05]",
                   "evaluate.attacks=[pgd]").code == 0  # fmt: skip
    found, rows = asked(cli, "weak", "one", "--out", runs, "certify.radii=[0,0.5,1]")
    assert list(rows) == ["certified at 0", "certified at 0.5", "ACR", "clean", "robust, linf 0.05"]
    most = 0.5 * stats.norm.ppf(0.001 ** (1 / 200))
    note = f"Radii above {most:.3g} are left out: no draws here can prove them."
    assert note in found["notes"]
    assert rows["ACR"]["images"] == 40
    assert rows["clean"]["images"] == 30
    assert any("sigma = 0.5, l2, n = 200" in note for note in found["notes"])
    assert not any("different protocols" in note for note in found["notes"])
    _, rows = asked(cli, "one,two", "weak", "--out", runs)
    assert rows["ACR"]["seeds"] == [2, 1]
    assert math.isfinite(rows["ACR"]["p"])


def test_a_network_that_masks_its_gradients_is_not_better_under_attack(
    runs, cli, tmp_path, monkeypatch
):
    (tmp_path / "rounded_compare.py").write_text(ROUNDED)
    monkeypatch.syspath_prepend(str(tmp_path))
    small_run(runs / "masked", model__name="rounded_compare:Rounded")
    for name in ("weak", "masked"):
        done = cli("evaluate", name, "--out", runs, "--name", "half", "evaluate.examples=40",
                   "evaluate.eps=[0.15]", "evaluate.attacks=[pgd]",
                   *["model.name=rounded_compare:Rounded"] * (name == "masked"))  # fmt: skip
        assert done.code == 0, done.err
    found, rows = asked(cli, "masked", "weak", "--out", runs)
    row = rows["robust, linf 0.15"]
    assert row["p_adjusted"] < 1e-4
    assert row["value_a"] > row["value_b"]
    assert row["verdict"] == "cannot say"
    assert (row["flags_a"], row["flags_b"]) == (["flat_gradients", "large_eps"], [])
    assert rows["clean"]["flags_a"] == []
    assert any("0.15 of masked is an upper bound only" in note for note in found["notes"])
    _, rows = asked(cli, "weak", "masked", "--out", runs)
    assert rows["robust, linf 0.15"]["verdict"] == "cannot say"
    table = (runs / "compare" / "differences.md").read_text()
    assert "| cannot say (flagged) | stronger attacks |" in table
    assert "at most " in table


def test_early_stopped_certificates_are_compared_at_their_targets_alone(runs, cli):
    """Other radii, and the ACR, are bounds: a network would be worse than itself."""
    early = ("certify.sigma=0.25", "certify.n=300", "certify.examples=20")
    for name, more in (("early", ("certify.radius=0.25",)), ("full", ())):
        done = cli("certify", "one", "--out", runs, "--name", name, *early, *more)
        assert done.code == 0, done.err
    logs = [runs / "one" / "certified" / f"{name}.tsv" for name in ("early", "full")]
    found, rows = asked(cli, *logs, "--out", runs, "certify.radii=[0,0.25,0.5]")
    assert list(rows) == ["certified at 0.25"]
    assert rows["certified at 0.25"]["verdict"] != "worse"
    assert any("different protocols" in note for note in found["notes"])


def test_of_several_logs_the_largest_is_taken_and_those_of_a_gate_are_not(runs, cli):
    for name in ("one", "two"):
        for examples, log in ((10, "few"), (30, "many"), (40, "gate_40_x")):
            done = cli("certify", name, "--out", runs, "--name", log, "certify.sigma=0.4",
                       "certify.n=100", f"certify.examples={examples}")  # fmt: skip
            assert done.code == 0, done.err
    logs = [
        runs / name / "certified" / f"{log}.tsv" for name, log in (("one", "few"), ("two", "many"))
    ]
    found, rows = asked(cli, *logs, "--out", runs)
    assert rows["ACR"]["images"] == 10
    assert any("that their pixels are the same is not proven" in note for note in found["notes"])
    three = [read_log(path.with_name(f"{log}.tsv")) for path in logs[:1] for log in ("many", "few")]
    assert [len(log) for log in _by_protocol(three).values()] == [30]


def test_certificates_of_different_arithmetic_are_of_different_protocols(runs, cli):
    for name, precision in (("one", "float32"), ("one", "bf16"), ("two", "bf16")):
        done = cli("certify", name, "--out", runs, "--name", precision, "certify.sigma=0.3",
                   "certify.n=100", "certify.examples=10",
                   f"certify.precision={precision}")  # fmt: skip
        assert done.code == 0, done.err
    logs = {f"{name} {kind}": runs / name / "certified" / f"{kind}.tsv"
            for name, kind in (("one", "float32"), ("one", "bf16"), ("two", "bf16"))}  # fmt: skip
    found, _ = asked(cli, logs["one float32"], logs["two bf16"], "--out", runs)
    assert any("different protocols" in note and "precision" in note for note in found["notes"])
    found, _ = asked(cli, logs["one bf16"], logs["two bf16"], "--out", runs)
    assert not any("different protocols" in note for note in found["notes"])
    assert any("alpha = 0.001, bf16, test set" in note for note in found["notes"])
    assert len(_by_protocol([read_log(path) for path in logs.values()])) == 2


def test_copies_of_a_network_are_no_seeds(runs, cli, tmp_path):
    for name in ("weak", "one", "two"):
        shutil.copytree(runs / name, tmp_path / name)
    shutil.copytree(runs / "one", tmp_path / "again")
    done = cli("compare", "one,again", "weak,two", "--out", tmp_path)
    assert done.code == 2
    assert "again are the same network" in done.err
    assert "they are one seed" in done.err


def test_seeds_that_agree_on_all_images_prove_nothing_of_others(place, cli):
    """Nothing is certified by any of four networks on five images: as for one against one."""
    for name in "abcd":
        write(place / f"{name}.tsv", [0.0] * 5, right=[True] * 5)
    _, rows = asked(cli, "a.tsv,b.tsv", "c.tsv,d.tsv", "certify.radii=[0.3]")
    assert rows["certified at 0.3"]["verdict"] == "cannot say"
    low, high = rows["certified at 0.3"]["interval"]
    assert low < -0.3
    assert high > 0.3
    assert rows["ACR"]["verdict"] == "cannot say"
    _, rows = asked(cli, "a.tsv", "c.tsv,d.tsv", "certify.radii=[0.3]")
    assert rows["certified at 0.3"]["verdict"] == "cannot say"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a.tsv",), "got only a.tsv, expected A and B"),
        (("a.tsv", "none.tsv"), "none.tsv"),
        (("a.tsv", "other.tsv"), "has label 0 in a and 1 in other: they are of different images"),
        (("a.tsv", "later.tsv"), "a and later have no image in common"),
        (("a.tsv", "b.tsv", "--margin", "0"), "--margin"),
        ((",", "b.tsv"), "got ',', expected a run, a log"),
        (("a.tsv,a.tsv", "b.tsv"), "a.tsv is named twice in a.tsv,a.tsv; it is one seed"),
        (("a.tsv", "last.tsv"), "a and last have only one image in common"),
    ],
)
def test_mistakes(place, cli, words, said):
    write(place / "a.tsv", draw(1, 20))
    write(place / "b.tsv", draw(2, 20))
    write(place / "other.tsv", draw(2, 20), labels=[1] * 20)
    write(place / "later.tsv", draw(2, 20), first=100)
    write(place / "last.tsv", draw(2, 20), labels=[(19 + i) % 3 for i in range(20)], first=19)
    done = cli("compare", *words)
    assert done.code == 2
    assert said in done.err


@pytest.mark.parametrize("command", ["compare", "report"])
def test_no_report_is_written_into_a_run(place, cli, command):
    write(place / "a.tsv", draw(1, 20))
    write(place / "b.tsv", draw(2, 20))
    small_run(place / "runs" / command, train__epochs=1)
    before = sorted(path.name for path in (place / "runs" / command).iterdir())
    for words in ((), ("--name", command)):
        done = cli(command, "a.tsv", "b.tsv", *words)
        assert done.code == 2
        assert f"name: {command} is a run in {place / 'runs'}, into which no report" in done.err
    assert sorted(path.name for path in (place / "runs" / command).iterdir()) == before
    assert cli(command, "a.tsv", "b.tsv", "--name", "other").code == 0


def test_runs_without_results_or_without_a_protocol_in_common(tmp_path, cli):
    small_run(tmp_path / "bare")
    small_run(tmp_path / "own", seed=1)
    done = cli("compare", "bare", "own", "--out", tmp_path)
    assert done.code == 2
    assert "bare: has no results; certify or evaluate it" in done.err
    for name, stage in (("bare", "certify"), ("own", "evaluate")):
        assert cli(stage, name, "--out", tmp_path, "certify.n=100", "certify.examples=5",
                   "evaluate.examples=5", "evaluate.attacks=[pgd]").code == 0  # fmt: skip
    done = cli("compare", "bare", "own", "--out", tmp_path)
    assert done.code == 2
    assert "bare and own have no results under the same protocol" in done.err


def test_a_log_may_have_an_equals_sign_or_a_comma_in_its_name(place, cli):
    write(place / "sigma=0.25.tsv", draw(1, 20))
    write(place / "a,b.tsv", draw(2, 20))
    found, _ = asked(cli, "sigma=0.25.tsv", "a,b.tsv", "certify.radii=[0.5]")
    assert len(found["comparisons"]) == 2
    done = cli("report", "sigma=0.25.tsv", "a,b.tsv")
    assert done.code == 0, done.err

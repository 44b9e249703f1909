"""`raybust certify certify.bound=...`: a deterministic log beside those of smoothing, in reports,
comparisons and gates."""

import json
import shutil

import pytest
import torch
import yaml
from small_run import small_run
from torch import nn

import raybust
from raybust.errors import RequestError

BOUNDS = ("certify.bound=best", "certify.examples=40")
NOISE = ("certify.norm=linf", "certify.sigma=0.25", "certify.n=100", "certify.examples=40")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("bounds") / "runs"
    method = {"method__name": "ibp", "method__eps": 0.1, "method__sigma": None}
    for name, epochs in (("good", 8), ("poor", 3)):
        small_run(
            out / name, **method, train__optimizer="adamw", train__lr=0.01, train__epochs=epochs,
            data__augment="none",
        )  # fmt: skip
    return out


@pytest.fixture
def runs(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "runs")


def without_time(path):
    return [line.split("\t")[:5] + line.split("\t")[6:] for line in path.read_text().splitlines()]


def test_a_log_with_metrics_that_survives_a_kill(runs, cli):
    done = cli("certify", "good", *BOUNDS, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    log = runs / "good" / "certified" / "test_best_linf.tsv"
    assert found["files"]["rows"] == str(log)
    assert (found["protocol"]["bound"], found["protocol"]["steps"]) == (
        "best", 16,
    )  # fmt: skip
    rows = [line.split("\t") for line in log.read_text().splitlines()[2:]]
    radii = [float(row[3]) * int(row[4]) for row in rows]
    metrics = found["metrics"]
    assert metrics["certified_linf/acr"] == pytest.approx(sum(radii) / 40)
    assert metrics["certified_linf/accuracy_at/0.0313725"] == sum(r >= 8 / 255 for r in radii) / 40
    assert metrics["certified_linf/passes"] == 1 + 16 * (2 + 10)
    assert metrics["certified_linf/acr"] > 0.01
    assert "certified_linf/acr" in log.with_suffix(".journal.jsonl").read_text()
    assert "certified/acr" not in log.with_suffix(".journal.jsonl").read_text()
    whole = without_time(log)
    log.write_bytes(log.read_bytes()[:-700])
    done = cli("certify", "good", *BOUNDS)
    assert "of 40 rows are done" in done.err
    assert without_time(log) == whole
    done = cli("certify", "good", *BOUNDS, "--only", rows[7][0])
    assert (done.code, "was reproduced" in done.out) == (0, True)


def test_asked_radii_are_decided_as_the_epochs_decide_them(runs, cli):
    from raybust.numerics.relaxation import certified_margin, trace
    from raybust.trained import load_trained

    held = load_trained(runs / "good", [])
    images, labels = held.dataset.test.fetch(range(40))
    done = cli("certify", "good", "certify.bound=ibp", "certify.examples=40", "certify.radius=0.1",
               "--json")  # fmt: skip
    metrics = json.loads(done.out)["metrics"]
    low = certified_margin(trace(held.network), held.network, images, labels, eps=0.1, bound="ibp")
    assert metrics["certified_linf/accuracy_at/0.1"] == pytest.approx(float((low > 0).sum()) / 40)
    assert metrics["certified_linf/passes"] == 3
    assert metrics["certified_linf/acr_understated"] == 1
    assert (runs / "good/certified/test_ibp_linf_r0.1.tsv").exists()


def test_rows_of_other_weights_are_not_reused(runs, cli):
    cli("certify", "good", *BOUNDS)
    shutil.copytree(runs / "good/certified", runs / "poor/certified")
    done = cli("certify", "poor", *BOUNDS)
    assert done.code == 2
    assert "another function (weights" in done.err


def test_both_kinds_stand_side_by_side_and_apart(runs, cli):
    for run in ("good", "poor"):
        for settings in (BOUNDS, NOISE):
            assert cli("certify", run, *settings).code == 0
    done = cli("report", "good", "poor", "--json")
    found = json.loads(done.out)
    kinds = [(one["kind"], one["norm"], one["bound"], one["noise"]) for one in found["logs"]]
    assert (
        sorted(kinds, key=str)
        == [("bounds", "linf", "best", None)] * 2 + [("smoothing", "linf", None, "gaussian")] * 2
    )
    names = {path.rpartition("/")[2] for path in found["files"]}
    assert {"certified_linf.md", "certified_linf_bounds.md", "certified_linf_bounds.png"} <= names
    table = (runs / "report/certified_linf_bounds.md").read_text()
    assert table.startswith("Sound bounds of the network itself")
    assert "no alpha, 193 passes an image" in table
    assert "| 0 | 2/255 | 4/255 | 8/255 |" in table
    assert "gaussian" not in table
    done = cli("compare", "good", "poor")
    assert done.code == 2
    assert "certificates under 2 protocols in common" in done.err
    logs = [runs / run / "certified/test_best_linf.tsv" for run in ("good", "poor")]
    done = cli("compare", *logs, "certify.radii=[0.03]", "--json")
    found = json.loads(done.out)
    assert [one["column"] for one in found["comparisons"]] == ["certified at 0.03", "ACR"]
    assert any("best bounds, linf, no alpha" in note for note in found["notes"])
    noisy = runs / "poor/certified/test_gaussian_linf_sigma0.25_n100.tsv"
    done = cli("compare", logs[0], noisy)
    assert done.code == 2
    assert "no results under the same protocol" in done.err


def test_a_gate_may_ask_for_bounds(runs, cli):
    rules = {
        "examples": 40, "cap": 40, "certify": {"bound": "ibp"},
        "rules": [{"column": "certified at 0.01", "at_least": 0.99}],
    }  # fmt: skip
    with open("gate.yaml", "w") as file:
        yaml.safe_dump(rules, file)
    done = cli("gate", "gate.yaml", "good", "--json")
    assert done.code in (1, 3)
    own = cli("certify", "good", "certify.bound=ibp", "certify.examples=40",
              "certify.radii=[0.01]", "--json")  # fmt: skip
    share = json.loads(own.out)["metrics"]["certified_linf/accuracy_at/0.01"]
    assert json.loads(done.out)["rules"][0]["value"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("certify.bound=ibp", "certify.n=100"),
         "certify.n: got 100, but certify.bound=ibp uses no noise: leave it out"),
        (("certify.bound=best", "certify.sigma=0.5"), "certify.sigma: got 0.5"),
        (("certify.bound=best", "certify.norm=l2"), "certify.norm: got l2"),
        (("certify.bound=best", "certify.precision=bf16"), "certify.precision: got bf16"),
        (("certify.bound=best", "certify.radius=2"), "certify.radius: got 2, expected at most 1"),
        (("certify.bound=fast",), "certify.bound: got 'fast', expected one of"),
        (("certify.bound=ibp", "--cohen"), "--cohen: got certificates by ibp bounds"),
        (("certify.bound=ibp", "--only", "1"), "no certificates with this protocol yet"),
    ],
)  # fmt: skip
def test_wrong_input_in_one_line(runs, cli, words, message):
    done = cli("certify", "good", *words)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (runs / "good/certified").exists()


def test_predictions_and_servers_ask_for_smoothing(runs, cli):
    from PIL import Image

    Image.new("L", (8, 8)).save("one.png")
    done = cli("predict", "good", "one.png", "certify.bound=ibp")
    assert done.code == 2
    assert "certify.bound: got ibp, but this answers by randomized smoothing" in done.err


def test_modules_need_no_sigma_and_a_step_without_a_rule_is_named(tmp_path):
    torch.manual_seed(0)
    images = torch.rand(8, 1, 4, 4)
    layers = [nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)]
    data = images, torch.zeros(8, dtype=torch.int64)
    found = raybust.certify(nn.Sequential(*layers), data, "certify.bound=crown", quiet=True)
    assert [row.idx for row in found.rows] == list(range(8))
    assert all(row.radius > 0 for row in found.rows)
    layers[2] = nn.GELU()
    with pytest.raises(RequestError, match=r"certify\.bound: .*GELU"):
        raybust.certify(
            nn.Sequential(*layers), data, "certify.bound=crown", out=tmp_path, quiet=True
        )
    assert not list(tmp_path.glob("**/*.tsv")), "before any row"

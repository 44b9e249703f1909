"""Ensembles: the mean of logits, and the rows of copies."""

import pytest
import torch
from small_run import small_run
from torch import nn

from raybust.models import Ensemble

FAST = ("certify.examples=12", "certify.n=200", "certify.n0=50")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Runs `a` and `b` of other seeds, and `c` of another sigma."""
    folder = tmp_path_factory.mktemp("runs")
    small_run(folder / "a", train__epochs=1)
    small_run(folder / "b", train__epochs=1, seed=1)
    small_run(folder / "c", train__epochs=1, method__sigma=0.5)
    return folder


def certify(cli, out, run, *more):
    done = cli("certify", run, "--out", out, *FAST, f"track.uri=sqlite:///{out}/m.db", *more)
    logs = sorted(out.glob("_weights/ensemble-*/certified/*.tsv"), key=lambda p: p.stat().st_mtime)
    return done, logs


def rows(path):
    return [line.split("\t") for line in path.read_text().splitlines() if line[:1].isdigit()]


def test_the_logits_are_the_mean():
    torch.manual_seed(0)
    members = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(3)]
    images = torch.rand(5, 1, 2, 2)
    expected = torch.stack([member(images) for member in members]).mean(0)
    torch.testing.assert_close(Ensemble(members)(images), expected)


@pytest.mark.slow
def test_copies_give_the_rows_of_the_single_network(cli, out):
    done = cli("certify", "a", "--out", out, *FAST, f"track.uri=sqlite:///{out}/m.db")
    assert done.code == 0, done.err
    (single,) = (out / "a" / "certified").glob("*.tsv")
    done, logs = certify(cli, out, "a,a,a")
    assert done.code == 0, done.err
    assert "ensemble of a, a, a: the mean of their logits; every pass is 3 passes" in (
        done.out + done.err
    )
    mine, theirs = rows(logs[-1]), rows(single)
    assert len(mine) == 12
    # All but the wall-clock times.
    assert [row[:4] for row in mine] == [row[:4] for row in theirs]


@pytest.mark.slow
def test_two_runs_are_certified_and_attacked_as_one(cli, out):
    done, logs = certify(cli, out, "a,b")
    assert done.code == 0, done.err
    assert len(rows(logs[-1])) == 12
    again, _ = certify(cli, out, "a,b")
    assert again.code == 0, again.err  # its rows prove themselves
    attack = cli(
        "evaluate", "a,b", "--out", out, "evaluate.attacks=[pgd]", "evaluate.examples=12",
        "evaluate.eps=[0.05]", "evaluate.steps=3", f"track.uri=sqlite:///{out}/m.db",
    )  # fmt: skip
    assert attack.code == 0, attack.err
    assert list(out.glob("_weights/ensemble-*/attacked/*"))


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("a,c", ["c: has noise of sigma 0.5, but a has 0.25", "set certify.sigma"]),
        ("a,,b", ["names like A,B,C"]),
        ("a,nobody", ["'nobody'"]),
    ],
)
def test_networks_that_form_no_ensemble(cli, out, run, words):
    done, _ = certify(cli, out, run)
    assert done.code == 2
    assert all(word in done.err for word in words), done.err


def test_other_noises_are_joined_where_sigma_is_named(cli, out):
    done, _ = certify(cli, out, "a,c", "certify.sigma=0.25", "--dry-run")
    assert done.code == 0, done.err

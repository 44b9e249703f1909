"""Which trials are finalists."""

import re
import shutil

import kit
import pytest

from raybust.disk import checkpoint
from raybust.reporting import leaderboard
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord
from raybust.stages import finalists
from raybust.stages.finalists import choose


def board(tmp_path, feasible, pareto=(), objectives=(), methods="gggggggg"):
    entries = tuple(
        TrialRecord(number, methods[number], "COMPLETE", {}, 1 - number / 10, {}, feasible=fit)
        for number, fit in enumerate(feasible)
    )
    return Leaderboard(
        "s", "a", "max", entries, (), tmp_path, pareto=tuple(pareto), objectives=objectives
    )


@pytest.mark.parametrize(
    ("feasible", "most", "expected"),
    [
        ([None] * 5, 2, [0, 1]),
        ([None] * 2, 5, [0, 1]),
        ([None] * 2, 0, []),
        ([False, True, False, True, True], 2, [1, 3]),
        ([False, False], 2, []),
    ],
)
def test_the_best_that_meet_the_constraints(tmp_path, feasible, most, expected):
    assert [entry.number for entry in choose(board(tmp_path, feasible), most)] == expected


@pytest.mark.parametrize(
    ("most", "expected"), [(5, [0, 2, 3, 5, 6]), (3, [0, 3, 6]), (2, [0, 6]), (1, [0]), (0, [])]
)
def test_of_a_pareto_set_so_many_spread_over_it(tmp_path, most, expected):
    both = (("a", "max"), ("b", "max"))
    found = choose(board(tmp_path, [None] * 8, [0, 2, 3, 5, 6], both), most)
    assert [entry.number for entry in found] == expected


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [0]), (2, [0, 2]), (4, [0, 2, 3, 6]), (9, [0, 2, 3, 6, 1, 4, 7])]
)
def test_a_small_pareto_set_is_followed_by_the_best_of_each_further_method(
    tmp_path, most, expected
):
    both = (("a", "max"), ("b", "max"))
    fit = [None, None, None, None, None, False, None, None]
    found = choose(board(tmp_path, fit, [0], both, methods="ggmpmxsg"), most)
    assert [entry.number for entry in found] == expected


@pytest.mark.cluster
def test_another_protocol_names_the_command_that_does_not_begin_the_search_anew(
    cluster, trained, out
):
    folder = out / "sweep"
    shutil.copytree(trained[1], folder / "trials" / "0003")
    entry = TrialRecord(3, "gaussian", "COMPLETE", {}, 0.5, {}, {})
    said = []
    first = kit.config(out, "certify.examples=5")
    assert finalists.measure(first, entry, folder, said.append).certified["certified/acr"] >= 0
    other = kit.config(out, "certify.examples=5", "certify.seed=1")
    refused = finalists.measure(other, entry, folder, said.append)
    assert re.search(r"seed: 0 -> 1.*raybust certify sweep/3 --no-resume", refused.reason)
    assert not refused.final
    assert refused.certified is None
    again = finalists.measure(first, refused, folder, said.append)
    assert again.final
    assert again.reason is None


@pytest.mark.cluster
def test_a_finalist_that_fails_is_a_row_with_its_reason_and_what_was_measured(
    cluster, trained, out
):
    folder = out / "sweep"
    broken = folder / "trials" / "0004"
    shutil.copytree(trained[1], folder / "trials" / "0003")
    shutil.copytree(trained[1], broken)
    newest = checkpoint.newest(broken)
    weights = {key: value * float("nan") if value.is_floating_point() else value
               for key, value in checkpoint.read_weights(newest).items()}  # fmt: skip
    manifest = checkpoint.read_manifest(newest)
    del manifest["files"]
    checkpoint.write(newest, weights, checkpoint.read_state(newest), manifest)
    config = kit.config(out, "certify.examples=5", "evaluate.examples=5", "evaluate.eps=[0.1]",
                        "evaluate.attacks=[pgd]")  # fmt: skip
    entries = [TrialRecord(number, "gaussian", "COMPLETE", {}, 0.5, {}, {}) for number in (3, 4, 5)]
    said = []
    found = [finalists.measure(config, entry, folder, said.append) for entry in entries]
    assert [entry.final for entry in found] == [True, False, False]
    assert "NaN" in found[1].reason
    assert found[1].accuracy is None, "an accuracy of NaN is none"
    assert "0005" in found[2].reason
    assert sum("could not be measured" in line for line in said) == 2
    board = Leaderboard("s", "a", "max", tuple(found), (), folder)
    assert [entry.number for entry in board.finalists] == [3]
    assert "not measured" in leaderboard.markdown(board)
    assert "NaN" in leaderboard.markdown(board)


@pytest.mark.cluster
def test_a_sweep_whose_finalist_diverges_in_its_last_step_keeps_its_result(cluster, out, cli):
    (out / "space.yaml").write_text(
        "train: {epochs: 1}\nsearch:\n  train.lr: {choice: [0.05, 1.0e+30]}\n"
    )
    settings = [text for text in kit.TINY if not text.startswith(("train.lr", "train.epochs"))]
    command = ("tune", out / "space.yaml", "--out", out, "--name", "two", *settings,
               "tune.trials=2", "tune.finalists=2", "tune.sampler=grid")  # fmt: skip
    done = cli(*command)
    assert done.code == 0, done.err
    board = Leaderboard.read(out / "two")
    assert len(board.finalists) == 1
    assert board.finalists[0].point["train.lr"] == 0.05
    assert (out / "two" / "report.html").exists()
    rows = [*board.entries, *board.others]
    (failed,) = (entry for entry in rows if entry.point["train.lr"] > 1)
    assert failed.reason
    assert not (out / "two" / "trials" / f"{failed.number:04d}" / "certified").exists()

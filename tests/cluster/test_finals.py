"""Which trials are finalists."""

import shutil

import kit
import pytest

from raybust.cluster import finals
from raybust.cluster.finals import choose
from raybust.errors import RequestError
from raybust.report.leaderboard import Entry, Leaderboard


def board(tmp_path, feasible, pareto=(), objectives=(), methods="gggggggg"):
    entries = tuple(
        Entry(number, methods[number], "COMPLETE", {}, 1 - number / 10, {}, feasible=fit)
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
    assert [entry.trial for entry in choose(board(tmp_path, feasible), most)] == expected


@pytest.mark.parametrize(
    ("most", "expected"), [(5, [0, 2, 3, 5, 6]), (3, [0, 3, 6]), (2, [0, 6]), (1, [0]), (0, [])]
)
def test_of_a_pareto_set_so_many_spread_over_it(tmp_path, most, expected):
    both = (("a", "max"), ("b", "max"))
    found = choose(board(tmp_path, [None] * 8, [0, 2, 3, 5, 6], both), most)
    assert [entry.trial for entry in found] == expected


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [0]), (2, [0, 2]), (4, [0, 2, 3, 6]), (9, [0, 2, 3, 6, 1, 4, 7])]
)
def test_a_small_pareto_set_is_followed_by_the_best_of_each_further_method(
    tmp_path, most, expected
):
    both = (("a", "max"), ("b", "max"))
    fit = [None, None, None, None, None, False, None, None]
    found = choose(board(tmp_path, fit, [0], both, methods="ggmpmxsg"), most)
    assert [entry.trial for entry in found] == expected


@pytest.mark.cluster
def test_another_protocol_names_the_command_that_does_not_begin_the_search_anew(
    cluster, trained, out
):
    folder = out / "sweep"
    shutil.copytree(trained[1], folder / "trials" / "0003")
    entry = Entry(3, "gaussian", "COMPLETE", {}, 0.5, {}, {})
    said = []
    first = kit.config(out, "certify.examples=5")
    assert finals.measure(first, entry, folder, said.append).certified["certified/acr"] >= 0
    other = kit.config(out, "certify.examples=5", "certify.seed=1")
    with pytest.raises(RequestError, match=r"seed: 0 -> 1.*raybust certify sweep/3 --no-resume"):
        finals.measure(other, entry, folder, said.append)

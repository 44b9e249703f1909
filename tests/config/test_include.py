"""Search spaces composed of others."""

import pytest

from raybust.config import expand
from raybust.errors import RequestError

FILES = {
    "shared": "search:\n  train.lr: {float: [0.1, 1.0]}\n  train.ema: {float: [0.0, 0.5]}\n",
    "gaussian": (
        "search:\n  include: [shared]\n  method.sigma: {float: [0.1, 1.0]}\n"
        "  method.mode: {choice: [a, b]}\n  method.k: {int: [1, 3], when: {method.mode: a}}\n"
    ),
    "macer": "search:\n  method.sigma: {float: [0.2, 0.9]}\n  method.name: {choice: [x]}\n",
    "bare": "seed: 1\n",
}


@pytest.fixture
def path(tmp_path):
    for name, text in FILES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path / "space.yaml"


def test_included_domains_stand_in_their_place_and_the_file_itself_wins(path):
    block = {"seed": {"int": [0, 9]}, "include": ["shared"], "train.lr": {"float": [0.1, 0.2]}}
    assert expand(block, path) == {
        "seed": {"int": [0, 9]},
        "train.lr": {"float": [0.1, 0.2]},
        "train.ema": {"float": [0.0, 0.5]},
    }
    assert list(expand(block, path)) == ["seed", "train.lr", "train.ema"]


def test_each_gives_the_parameters_of_every_method_under_its_condition(path):
    block = {"method.name": {"each": ["gaussian", "macer"], "default": "macer"}}
    assert expand(block, path) == {
        "method.name": {"choice": ["gaussian", "macer"], "default": "macer"},
        "method.sigma@gaussian": {"float": [0.1, 1.0], "when": {"method.name": "gaussian"}},
        "method.mode@gaussian": {"choice": ["a", "b"], "when": {"method.name": "gaussian"}},
        "method.k@gaussian": {
            "int": [1, 3],
            "when": {"method.name": "gaussian", "method.mode": "a"},
        },
        "method.sigma@macer": {"float": [0.2, 0.9], "when": {"method.name": "macer"}},
    }


def test_what_is_no_block_is_left_to_who_reads_it(path):
    assert expand(None, path) is None
    assert expand([1], path) == [1]
    assert expand({"train.lr": 3}, path) == {"train.lr": 3}


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"include": ["nothing"]}, ["no nothing.yaml next to it", "gaussian", "shared"]),
        ({"include": "shared"}, ["include", "'shared'", "list"]),
        ({"include": ["bare"]}, ["bare.yaml", "no `search` block"]),
        ({"method.name": {"each": []}}, ["method.name: each", "list"]),
        ({"method.name": {"each": ["trades"]}}, ["no trades.yaml"]),
    ],
)
def test_what_cannot_be_included_is_one_line(path, block, words):
    with pytest.raises(RequestError) as found:
        expand(block, path)
    assert all(word in str(found.value) for word in words), found.value

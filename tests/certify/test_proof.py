"""Recomputing a few rows distinguishes a log's function from another with the same weights."""

import dataclasses
from pathlib import Path

import pytest
import torch
from networks import Linear, protocol

from raybust.certification import certify_examples, check_rows
from raybust.disk.rowlog import OtherProtocolError

IMAGES = torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(0))
HEADER = protocol(sigma=0.5, n=2000)
LOG = Path("log.tsv")


def net(bias=0.1):
    return Linear([[0.0] * 4, [0.5, -0.5, 0.5, -0.5]], [0.0, bias])


def recompute_by(network, asked=None):
    def recompute(indices, at):
        if asked is not None:
            asked.append((list(indices), at.n))
        chosen = torch.tensor(indices)
        found = certify_examples(network, IMAGES[chosen], torch.ones(len(chosen)), chosen, at)
        return sorted(found, key=lambda row: indices.index(row.idx))

    return recompute


@pytest.fixture(scope="module")
def rows():
    found = certify_examples(net(), IMAGES, torch.ones(12), range(12), HEADER)
    return sorted(found, key=lambda row: row.idx)


def test_the_function_that_made_the_rows_passes_and_few_are_computed(rows):
    asked = []
    check_rows(rows, 12, HEADER, LOG, recompute_by(net(), asked))
    (indices, n), *pilots = asked
    assert n == HEADER.n
    assert 2 <= len(indices) <= 4
    least_certain = sorted(rows, key=lambda row: row.count / row.n)[0]
    assert least_certain.idx in indices
    assert [n for _, n in pilots] == [100]
    assert {*indices, *pilots[0][0]} == set(range(12)), "the second allows the pilots of all"


def test_rows_of_another_function_are_found_wherever_they_are(rows):
    """Even if the first, the last and the two least certain rows match this function."""
    theirs = certify_examples(net(0.3), IMAGES, torch.ones(12), range(12), HEADER)
    theirs = {row.idx: row for row in theirs}
    spared = {row.idx for row in (*sorted(rows, key=lambda row: row.count / row.n)[:2],
                                  rows[0], rows[-1])}  # fmt: skip
    mixed = [row if row.idx in spared else theirs[row.idx] for row in rows]
    assert any(a.top != b.top or a.n0_count != b.n0_count for a, b in zip(mixed, rows, strict=True))
    with pytest.raises(OtherProtocolError, match="another function"):
        check_rows(mixed, 12, HEADER, LOG, recompute_by(net()))


@pytest.mark.parametrize("bias", [0.08, 0.12, -0.1])
def test_another_function_is_detected(rows, bias):
    with pytest.raises(OtherProtocolError, match=r"another function \(example .*--no-resume"):
        check_rows(rows, 12, HEADER, LOG, recompute_by(net(bias)))


@pytest.mark.parametrize("seconds", [0.3, 100.0])
def test_what_takes_too_long_is_proven_by_its_pilots(rows, seconds):
    slow = [dataclasses.replace(row, time=seconds) for row in rows]
    asked = []
    check_rows(slow, 12, HEADER, LOG, recompute_by(net(), asked))
    assert sum(len(indices) for indices, _ in asked) == len({i for ids, _ in asked for i in ids})
    drawn = {n: len(indices) for indices, n in asked}
    assert drawn.get(2000, 0) * seconds <= 1
    assert drawn[100] >= 1
    with pytest.raises(OtherProtocolError, match="another function"):
        check_rows(slow, 12, HEADER, LOG, recompute_by(net(-0.2)))


def test_a_hundredth_of_the_work_may_be_more_than_a_second(rows):
    slow = [dataclasses.replace(row, time=2.0) for row in rows]
    asked = []
    check_rows(slow, 1000, HEADER, LOG, recompute_by(net(), asked))
    assert [n for _, n in asked] == [HEADER.n, 100]
    assert len(asked[0][0]) >= 2
    assert len(asked[1][0]) < len(rows), "the pilots of all rows would take longer"


def test_a_log_of_one_row(rows):
    check_rows(rows[:1], 12, HEADER, LOG, recompute_by(net()))


def test_a_row_with_another_class_is_detected(rows):
    flipped = [dataclasses.replace(row, top=1 - row.top) for row in rows]
    with pytest.raises(OtherProtocolError):
        check_rows(flipped, 12, HEADER, LOG, recompute_by(net()))

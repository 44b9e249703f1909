"""The warning that the first examples of sorted data are no sample of it."""

import pytest
import torch

from raybust.stages.measurement import warn_of_few_classes


class Labels:
    """The labels of a part."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)


def warns(labels, count):
    said = []
    warn_of_few_classes(Labels(labels), range(count), said.append)
    return bool(said)


SIZES = [(10, 200, 20), (10, 200, 95), (10, 200, 110), (10, 200, 190), (10, 10_000, 500),
         (2, 1000, 100), (100, 10_000, 50), (1000, 50_000, 100), (1000, 50_000, 1000)]  # fmt: skip


@pytest.mark.parametrize(("classes", "total", "count"), SIZES)
def test_sorted_data_is_told_and_shuffled_data_is_not(classes, total, count):
    labels = torch.arange(total) * classes // total
    assert warns(labels, count)
    source = torch.Generator().manual_seed(0)
    shuffled = [labels[torch.randperm(total, generator=source)] for _ in range(200)]
    assert sum(warns(one, count) for one in shuffled) <= 4, "two in a hundred at most"


def test_rare_classes_may_be_missing():
    labels = torch.cat([torch.full((900,), 0), torch.full((95,), 1), torch.full((5,), 4)])
    source = torch.Generator().manual_seed(0)
    shuffled = [labels[torch.randperm(1000, generator=source)] for _ in range(200)]
    assert sum(warns(one, 50) for one in shuffled) <= 4
    assert warns(labels, 300)
    assert not warns(labels, 1000)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (range(200), "cover only 2 of 10 classes: no"),
        (
            [*range(200), *range(200, 1000, 20)],
            "have other shares of the 10 classes than the whole",
        ),
    ],
)
def test_the_warning_says_what_is_wrong_with_the_classes(chosen, told):
    said = []
    warn_of_few_classes(Labels(torch.arange(1000) // 100), chosen, said.append)
    (line,) = said
    assert f"these {len(chosen)} of 1000 examples {told}" in line

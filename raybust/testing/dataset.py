"""Requirements on every data set, as plain functions, and `DatasetConformance`, which runs them.

A data set is loaded as in a training run: read, checked, and cut into three parts.

Legend: N images of C x H x W, K classes.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import pytest
import torch

from raybust.config.inputs import Data
from raybust.data import Dataset, Part, Parts, Source, catalog

_LOOKED = 256
"""Number of images to check per part, spread evenly."""

DataSource = str | Source | Callable[[Data], Parts]
"""A value of `data.name`, or the object of an entry point of `raybust.datasets`."""


def loaded(dataset: DataSource, config: Data) -> Dataset:
    """Loads a data set as a training run does.

    Args:
        dataset: data set under test.
        config: section `data`; its `name` is replaced if `dataset` is a name.
    """
    if isinstance(dataset, str):
        return catalog.load(dataclasses.replace(config, name=dataset))
    return catalog.load_source(_source(dataset), config)


def _source(dataset: Source | Callable[[Data], Parts]) -> Source:
    return catalog.source_of(dataset, f"dataset '{getattr(dataset, '__name__', 'given')}'", "")


def _parts(found: Dataset) -> Iterator[tuple[str, Part]]:
    for name in ("train", "validation", "test"):
        yield name, getattr(found, name)


def _some(part: Part) -> torch.Tensor:
    """Returns at most 256 positions in a part, int64 (B,), spread evenly from first to last."""
    return torch.linspace(0, len(part) - 1, min(len(part), _LOOKED)).round().to(torch.int64)


def check_parts(dataset: DataSource, config: Data) -> None:
    """The three parts have images of one shape, and the facts that the source declares are true."""
    found = loaded(dataset, config)
    for name, part in _parts(found):
        assert len(part) > 0, f"the {name} part is empty"
        assert part.shape == found.shape, f"{name}: images {part.shape}, not {found.shape}"
    assert len(set(found.classes)) == len(found.classes) >= 2, f"classes {found.classes}"
    assert len(found.mean) == len(found.std) == found.shape[0], "a mean and a std per channel"
    assert min(found.std) > 0, f"std {found.std}"
    facts = catalog.describe(dataset) if isinstance(dataset, str) else vars(_source(dataset))
    sizes = (len(found.train) + len(found.validation), len(found.test))
    read = {"shape": found.shape, "classes": len(found.classes), "examples": sizes}
    for fact, value in read.items():
        if fact == "examples" and config.limit is not None:
            continue
        claim = facts[fact]
        assert claim in (None, value), f"the source declares {fact} {claim}, but has {value}"
    assert facts["augment"] in ("none", "flip", "crop", "crop_flip"), facts["augment"]


def check_labels(dataset: DataSource, config: Data) -> None:
    """Labels are int64 in [0, K), `fetch` returns the same ones, and training has every class."""
    found = loaded(dataset, config)
    count = len(found.classes)
    for name, part in _parts(found):
        assert part.labels.dtype == torch.int64, f"{name}: labels are {part.labels.dtype}"
        assert part.labels.shape == (len(part),), f"{name}: labels {tuple(part.labels.shape)}"
        low, high = int(part.labels.min()), int(part.labels.max())
        assert 0 <= low <= high < count, f"{name}: labels from {low} to {high} of {count} classes"
        at = _some(part)
        assert torch.equal(part.fetch(at)[1], part.labels[at]), f"{name}: fetch has other labels"
    missing = set(range(count)) - set(found.train.labels.tolist())
    assert not missing, f"the training part has no image of the classes {sorted(missing)}"


def check_images(dataset: DataSource, config: Data) -> None:
    """Images are float32 (N, C, H, W) in [0, 1], not constant, and in the requested order."""
    found = loaded(dataset, config)
    for name, part in _parts(found):
        at = _some(part)
        images, _ = part.fetch(at)
        shape = (len(at), *found.shape)
        assert images.dtype == torch.float32, f"{name}: images are {images.dtype}"
        assert images.shape == shape, f"{name}: images {tuple(images.shape)}, not {shape}"
        low, high = float(images.min()), float(images.max())
        assert 0 <= low <= high <= 1, f"{name}: pixels from {low} to {high}, not in [0, 1]"
        assert low < high, f"{name}: all pixels are {low}"
        turned, _ = part.fetch(at.flip(0))
        assert torch.equal(turned.flip(0), images), f"{name}: fetch depends on the order"
        none, labels = part.fetch([])
        assert none.shape == (0, *found.shape), f"{name}: an empty fetch gives {tuple(none.shape)}"
        assert labels.shape == (0,)


def check_indices(dataset: DataSource, config: Data) -> None:
    """Indices are unique and identify an example for every `data.split_seed`, which does not change
    the test set. Certificates identify examples by them."""
    found = loaded(dataset, config)
    other = loaded(dataset, dataclasses.replace(config, split_seed=config.split_seed + 1))
    for name, part in _parts(found):
        assert part.indices.dtype == torch.int64, f"{name}: indices are {part.indices.dtype}"
        assert part.indices.shape == (len(part),), f"{name}: indices {tuple(part.indices.shape)}"
        assert len(part.indices.unique()) == len(part), f"{name}: an index comes twice"
    everything = range(len(found.test))
    assert torch.equal(found.test.indices, other.test.indices), "the test set depends on the cut"
    assert found.test.content(everything) == other.test.content(everything), (
        "the test set depends on the cut"
    )
    known = dict(zip(found.train.indices.tolist(), range(len(found.train)), strict=True))
    both = [(known[i], at) for at, i in enumerate(other.train.indices.tolist()) if i in known]
    ours, theirs = (torch.tensor(at, dtype=torch.int64) for at in zip(*both[:_LOOKED], strict=True))
    same = found.train.content(ours) == other.train.content(theirs)
    assert same, "an index of the training part names another image after another cut"


def check_digests(dataset: DataSource, config: Data) -> None:
    """Loading again gives the same images, labels and indices in the same order, and the same
    digest. Otherwise runs do not resume and results are not reused."""
    first, again = loaded(dataset, config), loaded(dataset, config)
    assert first.classes == again.classes, "other classes when it is read again"
    for (name, part), (_, other) in zip(_parts(first), _parts(again), strict=True):
        at = range(len(part))
        assert len(part) == len(other), f"{name}: another size when it is read again"
        assert part.labeling(at) == other.labeling(at), f"{name}: other labels when read again"
        assert part.content(at) == other.content(at), f"{name}: other images when read again"
    assert first.digest == again.digest, "another digest when it is read again"


DATASET_CHECKS = (check_parts, check_labels, check_images, check_indices, check_digests)
"""All checks of a data set."""


class DatasetConformance:
    """All checks of a data set, which a subclass names.

        class TestMine(DatasetConformance):
            dataset = MINE

    Override the fixture `config` for settings that a test has to create, such as `path`.

    Attributes:
        dataset: `Source` or callable for an entry point, or a value of `data.name`.
        settings: values of the section `data`.
    """

    dataset: ClassVar[Any]
    settings: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture
    def config(self) -> Data:
        """Section `data` of the configuration."""
        name = self.dataset if isinstance(self.dataset, str) else "under_test"
        return Data(**{"name": name, **self.settings})

    def _dataset(self) -> DataSource:
        """Returns the attribute `dataset` without binding a function to the instance."""
        found = inspect.getattr_static(type(self), "dataset")
        dataset: DataSource = found.__func__ if isinstance(found, staticmethod) else found
        return dataset

    def test_parts(self, config: Data) -> None:
        """See `check_parts`."""
        check_parts(self._dataset(), config)

    def test_labels(self, config: Data) -> None:
        """See `check_labels`."""
        check_labels(self._dataset(), config)

    def test_images(self, config: Data) -> None:
        """See `check_images`."""
        check_images(self._dataset(), config)

    def test_indices(self, config: Data) -> None:
        """See `check_indices`."""
        check_indices(self._dataset(), config)

    def test_digests(self, config: Data) -> None:
        """See `check_digests`."""
        check_digests(self._dataset(), config)

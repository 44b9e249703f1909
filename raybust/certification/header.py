"""What the headers of all certification logs share: which function, images and labels the rows are
of, and how headers are compared.

`Protocol` adds randomized smoothing, `BoundProtocol` sound bounds of the network.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

import raybust
from raybust import devices, identity
from raybust.data import Part
from raybust.data.digests import labels_digest

FORMAT = 1
"""Version of the logs' formats and of the keys of their noise."""


@dataclass(frozen=True, kw_only=True)
class Header(ABC):
    """One certification protocol; its fields are the header of a log.

    Attributes:
        format: version of the format.
        norm: norm of the radii.
        shape: (C, H, W) of an image.
        targets: radii to decide; empty to find each example's radius.
        batch: images per forward pass; it affects rounding.
        dataset: name of the dataset.
        split: part of the dataset.
        data: digest of the certified images.
        labels: digest of their labels.
        skip: every skip-th example.
        examples: maximum number of examples; None for all.
        weights: digest of the weights, see `identity.weights_digest`.
        outputs: the network's outputs on fixed inputs, see `identity.outputs_of`.
        precision: `float32`, `tf32` (GPU) or `bf16` (autocast); it affects rounding.
        device: device type, which determines generator and arithmetic.
        raybust: version.
        torch: version.
    """

    KIND: ClassVar[str]
    """What proves the radii: "smoothing" or "bounds"."""
    NUMBERS: ClassVar[tuple[str, ...]]
    """Fields that determine the numbers of a log besides network and images."""

    format: int = FORMAT
    norm: Any = "l2"
    shape: tuple[int, int, int]
    targets: tuple[float, ...] = ()
    batch: int = 1
    dataset: str = ""
    split: str = ""
    data: str = ""
    labels: str = ""
    skip: int = 1
    examples: int | None = None
    weights: str = ""
    outputs: tuple[float, ...] = ()
    precision: devices.Precision = "float32"
    device: str = devices.CPU
    raybust: str = raybust.__version__
    torch: str = torch.__version__

    @property
    @abstractmethod
    def how(self) -> str:
        """What proves the radii, in words, with its strength and the norm."""

    @property
    @abstractmethod
    def cost(self) -> str:
        """What a row costs and how often it may be wrong, in words."""

    @property
    @abstractmethod
    def largest(self) -> float:
        """The largest radius that a row can have."""

    @property
    @abstractmethod
    def stem(self) -> str:
        """Name of the file of the rows."""

    @property
    def numbers(self) -> tuple[Any, ...]:
        """What determines the numbers of a log besides network and images."""
        return (self.KIND, *(getattr(self, name) for name in self.NUMBERS))

    def select(self, total: int) -> list[int]:
        """Returns the indices, out of `total`, of the examples to certify: i % skip == 0."""
        return list(range(0, total, self.skip))[: self.examples]

    def lasting(self, total: int) -> list[int]:
        """Returns the indices, out of `total`, whose rows a log of more examples shares."""
        return self.select(total)

    def about(self, network: nn.Module, part: Part) -> Self:
        """Returns this protocol bound to a network and to the examples it selects from a part."""
        chosen = self.select(len(part))
        return dataclasses.replace(self, **identity.record([network], part, chosen))

    def names(self, labels: Sequence[int], indices: Sequence[int]) -> bool:
        """Returns whether these are the labels and indices of all examples that a log of this
        protocol is of, in ascending order of the indices."""
        of, at = (torch.tensor(list(part), dtype=torch.int64) for part in (labels, indices))
        return labels_digest(of, at, range(len(labels))) == self.labels

    def to_json(self) -> str:
        """Returns the protocol as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parses the output of `to_json`.

        Raises:
            ValueError: not a JSON object.
            TypeError: an object with other fields.
        """
        return cls(**identity.fields_of(text))

    def differences(self, text: str) -> list[str]:
        """Returns how a header differs from this one, see `identity.differences`.

        Raises:
            ValueError: the header is not a JSON object.
        """
        return identity.differences(identity.fields_of(text), dataclasses.asdict(self))

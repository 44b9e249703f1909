"""The certification protocol: everything that determines the rows of a log, stored as its header.

The protocol, the network and the data reproduce the rows. The header has digests of what it cannot
contain: weights, images, labels.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

import raybust
from raybust import devices, identity
from raybust.certification.noise import BLOCK, NORMS, NoiseName, Norm, Smoothing
from raybust.certification.schedule import Schedule, ScheduleName
from raybust.config.assess import Certify
from raybust.data import Part
from raybust.data.digests import labels_digest
from raybust.errors import RequestError

FORMAT = 1
"""Version of the log's format and of the keys of its noise."""

_VALUES, _MOST = 3_000_000, 10_000
"""Default noisy images per forward pass on a GPU: of so many values together, but no more images
(our choice, not measured: 900 of CIFAR-10)."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One certification protocol; its fields are the header of a log.

    Attributes:
        format: version of the format.
        noise: smoothing distribution; see `Smoothing`.
        norm: norm of the radii.
        sigma: standard deviation per coordinate, pixels in [0, 1].
        keep: pixels that `ablation` keeps, 0 for other noise.
        shape: (C, H, W) of an image.
        n0: draws that choose the class.
        n: maximum draws that bound its probability.
        alpha: probability that a certificate is wrong.
        schedule: `fixed`, `looks` or `sequence`.
        targets: radii to decide; empty to use all n draws.
        seed: seed of the noise.
        batch: noisy images per forward pass, a multiple of 100; it affects rounding.
        dataset: name of the dataset.
        split: part of the dataset.
        data: digest of the certified images.
        labels: digest of their labels.
        skip: every skip-th example.
        examples: maximum number of examples; None for all.
        weights: digest of the weights, see `identity.weights_digest`.
        outputs: the network's outputs on fixed inputs, see `identity.outputs_of`.
        precision: `float32`, `tf32` (GPU) or `bf16` (autocast); it affects rounding.
        compile: whether the network is compiled with torch.compile.
        device: device type, which determines generator and arithmetic.
        raybust: version.
        torch: version.
    """

    format: int = FORMAT
    noise: NoiseName = "gaussian"
    norm: Norm = "l2"
    sigma: float
    keep: int = 0
    shape: tuple[int, int, int]
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    schedule: ScheduleName = "fixed"
    targets: tuple[float, ...] = ()
    seed: int = 0
    batch: int = BLOCK
    dataset: str = ""
    split: str = ""
    data: str = ""
    labels: str = ""
    skip: int = 1
    examples: int | None = None
    weights: str = ""
    outputs: tuple[float, ...] = ()
    precision: devices.Precision = "float32"
    compile: bool = False
    device: str = "cpu"
    raybust: str = raybust.__version__
    torch: str = torch.__version__

    def __post_init__(self) -> None:
        if self.batch < BLOCK or self.batch % BLOCK:
            raise RequestError(f"certify.batch: got {self.batch}, expected a multiple of {BLOCK}")
        if self.n0 < 1:
            raise RequestError(f"certify.n0: got {self.n0}, expected >= 1")
        _ = self.smoothing, self.rule  # both validate themselves

    @property
    def amount(self) -> str:
        """How much noise, in words: its sigma, or the pixels that ablation keeps."""
        return f"keep = {self.keep}" if self.noise == "ablation" else f"sigma = {self.sigma:g}"

    @cached_property
    def smoothing(self) -> Smoothing:
        """The smoothing distribution."""
        return Smoothing(
            noise=self.noise, norm=self.norm, sigma=self.sigma, keep=self.keep, shape=self.shape
        )

    @cached_property
    def rule(self) -> Schedule:
        """The schedule, with the targets as probabilities."""
        return Schedule(
            name=self.schedule,
            n=self.n,
            alpha=self.alpha,
            targets=tuple(self.smoothing.probability(radius) for radius in self.targets),
        )

    def select(self, total: int) -> list[int]:
        """Returns the indices, out of `total`, of the examples to certify: i % skip == 0."""
        return list(range(0, total, self.skip))[: self.examples]

    def about(self, network: nn.Module, part: Part) -> Protocol:
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
    def from_json(cls, text: str) -> Protocol:
        """Parses the output of `to_json`.

        Raises:
            ValueError: not a JSON object with these fields.
        """
        return cls(**identity.fields_of(text))

    def differences(self, text: str) -> list[str]:
        """Returns how a header differs from this one, see `identity.differences`.

        Raises:
            ValueError: the header is not a JSON object.
        """
        return identity.differences(identity.fields_of(text), dataclasses.asdict(self))


def default_batch(shape: Sequence[int], device: str) -> int:
    """Returns the default number of noisy images per forward pass, a multiple of `BLOCK`: one block
    on a CPU, whose caches hold few images (measured); on a GPU more, the smaller they are.

    Args:
        shape: (C, H, W) of an image.
        device: device type.
    """
    if device == devices.CPU:
        return BLOCK
    return BLOCK * max(1, min(_MOST, _VALUES // math.prod(shape)) // BLOCK)


def make_protocol(
    config: Certify,
    *,
    sigma: float,
    shape: tuple[int, int, int],
    device: str,
    dataset: str,
) -> Protocol:
    """Returns the protocol for section `certify` of the configuration.

    Args:
        config: the section; values of None are filled in here.
        sigma: standard deviation of the noise unless `config.sigma` is set.
        shape: (C, H, W) of an image.
        device: device type.
        dataset: name of the dataset.

    Returns:
        The protocol, not yet bound to a network and images: see `Protocol.about`.

    Raises:
        RequestError: a norm the noise cannot certify, an n that certifies nothing, a precision
            the device does not support.
    """
    if config.precision == "tf32" and device == devices.CPU:
        raise RequestError(
            "certify.precision: got tf32, which needs a GPU; expected float32 or bf16 on a CPU"
        )
    targets = config.targets()
    schedule = config.schedule
    return Protocol(
        noise=config.noise,
        norm=config.norm or NORMS[config.noise][0],
        sigma=config.sigma or sigma,
        keep=config.keep if config.noise == "ablation" else 0,
        shape=shape,
        n0=config.n0,
        n=config.n,
        alpha=config.alpha,
        schedule=("looks" if targets else "fixed") if schedule == "auto" else schedule,
        targets=() if schedule == "fixed" else targets,
        seed=config.seed,
        batch=config.batch or default_batch(shape, device),
        dataset=dataset,
        split=config.split,
        skip=config.skip,
        examples=config.examples,
        precision=config.precision or devices.float32(device),
        compile=config.compile,
        device=device,
    )


def sigma_warning(sigma: float, trained: float | None) -> str | None:
    """Returns a warning with both sigmas if they differ, else None.

    Args:
        sigma: the network is certified at.
        trained: the network was trained at; None without noise.
    """
    if trained is not None and abs(sigma - trained) <= 1e-9 * sigma:
        return None
    known = "without noise" if trained is None else f"for sigma {trained!r}"
    return (
        f"certifying at sigma {sigma!r} a network trained {known}: certificates are valid, but "
        "smaller than those of a network trained for it"
    )

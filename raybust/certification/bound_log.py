"""Certificates by sound bounds of the network: protocol, row and log.

They hold for the network itself, in Linf, without noise and without alpha. The log has Cohen's
columns too, so that whatever reads certificates reads them; its header tells the kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from raybust.certification.header import Header
from raybust.certification.log import COHEN, CertificateLog, CohenRow
from raybust.certification.protocol import Protocol
from raybust.config.assess import Certify
from raybust.disk.rowlog import RowLog
from raybust.errors import RequestError

BoundName = Literal["ibp", "crown", "best"]
STEPS = 16
"""Halvings of [0, 1] that find a radius, so 2^-16 at most is missing (our choice)."""

_IMAGES, _ROWS = 64, 640
"""Images per pass, fewer where rows of coefficients, one a class of an image, would be more (our
choice)."""
_SUFFICIENT = 1e-3
"""Margin below which rounding may decide otherwise on another processor (our choice)."""
_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class BoundProtocol(Header):
    """One protocol of certificates by bounds; see `Header` for the fields that all protocols have.

    Attributes:
        bound: `ibp`, `crown`, or `best` for the larger of both for each class.
        steps: halvings of [0, 1] that find a radius; 0 if the targets alone are decided.
        classes: number of classes K.
        batch: images per pass; examples that are computed together stay together.
    """

    KIND = "bounds"
    NUMBERS = ("norm", "bound", "split", "targets", "steps", "precision")

    bound: BoundName
    norm: Literal["linf"] = "linf"
    steps: int = STEPS
    classes: int

    def __post_init__(self) -> None:
        if self.bound not in get_args(BoundName):
            raise ValueError(f"bound: got {self.bound}")

    @property
    def passes(self) -> int:
        """Passes through the network for each image: one for its class, then for each radius tried
        two for intervals (centers and radii), and with `crown` one more for each class."""
        each = 2 if self.bound == "ibp" else 2 + self.classes
        return 1 + each * (len(self.targets) or self.steps)

    def lasting(self, total: int) -> list[int]:
        """Returns the indices of all complete batches: rounding depends on what is computed
        together."""
        chosen = self.select(total)
        return chosen[: len(chosen) // self.batch * self.batch]

    @property
    def how(self) -> str:
        """The bounds, in words."""
        return f"{self.bound} bounds, {self.norm}"

    @property
    def cost(self) -> str:
        """Passes, and that no certificate is wrong by chance, in words."""
        return f"no alpha, {self.passes} passes an image"

    @property
    def largest(self) -> float:
        """The largest radius that is tried."""
        return max(self.targets, default=1 - 2.0**-self.steps)

    @property
    def stem(self) -> str:
        """Split, bound, norm and radii."""
        radii = "-".join(f"{radius:g}" for radius in self.targets)
        return "_".join([self.split, self.bound, self.norm, *([f"r{radii}"] if radii else [])])


@dataclass(frozen=True, kw_only=True)
class BoundRow(CohenRow):
    """One example's certificate by bounds: `predict` is the network's class, `radius` the largest
    one tried within which the network provably gives it, 0 if there is none.

    Attributes:
        margin: the lower bound, over the ball of that radius, of the class's logit minus any other;
            0 if there is none.
    """

    margin: float

    @property
    def further(self) -> list[str]:
        """The cell behind Cohen's columns."""
        return [repr(self.margin)]

    def agrees(self, other: BoundRow, protocol: BoundProtocol) -> bool:
        """Returns whether two rows are equal up to rounding, which depends on the processor and on
        the images that are computed together."""
        if self.predict != other.predict:
            return False
        if not protocol.targets:
            return abs(self.radius - other.radius) <= 2 * 2.0**-protocol.steps
        if self.radius == other.radius:
            return math.isclose(self.margin, other.margin, rel_tol=_SHARE, abs_tol=_SUFFICIENT)
        return max(self, other, key=lambda row: row.radius).margin <= _SUFFICIENT

    def fault(self, protocol: BoundProtocol) -> str | None:
        """Returns how the row contradicts itself or its protocol, or None."""
        if not 0 <= self.predict < protocol.classes:
            return f"predict: got {self.predict}, expected one of {protocol.classes} classes"
        halves = (self.radius * 2.0**protocol.steps).is_integer()
        tried = self.radius in (0.0, *protocol.targets) if protocol.targets else halves
        if not tried or not 0 <= self.radius <= protocol.largest:
            return f"radius: got {self.radius!r}, which the protocol does not try"
        if not 0 <= self.margin < math.inf or (self.radius > 0 and self.margin == 0):
            return f"margin: got {self.margin!r}, which does not prove radius {self.radius!r}"
        return None

    @classmethod
    def parse(cls, line: str) -> BoundRow:
        """Parses a line of one of our logs.

        Raises:
            ValueError: the line is not a complete row.
        """
        cells = dict(zip(BOUND_COLUMNS, line.rstrip("\n").split("\t"), strict=True))
        return cls.read(cells, {"margin": float(cells["margin"])})


BOUND_COLUMNS = (*COHEN, "margin")


class BoundLog(RowLog[BoundRow, BoundProtocol]):
    """A protocol's certificates by bounds on disk, keyed by example index."""

    row, columns, what = BoundRow, BOUND_COLUMNS, "log of certificates by bounds"


def open_log(path: Path, protocol: Header) -> CertificateLog | BoundLog:
    """Opens or creates the log of a protocol of either kind, see `RowLog`."""
    if isinstance(protocol, BoundProtocol):
        return BoundLog(path, protocol)
    assert isinstance(protocol, Protocol)
    return CertificateLog(path, protocol)


def make_bound_protocol(
    config: Certify,
    *,
    shape: tuple[int, int, int],
    classes: int,
    device: str,
    dataset: str,
) -> BoundProtocol:
    """Returns the protocol for section `certify` of the configuration, whose `bound` is not
    `smoothing`; what it says about noise does not count.

    Args:
        config: the section.
        shape: (C, H, W) of an image.
        classes: K.
        device: device type.
        dataset: name of the dataset.

    Returns:
        The protocol, not yet bound to a network and images: see `Header.about`.

    Raises:
        RequestError: a radius above 1.
    """
    targets = config.targets()
    if max(targets, default=0.0) > 1:
        raise RequestError(
            f"certify.radius: got {max(targets):g}, expected at most 1 with certify.bound, because"
            " pixels are in [0, 1]"
        )
    values: dict[str, Any] = {"bound": config.bound}
    rows = 1 if config.bound == "ibp" else classes
    return BoundProtocol(
        **values,
        shape=shape,
        targets=tuple(sorted(targets)),
        steps=0 if targets else STEPS,
        classes=classes,
        batch=max(1, min(_IMAGES, _ROWS // rows)),
        dataset=dataset,
        split=config.split,
        skip=config.skip,
        examples=config.examples,
        device=device,
    )

"""The answer for one image: class, abstention, certified radius, as `raybust predict` and a server
give it.

Without noise there is a class and no radius.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raybust import devices
from raybust.certification.log import ABSTAIN, Row
from raybust.certification.protocol import Protocol
from raybust.errors import WorkError


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one image.

    Attributes:
        image: the file, or the number of the image.
        label: name of the class; "" on abstention.
        number: its index; -1 on abstention.
        abstain: whether the votes do not decide the class.
        radius: certified radius; 0 on abstention and without noise.
        norm: of the radius; "" without noise.
        bound: lower bound on the probability of the class under noise; its softmax without noise.
        draws: noisy copies that were classified; 0 without noise.
    """

    image: str
    label: str
    number: int
    abstain: bool
    radius: float
    norm: str
    bound: float
    draws: int

    @classmethod
    def certified(
        cls, image: str, row: Row | None, classes: Sequence[str], norm: str
    ) -> Prediction:
        """Returns the answer of a certificate.

        Args:
            image: its name.
            row: the certificate; None if no draw was made in time.
            classes: names of the classes.
            norm: of the radius.
        """
        number = ABSTAIN if row is None else row.predict
        return cls(
            image=image,
            label="" if number == ABSTAIN else classes[number],
            number=number,
            abstain=number == ABSTAIN,
            radius=0.0 if row is None else row.radius,
            norm=norm,
            bound=0.0 if row is None else row.p_lower,
            draws=0 if row is None else row.draws,
        )

    @classmethod
    def plain(cls, image: str, number: int, share: float, classes: Sequence[str]) -> Prediction:
        """Returns the answer of the network without noise.

        Args:
            image: its name.
            number: index of the class.
            share: its softmax.
            classes: names of the classes.
        """
        return cls(
            image=image,
            label=classes[number],
            number=number,
            abstain=False,
            radius=0.0,
            norm="",
            bound=share,
            draws=0,
        )

    def fields(self, radius: float | None) -> dict[str, Any]:
        """Returns the attributes as a dictionary; with `safe` if a radius was asked about: whether
        no change within it changes the class."""
        safe = {} if radius is None else {"safe": not self.abstain and self.radius >= radius}
        return asdict(self) | safe


def audit_of(row: Row, protocol: Protocol, classes: Sequence[str]) -> dict[str, Any]:
    """Returns what recomputes an answer, as JSON data.

    Args:
        row: its certificate; `idx` is the key of its noise.
        protocol: of the row.
        classes: names of the classes.
    """
    return {
        "protocol": {**asdict(protocol), "outputs": ()},
        "key": row.idx,
        "top": row.top,
        "n0_count": row.n0_count,
        "votes": {classes[number]: votes for number, votes in row.counts},
        "count": row.count,
        "n": row.n,
        "p_lower": row.p_lower,
        "radius": row.radius,
    }


@torch.inference_mode()
def classify(network: nn.Module, images: Tensor) -> list[tuple[int, float]]:
    """Returns the network's class for each image, and its softmax.

    Args:
        network: in eval mode, on the images' device.
        images: (B, C, H, W) in [0, 1].

    Raises:
        WorkError: the outputs are NaN.
    """
    with devices.arithmetic(images.device):
        logits = network(images).double()
    if logits.isnan().any():
        raise WorkError("the network's outputs are NaN; the training may have diverged")
    shares, tops = logits.softmax(1).max(1)
    return list(zip(tops.tolist(), shares.tolist(), strict=True))

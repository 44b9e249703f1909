"""A replica of a served network: answers images, whose draws share its batches.

It holds the network and a certifier that works in a thread; requests wait for their answers without
blocking others.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raybust import devices
from raybust.certification import Protocol
from raybust.certification.live import Ask, Certificate, Live, OverloadedError
from raybust.certification.prediction import Prediction, audit_of, classify
from raybust.data.decode import PLAIN, Decoding
from raybust.errors import RequestError, WorkError
from raybust.identity import Sent


@dataclass(frozen=True)
class Served:
    """What a server needs of a network.

    Attributes:
        name: of the run or model.
        sent: the network.
        classes: names of its classes.
        protocol: how it certifies; `n` and `alpha` are the defaults of a request.
        cpus: of a replica.
        most: images that wait or are in flight at a replica.
        radii: of the test set at the protocol, -1 on abstention; empty if unknown.
        decoding: how image files are decoded, as in training.
    """

    name: str
    sent: Sent
    classes: tuple[str, ...]
    protocol: Protocol
    cpus: float
    most: int
    radii: tuple[float, ...] = ()
    decoding: Decoding = PLAIN


class Replica:
    """Answers requests; Ray Serve makes as many as asked for.

    Args:
        served: the network.
    """

    def __init__(self, served: Served) -> None:
        devices.set_threads(served.cpus)
        self.served = served
        self.network = served.sent.on(served.protocol.device)
        self.live = Live(self.network, served.protocol, served.most)

    def check_health(self) -> None:
        """Raises if the certifier's thread has ended; Ray Serve then replaces the replica."""
        if not self.live.is_alive:
            raise WorkError("the certifier has ended")

    async def ping(self) -> bool:
        """Returns that the replica answers."""
        return True

    async def certify(self, images: np.ndarray, ask: dict[str, Any]) -> dict[str, Any]:
        """Returns {"answers": [...]} without the names of the images, {"refused": why} or
        {"busy": seconds}.

        Args:
            images: float32 (N, C, H, W) in [0, 1].
            ask: `radius`, `n`, `alpha`, `seconds` until the answer is due, `audit`.
        """
        due = ask.get("seconds")
        try:
            asked = Ask(
                radius=ask.get("radius"),
                n=ask["n"],
                alpha=ask["alpha"],
                deadline=None if due is None else time.monotonic() + due,
            )
            futures = self.live.submit(torch.from_numpy(images), asked)
        except OverloadedError as error:
            return {"busy": error.seconds}
        except RequestError as error:
            return {"refused": str(error)}
        found = await asyncio.gather(*map(asyncio.wrap_future, futures))
        return {"answers": [self._answer(one, ask) for one in found]}

    async def plain(self, images: np.ndarray) -> dict[str, Any]:
        """Returns the network's classes without noise; see `certify`."""
        pixels = torch.from_numpy(images).to(self.served.protocol.device)
        found = await asyncio.to_thread(classify, self.network, pixels)
        rows = (Prediction.plain("", top, share, self.served.classes) for top, share in found)
        return {"answers": [row.fields(None) for row in rows]}

    def _answer(self, found: Certificate, ask: dict[str, Any]) -> dict[str, Any]:
        row, norm = found.row, found.protocol.norm
        answer = Prediction.certified("", row, self.served.classes, norm).fields(ask.get("radius"))
        if ask.get("audit") and row is not None:
            answer["audit"] = audit_of(row, found.protocol, self.served.classes)
        return answer

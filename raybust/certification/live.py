"""Certifies images as they come: those in flight share batches, and each may have a radius, a
number of draws, an alpha and a deadline of its own.

Bounds are those of a confidence sequence, which hold at every look at once. So an image that is
decided early answers early, and one whose deadline passes answers with what its last look proved.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from raybust.certification.engine import Case, Engine
from raybust.certification.guards import check_images, check_mode
from raybust.certification.log import Row
from raybust.certification.protocol import Protocol
from raybust.certification.schedule import Schedule
from raybust.data.given import UNLABELED

_KEYS = 2**62
_SMOOTHED = 0.9
"""Weight of the past in the average rate of draws (our choice)."""
_WAIT_S = 0.5
_LOOSE = 0.49
"""Loose enough that no number of draws is rejected on replay."""


class OverloadedError(RuntimeError):
    """The queue is full.

    Args:
        seconds: until there is room, estimated.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the queue is full; try again in {seconds:.1f} s")
        self.seconds = seconds

    def __reduce__(self) -> tuple[type[OverloadedError], tuple[float]]:
        return type(self), (self.seconds,)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is asked about an image.

    Attributes:
        radius: the only radius of interest, which ends the image once it is decided; None for the
            full radius from all n draws.
        n: draws at most.
        alpha: probability that the answer is wrong.
        deadline: time.monotonic() at which the answer is due, or None.
    """

    radius: float | None = None
    n: int = 10_000
    alpha: float = 0.001
    deadline: float | None = None


@dataclass(frozen=True)
class Certificate:
    """An answer.

    Attributes:
        row: the certificate, or None if the deadline passed before the first look; `idx` is the
            secret key of its noise, drawn for this image alone.
        protocol: recomputes the row with that key, unless a deadline ended it.
    """

    row: Row | None
    protocol: Protocol


class Live:
    """Certifies what is submitted, in a thread of its own.

    Args:
        network: in eval mode on its device, see `certify_examples`.
        protocol: noise, n0, batch and arithmetic.
        most: images that wait or are in flight at a time.

    Raises:
        RequestError: the network cannot be certified.
    """

    def __init__(self, network: nn.Module, protocol: Protocol, most: int) -> None:
        check_mode(network)
        self.protocol, self.most = protocol, most
        self._network = network
        self._device = torch.device(protocol.device)
        self._rate = 0.0
        self._waiting: deque[tuple[Case, Ask, Future[Certificate]]] = deque()
        self._active: dict[Case, tuple[Ask, Future[Certificate]]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._engine = self._new_engine()
        self._thread = threading.Thread(target=self._work, daemon=True, name="certifier")
        self._thread.start()

    def submit(self, images: Tensor, ask: Ask) -> list[Future[Certificate]]:
        """Queues images; returns a future of each.

        Args:
            images: float (N, C, H, W) in [0, 1].
            ask: about each of them.

        Raises:
            RequestError: they do not fit the network, or n draws certify nothing.
            OverloadedError: they do not all fit into the queue; none was taken.
        """
        check_images(images, self.protocol.shape)
        rule = _rule(self.protocol, ask.radius, ask.n, ask.alpha)
        pixels = Engine.pixels(images.to(self._device))
        cases = [Case(secrets.randbelow(_KEYS), UNLABELED, one, rule) for one in pixels]
        futures: list[Future[Certificate]] = [Future() for _ in cases]
        with self._changed:
            if self.load + len(cases) > self.most:
                raise OverloadedError(self._seconds_of_work())
            self._waiting += [(c, ask, f) for c, f in zip(cases, futures, strict=True)]
            self._changed.notify()
        return futures

    @property
    def load(self) -> int:
        """The number of images that wait or are in flight."""
        return len(self._waiting) + len(self._active)

    @property
    def is_alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Ends the thread; what is in flight is canceled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _new_engine(self) -> Engine:
        image = torch.full(self.protocol.shape, 0.5, device=self._device)
        return Engine(self._network, self.protocol, image, secrets.randbelow(_KEYS))

    def _seconds_of_work(self) -> float:
        left = sum(ask.n for _, ask, _ in self._waiting) + sum(
            a.n for a, _ in self._active.values()
        )
        return max(1.0, left / self._rate) if self._rate else 1.0

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._active or self._closed):
                    self._changed.wait(_WAIT_S)
                if self._closed:
                    break
                while self._waiting and self._engine.has_room:
                    case, ask, future = self._waiting.popleft()
                    if not future.set_running_or_notify_cancel():
                        continue
                    self._engine.admit(case)
                    self._active[case] = ask, future
            self._expire()
            if not self._engine.is_idle:
                self._advance()
        for _, future in self._active.values():
            future.cancel()
        for _, _, future in self._waiting:
            future.cancel()

    def _advance(self) -> None:
        began = time.perf_counter()
        try:
            done = self._engine.advance()
        except Exception as error:  # what is in flight cannot be told apart from its cause
            with self._changed:
                failed = list(self._active.values())
                self._active.clear()
            for _, future in failed:
                future.set_exception(error)
            self._engine = self._new_engine()
            return
        draws = self.protocol.batch / (time.perf_counter() - began)
        self._rate = _SMOOTHED * self._rate + (1 - _SMOOTHED) * draws if self._rate else draws
        for case in done:
            self._finish(case)

    def _expire(self) -> None:
        """Answers what is due: of what is in flight and of what still waits."""
        now = time.monotonic()
        for case, (ask, _) in list(self._active.items()):
            if ask.deadline is not None and ask.deadline <= now:
                self._engine.drop(case)
                self._finish(case)
        with self._changed:
            due = [one for one in self._waiting if one[1].deadline and one[1].deadline <= now]
            for one in due:
                self._waiting.remove(one)
                case, ask, future = one
                if future.set_running_or_notify_cancel():
                    future.set_result(self._answer(case, ask))

    def _finish(self, case: Case) -> None:
        with self._changed:  # `submit` reads it from other threads
            ask, future = self._active.pop(case)
        future.set_result(self._answer(case, ask))

    def _answer(self, case: Case, ask: Ask) -> Certificate:
        row = self._engine.row(case) if case.looks else None
        return Certificate(row, protocol_for(self.protocol, ask.radius, ask.n, ask.alpha))


def protocol_for(protocol: Protocol, radius: float | None, n: int, alpha: float) -> Protocol:
    """Returns the protocol of one answer.

    Args:
        protocol: of the server.
        radius: see `Ask`.
        n: see `Ask`.
        alpha: see `Ask`.
    """
    targets = () if radius is None else (radius,)
    return replace(protocol, schedule="sequence", n=n, alpha=alpha, targets=targets)


@lru_cache(maxsize=256)
def _rule(protocol: Protocol, radius: float | None, n: int, alpha: float) -> Schedule:
    return protocol_for(protocol, radius, n, alpha).rule


def replay(
    network: nn.Module, image: Tensor, protocol: Protocol, index: int, draws: int
) -> tuple[int, int, tuple[int, ...]]:
    """Recomputes the votes of an answer.

    Args:
        network: on the protocol's device.
        image: float (C, H, W) in [0, 1].
        protocol: of the answer.
        index: the key of its noise.
        draws: how many of its draws to repeat.

    Returns:
        The class, its votes among the pilot draws, and the votes for each class among the first
        `draws` draws.

    Raises:
        RequestError: the network cannot be certified.
    """
    engine = Engine(network, protocol, image, index)
    fixed = Schedule(name="fixed", n=draws, alpha=_LOOSE)
    case = Case(index, UNLABELED, Engine.pixels(image[None])[0], fixed)
    engine.admit(case)
    while not engine.is_idle:
        engine.advance()
    assert case.pilot is not None
    top = int(case.pilot.argmax())
    return top, int(case.pilot[top]), tuple(map(int, case.looks[-1]))

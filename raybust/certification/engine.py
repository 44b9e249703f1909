"""The certification engine: CERTIFY of Cohen et al. (2019) for many examples at once.

A batch is a fixed number of lanes of 100 draws; each lane has a queue of slots, each slot a block
of 100 draws of one example. A block's key picks its lane, so a draw always enters the network at
the same position of a batch of the same shape: rows cannot depend on sharding or order. Counts
stay on the device until a look.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raybust import devices
from raybust.certification.guards import check_images, check_mode, check_outputs
from raybust.certification.log import ABSTAIN, Row
from raybust.certification.noise import BLOCK, Stream, block_seed, draws
from raybust.certification.protocol import Protocol
from raybust.certification.schedule import Schedule
from raybust.errors import RequestError, WorkError

IN_FLIGHT = 32
"""Maximum examples in flight per lane (our choice): enough to fill every lane when looks are
short."""


def certify_examples(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    indices: Sequence[int] | Tensor,
    protocol: Protocol,
) -> Iterator[Row]:
    """Yields the certificates of a shard, each as soon as it is decided.

    With probability at least 1 - alpha over an example's noise, its row abstains or is correct: the
    smoothed classifier is constant on the ball and predicts that class.

    Args:
        network: (B, C, H, W) in [0, 1] to logits (B, K), in eval mode, on the images' device.
        images: float (N, C, H, W) in [0, 1].
        labels: int (N,).
        indices: (N,) index of each example in its dataset, the key of its noise.
        protocol: all other settings.

    Raises:
        RequestError: train mode, dependence on the batch, images outside [0, 1], a device type
            other than the protocol's.
        WorkError: NaN outputs. Rows yielded before are valid.
    """
    if images.device.type != protocol.device:
        raise RequestError(
            f"device: got {images.device.type}, but the protocol is for {protocol.device}, whose "
            "generator and arithmetic differ"
        )
    check_images(images, protocol.shape)
    check_mode(network)
    if not len(images):
        return iter(())
    numbers = [int(index) for index in indices]
    engine = Engine(network, protocol, images[0], numbers[0])
    cases = (
        Case(index, int(label), pixels, protocol.rule)
        for index, label, pixels in zip(
            numbers, labels.tolist(), engine.pixels(images), strict=True
        )
    )
    return _run(engine, cases)


def _run(engine: Engine, cases: Iterator[Case]) -> Iterator[Row]:
    """Yields the rows of all cases, each as soon as it is decided."""
    case = next(cases, None)
    while True:
        while case is not None and engine.has_room:
            engine.admit(case)
            case = next(cases, None)
        if engine.is_idle:
            return
        for done in engine.advance():
            yield engine.row(done)


@dataclass(eq=False)
class Case:
    """An image in flight.

    Attributes:
        index: of the example in its dataset, the key of its noise.
        label: its label.
        pixels: float32 (H, W, C) in [0, 1] on the engine's device, see `Engine.pixels`.
        rule: when to stop.
        row: its pair of rows in the count table.
        open: number of its slots yet to run.
        looks: the votes at each look.
        pilot: the votes that chose the class.
        seconds: its share of the time.
    """

    index: int
    label: int
    pixels: Tensor
    rule: Schedule
    row: int = -1
    open: int = 0
    looks: list[NDArray[np.int64]] = field(default_factory=list)
    pilot: NDArray[np.int64] | None = None
    seconds: float = 0.0


class _Slot(NamedTuple):
    """A block of draws of a case; the first `valid` draws count."""

    case: Case
    stream: Stream
    block: int
    valid: int


class Engine:
    """Lanes and counts of the images in flight, which are admitted and leave at any time.

    Args:
        network: as in `certify_examples`.
        protocol: noise, n0, seed, batch and arithmetic; each case has a rule of its own.
        image: float (C, H, W), the example on which the network is checked.
        index: the key of its noise.

    Raises:
        RequestError: the outputs depend on the batch.
    """

    def __init__(self, network: nn.Module, protocol: Protocol, image: Tensor, index: int) -> None:
        self.protocol = protocol
        device = image.device
        self.generator = torch.Generator(device)
        probe = draws(protocol.smoothing, protocol.seed, image.float(), (index, "pilot", 0))
        plain = make_forward(network, protocol)
        self.classes = check_outputs(plain, probe, protocol.precision)
        compiled = torch.compile(network, dynamic=False) if protocol.compile else network
        self.forward = make_forward(compiled, protocol)
        channels, height, width = protocol.shape
        self.batch = torch.zeros(protocol.batch, height, width, channels, device=device)
        self.lanes: list[deque[_Slot]] = [deque() for _ in range(protocol.batch // BLOCK)]
        self.free = list(range(IN_FLIGHT * len(self.lanes)))
        # Two rows per example and one for unused draws; the last column counts NaN outputs.
        self.unused = 2 * len(self.free)
        self.counts = torch.zeros(
            self.unused + 1, self.classes + 1, dtype=torch.int64, device=device
        )
        self.order = torch.arange(BLOCK, device=device)
        self.ones = torch.ones(protocol.batch, dtype=torch.int64, device=device)
        self.ran: list[Case] = []
        self.elapsed = 0.0

    @staticmethod
    def pixels(images: Tensor) -> Tensor:
        """Returns images (N, C, H, W) as the pixels of cases, float32 (N, H, W, C)."""
        return images.float().permute(0, 2, 3, 1).contiguous()

    @property
    def has_room(self) -> bool:
        """Whether another case would fill lanes that are empty."""
        return bool(self.free) and not all(self.lanes)

    @property
    def is_idle(self) -> bool:
        """Whether no case is in flight."""
        return not any(self.lanes)

    def admit(self, case: Case) -> None:
        """Takes a case in; there must be room."""
        case.row = self.free.pop()
        self.counts[2 * case.row : 2 * case.row + 2] = 0
        self._queue(case, "pilot", 0, self.protocol.n0)
        self._queue(case, "estimate", 0, case.rule.times[0])

    def drop(self, case: Case) -> None:
        """Ends a case with the looks that it has."""
        for lane, queue in enumerate(self.lanes):
            self.lanes[lane] = deque(slot for slot in queue if slot.case is not case)
        case.open = 0
        self.ran = [other for other in self.ran if other is not case]
        self.free.append(case.row)

    def advance(self) -> list[Case]:
        """Runs one batch; returns the cases that it decided.

        Raises:
            WorkError: NaN outputs.
        """
        began = time.perf_counter()
        self.ran += self._step()
        ready = list(dict.fromkeys(case for case in self.ran if not case.open))
        if not ready:
            self.elapsed += time.perf_counter() - began
            return []
        votes = self._votes(ready)
        self.elapsed += time.perf_counter() - began
        for case in self.ran:
            case.seconds += self.elapsed / len(self.ran)
        self.ran, self.elapsed = [], 0.0
        return [
            case
            for case, (pilot, estimate) in zip(ready, votes, strict=True)
            if self._look(case, pilot, estimate)
        ]

    def _queue(self, case: Case, stream: Stream, first: int, end: int) -> None:
        """Queues draws first ... end - 1 of a stream; `first` is a multiple of BLOCK."""
        for start in range(first, end, BLOCK):
            slot = _Slot(case, stream, start // BLOCK, min(BLOCK, end - start))
            self.lanes[self._seed(slot) % len(self.lanes)].append(slot)
            case.open += 1

    def _seed(self, slot: _Slot) -> int:
        return block_seed(self.protocol.seed, slot.case.index, slot.stream, slot.block)

    @torch.inference_mode()
    def _step(self) -> list[Case]:
        """Runs one batch, in which empty lanes are padding; returns the cases that took part."""
        rows, valid, ran = [], [], []
        for lane, queue in enumerate(self.lanes):
            if not queue:
                rows.append(self.unused)
                valid.append(0)
                continue
            slot = queue.popleft()
            case = slot.case
            self.protocol.smoothing.fill(
                self.batch[lane * BLOCK : (lane + 1) * BLOCK],
                case.pixels,
                self.generator.manual_seed(self._seed(slot)),
            )
            rows.append(2 * case.row + (slot.stream == "estimate"))
            valid.append(slot.valid)
            case.open -= 1
            ran.append(case)
        logits = self.forward(self.batch.permute(0, 3, 1, 2))
        chosen = logits.argmax(1).masked_fill(logits.isnan().any(1), self.classes)
        where = self._sent([rows, valid])
        rows_of = where[0][:, None].where(self.order < where[1][:, None], self.unused)
        cells = rows_of.flatten() * (self.classes + 1) + chosen
        self.counts.view(-1).scatter_add_(0, cells, self.ones)
        return ran

    def _sent(self, numbers: list[Any]) -> Tensor:
        """Copies numbers to the device without waiting for it."""
        return torch.tensor(numbers).to(self.batch.device, non_blocking=True)

    def _votes(self, cases: list[Case]) -> NDArray[np.int64]:
        """Returns the counts (cases, 2, classes) in one transfer; raises on NaN."""
        rows = self._sent([case.row for case in cases])
        pairs = self.counts[: self.unused].view(-1, 2, self.classes + 1)
        votes: NDArray[np.int64] = pairs[rows].cpu().numpy()
        for case, found in zip(cases, votes, strict=True):
            if found[:, -1].any():
                raise WorkError(
                    f"example {case.index}: the network's outputs are NaN for "
                    f"{found[:, -1].sum()} noisy copies; earlier rows are kept"
                )
        return votes[:, :, :-1]

    def _look(self, case: Case, pilot: NDArray[np.int64], votes: NDArray[np.int64]) -> bool:
        """Takes a look; returns whether the case is done, or queues its next draws."""
        case.pilot = pilot
        case.looks.append(votes)
        top = int(pilot.argmax())
        if case.rule.stops([int(look[top]) for look in case.looks]):
            self.free.append(case.row)
            return True
        done = len(case.looks)
        self._queue(case, "estimate", case.rule.times[done - 1], case.rule.times[done])
        return False

    def row(self, case: Case) -> Row:
        """Returns the certificate of a case that has taken a look."""
        assert case.pilot is not None
        top, last = int(case.pilot.argmax()), case.looks[-1]
        counts = [int(look[top]) for look in case.looks]
        bound, look = case.rule.best(counts)
        return Row(
            idx=case.index,
            label=case.label,
            predict=top if bound > 0.5 else ABSTAIN,
            radius=self.protocol.smoothing.radius(bound),
            time=case.seconds,
            top=top,
            n0_count=int(case.pilot[top]),
            count=counts[look],
            n=case.rule.times[look],
            p_lower=bound,
            draws=case.rule.times[len(counts) - 1],
            counts=tuple((int(c), int(last[c])) for c in last.nonzero()[0]),
        )


def make_forward(
    network: Callable[[Tensor], Tensor], protocol: Protocol
) -> Callable[[Tensor], Tensor]:
    """Returns the network's forward pass at the protocol's precision.

    Kernels are deterministic: f must be bitwise equal on all workers.
    """

    @torch.inference_mode()
    def forward(images: Tensor) -> Tensor:
        with devices.arithmetic(images.device, protocol.precision):
            return network(images)

    return forward

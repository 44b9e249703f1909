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
    return _Engine(network, images, labels, [int(i) for i in indices], protocol).run()


@dataclass(eq=False)
class _Case:
    """An example in flight: `row` is its pair of rows in the count table, `open` its number of
    slots yet to run, `looks` the votes at each look, `seconds` its share of the time."""

    position: int
    row: int
    open: int = 0
    looks: list[NDArray[np.int64]] = field(default_factory=list)
    seconds: float = 0.0


class _Slot(NamedTuple):
    """A block of draws of a case; the first `valid` draws count."""

    case: _Case
    stream: Stream
    block: int
    valid: int


class _Engine:
    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        indices: list[int],
        protocol: Protocol,
    ) -> None:
        self.protocol, self.indices = protocol, indices
        self.labels = labels.tolist()
        self.pixels = images.float().permute(0, 2, 3, 1).contiguous()
        device = images.device
        self.generator = torch.Generator(device)
        probe = draws(
            protocol.smoothing, protocol.seed, images[0].float(), (indices[0], "pilot", 0)
        )
        plain = make_forward(network, protocol)
        self.classes = check_outputs(plain, probe, protocol.precision)
        compiled = torch.compile(network, dynamic=False) if protocol.compile else network
        self.forward = make_forward(compiled, protocol)
        self.batch = torch.zeros(protocol.batch, *self.pixels.shape[1:], device=device)
        self.lanes: list[deque[_Slot]] = [deque() for _ in range(protocol.batch // BLOCK)]
        self.free = list(range(IN_FLIGHT * len(self.lanes)))
        # Two rows per example and one for unused draws; the last column counts NaN outputs.
        self.unused = 2 * len(self.free)
        self.counts = torch.zeros(
            self.unused + 1, self.classes + 1, dtype=torch.int64, device=device
        )
        self.order = torch.arange(BLOCK, device=device)
        self.ones = torch.ones(protocol.batch, dtype=torch.int64, device=device)

    def run(self) -> Iterator[Row]:
        todo = deque(range(len(self.indices)))
        ran: list[_Case] = []
        began = time.perf_counter()
        while True:
            while todo and self.free and not all(self.lanes):
                self._admit(todo.popleft())
            if not any(self.lanes):
                return
            ran += self._step()
            ready = list(dict.fromkeys(case for case in ran if not case.open))
            if not ready:
                continue
            votes = self._votes(ready)
            elapsed = time.perf_counter() - began
            for case in ran:
                case.seconds += elapsed / len(ran)
            ran = []
            for case, (pilot, estimate) in zip(ready, votes, strict=True):
                if self._look(case, pilot, estimate):
                    yield self._row(case, pilot)
            began = time.perf_counter()

    def _admit(self, position: int) -> None:
        case = _Case(position, self.free.pop())
        self.counts[2 * case.row : 2 * case.row + 2] = 0
        self._queue(case, "pilot", 0, self.protocol.n0)
        self._queue(case, "estimate", 0, self.protocol.rule.times[0])

    def _queue(self, case: _Case, stream: Stream, first: int, end: int) -> None:
        """Queues draws first ... end - 1 of a stream; `first` is a multiple of BLOCK."""
        for start in range(first, end, BLOCK):
            slot = _Slot(case, stream, start // BLOCK, min(BLOCK, end - start))
            self.lanes[self._seed(slot) % len(self.lanes)].append(slot)
            case.open += 1

    def _seed(self, slot: _Slot) -> int:
        return block_seed(
            self.protocol.seed, self.indices[slot.case.position], slot.stream, slot.block
        )

    @torch.inference_mode()
    def _step(self) -> list[_Case]:
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
                self.pixels[case.position],
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

    def _votes(self, cases: list[_Case]) -> NDArray[np.int64]:
        """Returns the counts (cases, 2, classes) in one transfer; raises on NaN."""
        rows = self._sent([case.row for case in cases])
        pairs = self.counts[: self.unused].view(-1, 2, self.classes + 1)
        votes: NDArray[np.int64] = pairs[rows].cpu().numpy()
        for case, found in zip(cases, votes, strict=True):
            if found[:, -1].any():
                raise WorkError(
                    f"example {self.indices[case.position]}: the network's outputs are NaN for "
                    f"{found[:, -1].sum()} noisy copies; earlier rows are kept"
                )
        return votes[:, :, :-1]

    def _look(self, case: _Case, pilot: NDArray[np.int64], votes: NDArray[np.int64]) -> bool:
        """Takes a look; returns whether the example is done, or queues its next draws."""
        rule = self.protocol.rule
        case.looks.append(votes)
        top = int(pilot.argmax())
        if rule.stops([int(look[top]) for look in case.looks]):
            self.free.append(case.row)
            return True
        done = len(case.looks)
        self._queue(case, "estimate", rule.times[done - 1], rule.times[done])
        return False

    def _row(self, case: _Case, pilot: NDArray[np.int64]) -> Row:
        rule, top, last = self.protocol.rule, int(pilot.argmax()), case.looks[-1]
        counts = [int(look[top]) for look in case.looks]
        bound, look = rule.best(counts)
        return Row(
            idx=self.indices[case.position],
            label=int(self.labels[case.position]),
            predict=top if bound > 0.5 else ABSTAIN,
            radius=self.protocol.smoothing.radius(bound),
            time=case.seconds,
            top=top,
            n0_count=int(pilot[top]),
            count=counts[look],
            n=rule.times[look],
            p_lower=bound,
            draws=rule.times[len(counts) - 1],
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

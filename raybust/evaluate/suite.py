"""Evaluates one shard under attack: every attack of the protocol at every radius, as rows.

An example broken at one radius is broken at all larger ones, so radii ascend and robust accuracy
never rises. Each success is verified in a forward pass of the whole shard and must lie in ball and
box; otherwise raybust has a bug, and the evaluation stops. Draws are keyed by (seed, example,
attack). In the view `oblivious` every attack's image on the network alone is scored through the
front, whether or not it fooled the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raybust import devices
from raybust.certification.guards import check_logits, check_mode, check_range
from raybust.data.seeds import generator, mix
from raybust.errors import RequestError, WorkError
from raybust.evaluate.attack_protocol import AttackProtocol, seen_by
from raybust.evaluate.autoattack import standard_attack
from raybust.evaluate.table import BEYOND, CLEAN, FURTHER, NOTHING, AttackRow
from raybust.numerics import attacks
from raybust.numerics.attacks import Nearest, Outcome
from raybust.numerics.balls import Threat

ALWAYS = ("fgsm", "pgd", "autoattack")
"""Attacks that run on every correctly classified example, even if already broken."""

_ULP = 2.0**-25
"""Largest float32 rounding error of a pixel in [0, 1]."""

_BLIND = ("square",)
_FAB_TARGETS = 5
"""Maximum classes of fab-t at first, to save time (our choice); further rounds use all."""
_L1_RUNS = 2
"""Runs of apgd-t per class in L1, where starts matter most (our choice)."""
_STRONG = ("fab-t", "square")
_LEAST = {"apgd-dlr": 3, "apgd-t": 4}
"""Classes that a loss needs; with fewer, the attack uses the margin, which is then equivalent."""


def check_request(network: nn.Module, images: Tensor, protocol: AttackProtocol) -> None:
    """Rejects a network or images that cannot be evaluated.

    Args:
        network: images (B, C, H, W) in [0, 1] to logits (B, K).
        images: some of the images, at least one.
        protocol: the attacks.

    Raises:
        RequestError: train mode, autocast, images outside [0, 1], logits of another shape, NaN,
            too few classes for pyautoattack.
    """
    check_mode(network)
    if torch.is_autocast_enabled(images.device.type):
        raise RequestError(
            "network: autocast is on; attacks are evaluated in float32, because half precision "
            "rounds images to steps of 1/255"
        )
    check_range(images)
    with torch.no_grad():
        logits = network(images)
    check_logits(logits, len(images))
    check_classes(protocol.attacks, logits.shape[1])


def check_classes(attacks: Sequence[str], classes: int) -> None:
    """Rejects pyautoattack for networks with fewer than the four classes its losses need.

    Raises:
        RequestError: pyautoattack is requested.
    """
    if "autoattack" in attacks and classes < 4:
        raise RequestError(
            f"evaluate.attacks: autoattack needs at least 4 classes, the network has {classes}; "
            "leave it out"
        )


def attack_examples(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    indices: Sequence[int],
    protocol: AttackProtocol,
) -> list[AttackRow]:
    """Attacks one shard; returns a row per radius, ascending, and example.

    Args:
        network: images (B, C, H, W) in [0, 1] to logits (B, K), in eval mode, on the images'
            device; its state is restored.
        images: float32 (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        indices: (B,) index of each example in its dataset, the key of its draws.
        protocol: all other settings.

    Raises:
        RequestError: see `check_request`.
        WorkError: NaN outputs in the ball, or an adversarial image outside ball or box.
    """
    check_request(network, images, protocol)
    seed = mix(protocol.seed, "network", indices[0])
    with (
        devices.arithmetic(images.device),
        devices.seeded(images.device, seed),
        attacks.attacked(network, fold=False),
    ):
        shard = _Shard(network, images, labels, indices, protocol)
        return [row for threat in protocol.threats for row in shard.rows(threat)]


class _Shard:
    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        indices: Sequence[int],
        protocol: AttackProtocol,
    ) -> None:
        attacked, scored = seen_by(network, protocol.view)
        self.blind = attacked is not scored
        if protocol.eot > 1:
            attacked, scored = (
                attacks.Expectation(one, protocol.eot) for one in (attacked, scored)
            )
        self.attacked, self.scored, self.protocol = attacked, scored, protocol
        self.images, self.labels, self.indices = images, labels, [int(i) for i in indices]
        self.predict = self._classes(images)
        self.right = self.predict == labels
        self.differentiable = attacks.has_gradient(self.attacked, images)
        self.flat = self._flat()
        self.nearest = Nearest.begin(images)
        self.tried = False
        self.broken = ~self.right
        self.by = [NOTHING if right else CLEAN for right in self.right.tolist()]
        self.step = [-1] * len(images)
        self.distance = [0.0] * len(images)
        self.becomes = self.predict.tolist()

    def rows(self, threat: Threat) -> list[AttackRow]:
        """Attacks within one ball; returns a row per example."""
        last = threat.eps == self.protocol.reach
        ran: list[list[tuple[str, int]]] = [[] for _ in self.indices]
        for name in ("pgd",) if last else self.protocol.attacks:
            all_right = (self.protocol.every or name in ALWAYS) and not last
            which = self.right if all_right else self.right & ~self.broken
            rows = which.nonzero().flatten()
            if len(rows) and (self.differentiable or name in _BLIND):
                self._attack(name, threat, rows, ran)
        if not last and self._masked(ran):
            self._further(threat, ran)
        labels, predict, flat = (part.tolist() for part in (self.labels, self.predict, self.flat))
        return [
            AttackRow(
                idx=idx,
                eps=threat.eps,
                label=labels[at],
                predict=predict[at],
                broken_by=self.by[at],
                step=self.step[at],
                distance=self.distance[at],
                becomes=self.becomes[at],
                flat=flat[at],
                attacks=tuple(ran[at]),
            )
            for at, idx in enumerate(self.indices)
        ]

    def _flat(self) -> Tensor:
        """Returns where the gradient of the cross entropy is 0, partly NaN, or none: bool (B,)."""
        if not self.differentiable:
            return torch.ones_like(self.right)
        with torch.enable_grad():
            point = self.images.detach().clone().requires_grad_()
            loss = attacks.cross_entropy(self.attacked(point), self.labels).sum()
            (gradient,) = torch.autograd.grad(loss, point)
        return ~(gradient.flatten(1).abs().amax(1) > 0)  # comparisons with NaN are false

    def _masked(self, ran: list[list[tuple[str, int]]]) -> bool:
        """Returns whether fab-t or square broke more than one example that APGD did not."""
        if not any(name.startswith("apgd") for name in self.protocol.attacks):
            return False
        broke = sum(
            by in _STRONG and dict(seen).get(by, -1) >= 0
            for by, seen in zip(self.by, ran, strict=True)
        )
        return broke > 1

    def _further(self, threat: Threat, ran: list[list[tuple[str, int]]]) -> None:
        """Attacks the remaining examples in further rounds, until one breaks nothing."""
        for number in range(1, self.protocol.rounds + 1):
            before = int(self.broken.sum())
            for name in ("fab-t", "apgd-ce", "square") if self.differentiable else _BLIND:
                rows = (self.right & ~self.broken).nonzero().flatten()
                if len(rows):
                    self._note(self._run_again(name, threat, rows, number), threat, rows, ran,
                               name=FURTHER, step=number)  # fmt: skip
            if int(self.broken.sum()) == before:
                return

    def _attack(
        self, name: str, threat: Threat, rows: Tensor, ran: list[list[tuple[str, int]]]
    ) -> None:
        """Runs one attack on some examples and records the results."""
        self._note(self._run(name, threat, rows), threat, rows, ran, name=name)

    def _note(
        self,
        found: Outcome,
        threat: Threat,
        rows: Tensor,
        ran: list[list[tuple[str, int]]],
        *,
        name: str,
        step: int | None = None,
    ) -> None:
        """Verifies and records what an attack found on some examples; `step` overrides the step of
        the outcome."""
        whole, points = self.images.clone(), self._inside(name, threat, found.images, rows)
        whole[rows] = points
        classes = self._classes(whole)
        sizes = self._sizes(name, threat, points, rows)
        fooled = (classes[rows] != self.labels[rows]) & (sizes <= threat.eps + BEYOND)
        if not self.blind:
            fooled &= found.fooled
        known = self.broken[rows]
        self.broken[rows] = known | fooled
        for at, broke, before, steps, size, becomes in zip(
            *(part.tolist() for part in (rows, fooled, known, found.step, sizes, classes[rows])),
            strict=True,
        ):
            seen = (max(steps, 0) if step is None else step) if broke else -1
            ran[at] = [one for one in ran[at] if one[0] != name] + [(name, seen)]
            if broke and not before:
                self.by[at], self.step[at] = name, seen
                self.distance[at], self.becomes[at] = size, becomes

    def _run(self, name: str, threat: Threat, rows: Tensor) -> Outcome:
        images, labels, protocol = self.images[rows], self.labels[rows], self.protocol
        keys = [self.indices[at] for at in rows.tolist()]
        if name == "autoattack":
            seed = mix(protocol.seed, name, self.indices[0])
            found = standard_attack(self.attacked, images, labels, threat, seed=seed)
            fooled = self._classes(found) != labels
            return Outcome(found, fooled, fooled.long() - 1, torch.zeros_like(images[:, 0, 0, 0]))
        sources = [generator(protocol.seed, name, key) for key in keys]
        batch = (self.attacked, images, labels, threat, sources)
        if name == "fgsm":
            return attacks.fgsm(*batch)
        if name == "pgd":
            return attacks.pgd(*batch, steps=protocol.pgd_steps, restarts=protocol.restarts)
        if self.classes < _LEAST.get(name, 2):
            return attacks.apgd(*batch, loss=attacks.margin, steps=protocol.steps)
        if name == "apgd-t":
            return attacks.apgd_targeted(
                *batch, steps=protocol.steps, targets=protocol.targets,
                restarts=_L1_RUNS if threat.norm == "l1" else 1,
            )  # fmt: skip
        if name == "fab-t":
            return self._nearest(threat, rows, sources)
        if name == "square":
            return attacks.square(*batch, queries=protocol.queries)
        loss = attacks.dlr if name == "apgd-dlr" else attacks.cross_entropy
        return attacks.apgd(*batch, loss=loss, steps=protocol.steps, restarts=protocol.restarts)

    def _nearest(self, threat: Threat, rows: Tensor, sources: list[torch.Generator]) -> Outcome:
        """Returns the outcome of fab-t, which searches only once for all radii."""
        if not self.tried:
            self.tried = True
            found = attacks.fab_targeted(
                self.attacked, self.images[rows], self.labels[rows], threat, sources,
                steps=self.protocol.steps, targets=min(self.protocol.targets, _FAB_TARGETS),
            )  # fmt: skip
            self.nearest.take(rows, found)
        return self.nearest.select(rows).within(threat, self.images[rows])

    def _run_again(self, name: str, threat: Threat, rows: Tensor, number: int) -> Outcome:
        """Runs an attack of a further round from random starts, apgd on the margin."""
        protocol = self.protocol
        sources = [
            generator(protocol.seed, FURTHER, name, number, self.indices[at])
            for at in rows.tolist()
        ]
        batch = (self.attacked, self.images[rows], self.labels[rows], threat, sources)
        if name == "square":
            return attacks.square(*batch, queries=protocol.queries)
        if name == "apgd-ce":
            return attacks.apgd(*batch, loss=attacks.margin, steps=protocol.steps)
        found = attacks.fab_targeted(
            *batch, steps=protocol.steps, targets=protocol.targets, random_start=True
        )
        self.nearest.take(rows, found)
        return self.nearest.select(rows).within(threat, self.images[rows])

    def _classes(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            logits = self.scored(images)
        self.classes = logits.shape[1]
        if logits.isnan().any():
            raise WorkError(f"example {self.indices[0]} or one of its shard: outputs are NaN")
        return logits.argmax(1)

    def _inside(self, name: str, threat: Threat, found: Tensor, rows: Tensor) -> Tensor:
        """Returns an attack's images, moving those that only rounding put outside back inside."""
        if name == "autoattack" or threat.norm == "linf":
            return found
        images, pixels = self.images[rows], self.images[0].numel()
        beyond = threat.size(found.double() - images.double()) - threat.eps
        rounding = _ULP * (math.sqrt(pixels) if threat.norm == "l2" else pixels)
        near = (beyond > BEYOND) & (beyond <= rounding)
        points = found.clone()
        points[near] = threat.pull_in(found[near], images[near])
        return points

    def _sizes(self, name: str, threat: Threat, found: Tensor, rows: Tensor) -> Tensor:
        """Returns the norms of the perturbations, in float64; raises if one left ball or box."""
        images = self.images[rows].double()
        sizes = threat.size(found.double() - images)
        outside = (found - found.clamp(0, 1)).flatten(1).abs().amax(1)
        wrong = ~((sizes <= threat.eps + BEYOND) & (outside <= BEYOND))
        if name != "autoattack" and wrong.any():
            at = int(wrong.nonzero()[0])
            raise WorkError(
                f"example {self.indices[int(rows[at])]}: {name} left its {threat.norm} ball of "
                f"{threat.eps:g} or the box: norm {float(sizes[at]):.8g}, {float(outside[at]):.3g} "
                "outside [0, 1]; this is a bug in raybust, no row of the shard was written"
            )
        return sizes

"""Training against several norms: `sampled` is Croce and Hein, "Adversarial Robustness against
Multiple and Single lp-Threat Models via Quick Fine-Tuning" (ICML 2022, arXiv:2105.12508), E-AT.
`max` and `avg`: Tramer and Boneh (NeurIPS 2019, arXiv:1904.13000). `msd`: Maini, Wong and Kolter
(ICML 2020, arXiv:1909.04068). `pairing`: the loss of RAMP, Jiang and Singh (NeurIPS 2024,
arXiv:2402.06827), without its mixing of weights with those of a clean epoch.

All attacks are PGD, where E-AT takes ten steps of APGD (our choice).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import Adversarial, StepContext
from raybust.methods.pgd import Pgd, accuracy
from raybust.numerics.attacks import Network, attacked, gradient_at
from raybust.numerics.balls import Threat

Norm = Literal["linf", "l2", "l1"]
Losses = Callable[[Tensor], Tensor]
"""Logits (B, K) to losses (B,)."""
Found = tuple[Tensor, dict[Norm, Tensor]]
"""Adversarial images, and for each norm whether `sampled` drew it."""
Plan = tuple[Threat, int, float]
"""Ball, number of steps, step size."""
_FIRST = 0.5
"""Accuracy under each norm until all have been drawn."""


@dataclass(frozen=True, kw_only=True)
class MultiNorm(Adversarial):
    """Cross entropy under attacks in several norm balls, defaults of CIFAR-10; one ball is `pgd`.

    `rule` combines them: `sampled` draws one norm a batch, Linf or L1 where both are given, with
    weight 1 - accuracy under it so far; `max` takes each example's worst loss, `avg` their mean;
    `msd` takes in every step and for each example the best of the norms' steps.
    """

    linf: float | None = option(
        8 / 255, "Radius in Linf; null leaves the norm out.", gt=0, unit="pixels in [0, 1]"
    )
    l2: float | None = option(0.5, "Radius in L2, likewise.", gt=0, unit="pixels in [0, 1]")
    l1: float | None = option(12.0, "Radius in L1, likewise.", gt=0, unit="pixels in [0, 1]")
    rule: Literal["sampled", "max", "avg", "msd"] = option("sampled", "How the norms combine.")
    pairing: float = option(
        0.0,
        "Weight of KL(p(x_linf) || p(x_l1)) over the examples that are right at x_linf; needs"
        " rule=max. RAMP takes 5 from scratch and 1.5 for fine-tuning.",
        ge=0,
    )
    steps: int = option(10, "Number of gradient steps of each attack.", ge=1)
    start: Literal["uniform", "center", "gaussian"] = option(
        "uniform", "Start of the attacks, as in `pgd`; of `msd`, in the first norm's ball."
    )
    warmup: float = option(
        0.0, "Fraction of the run over which the radii rise linearly from 0.", ge=0, lt=1
    )
    statistics: Literal["running", "batch"] = option(
        "running", "Batch norm statistics used during the attack, which never updates them."
    )

    def problems(self) -> list[str]:
        """Adds constraints across fields."""
        found = super().problems()
        if not any((self.linf, self.l2, self.l1)):
            found.append("linf: got null for every norm, expected a radius in at least one")
        if self.pairing and not (self.rule == "max" and self.linf and self.l1):
            found.append(
                f"pairing: got {self.pairing:g}, expected 0 unless rule is max and linf and l1 are"
                " given"
            )
        return found

    def attacks(self) -> dict[Norm, Pgd]:
        """Returns the attack in each norm."""
        radii: tuple[tuple[Norm, float | None], ...] = (
            ("linf", self.linf), ("l2", self.l2), ("l1", self.l1),
        )  # fmt: skip
        return {
            norm: Pgd(
                norm=norm, eps=eps, steps=self.steps, start=self.start, warmup=self.warmup,
                statistics=self.statistics,
            )
            for norm, eps in radii
            if eps is not None
        }  # fmt: skip

    def find(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Found:
        """Returns adversarial images (B, C, H, W), with `max` and `avg` (n B, C, H, W) of n norms;
        and which norm `sampled` drew.

        Metrics: with `sampled`, `multi_norm/NORM_accuracy` so far.
        """
        attacks = self.attacks()
        if self.rule in ("max", "avg"):
            worst = [attack.worst(network, images, targets, context) for attack in attacks.values()]
            return torch.cat(worst), {}
        labels = context.sharp(targets)

        def losses(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, reduction="none")

        with attacked(network, statistics=self.statistics):
            search = _steepest if self.rule == "msd" else _sampled
            return search(network, images, losses, attacks, context)

    def loss_at(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Tensor,
        context: StepContext,
        found: Found,
    ) -> Tensor:
        """Returns the loss above; see `Adversarial.loss_at`.

        Metrics: with `max` and `avg`, `multi_norm/NORM_accuracy` under the attack of each norm and
        `multi_norm/union_accuracy`.
        """
        worst, drawn = found
        logits = network(worst)
        if self.rule in ("max", "avg"):
            return self._separate(
                logits.reshape(-1, len(images), logits.shape[1]), targets, context
            )
        hits = accuracy(logits, targets)
        context.metrics["train/attacked_accuracy"] = hits
        for norm, mine in drawn.items():
            _remember(norm, mine, hits, context)
        return F.cross_entropy(logits, targets)

    def _separate(self, logits: Tensor, targets: Tensor, context: StepContext) -> Tensor:
        """Returns the loss of `max` and `avg` for logits (n, B, K) of n norms."""
        losses = torch.stack([F.cross_entropy(one, targets, reduction="none") for one in logits])
        classes = targets if targets.ndim == 1 else targets.argmax(1)
        right = logits.detach().argmax(2) == classes
        for norm, hits in zip(self.attacks(), right, strict=True):
            context.metrics[f"multi_norm/{norm}_accuracy"] = hits.float().mean()
        union = right.all(0).float().mean()
        context.metrics["multi_norm/union_accuracy"] = union
        context.metrics["train/attacked_accuracy"] = union
        if self.rule == "avg":
            return losses.mean()
        loss = losses.amax(0).mean()
        if self.pairing:
            first, last = logits[0].log_softmax(1), logits[-1].log_softmax(1)
            divergence = F.kl_div(last, first, reduction="none", log_target=True).sum(1)
            loss = loss + self.pairing * (divergence * right[0]).sum() / right[0].sum().clamp(min=1)
        return loss


def _steepest(
    network: Network,
    images: Tensor,
    losses: Losses,
    attacks: dict[Norm, Pgd],
    context: StepContext,
) -> Found:
    """Returns the images of multi steepest descent, and that no norm was drawn: of all norms'
    projected steps, each example takes the one with the largest loss."""
    plans = [attack.plan(images, context.progress) for attack in attacks.values()]
    first = next(iter(attacks.values()))
    delta = first.first(images, plans[0][0], context.generator)
    for _ in range(first.steps):
        gradient = gradient_at(network, images + delta, lambda logits: losses(logits).sum())
        moved = [_moved(delta, gradient, images, plan) for plan in plans]
        delta = moved[0]
        if len(moved) > 1:
            with torch.no_grad():
                found = torch.stack([losses(network(images + one)) for one in moved])
            rows = torch.arange(len(images), device=images.device)
            delta = torch.stack(moved)[found.argmax(0), rows]
    return images + delta, {}


def _sampled(
    network: Network,
    images: Tensor,
    losses: Losses,
    attacks: dict[Norm, Pgd],
    context: StepContext,
) -> Found:
    """Returns the images of an attack in one norm, and for each norm whether it was drawn, a scalar
    on the device: no step waits for the draw."""
    used = {norm: one for norm, one in attacks.items() if norm != "l2" or len(attacks) < 3}
    plans = [attack.plan(images, context.progress) for attack in used.values()]
    starts = [
        attack.first(images, plan[0], context.generator)
        for attack, plan in zip(used.values(), plans, strict=True)
    ]
    drawn = _draw(list(used), images, context)
    delta = _chosen(starts, drawn)
    for _ in range(next(iter(used.values())).steps):
        gradient = gradient_at(network, images + delta, lambda logits: losses(logits).sum())
        delta = _chosen([_moved(delta, gradient, images, plan) for plan in plans], drawn)
    return images + delta, dict(zip(used, drawn, strict=True))


def _draw(norms: list[Norm], images: Tensor, context: StepContext) -> list[Tensor]:
    """Draws a norm with weights 1 - accuracy under it so far; returns one flag a norm."""
    known = [
        (context.memory.get(f"{norm}/hits"), context.memory.get(f"{norm}/batches"))
        for norm in norms
    ]
    zero = torch.zeros((), dtype=torch.float64, device=images.device)
    hits = torch.stack([zero if h is None else h for h, _ in known])
    batches = torch.stack([zero if b is None else b for _, b in known])
    seen = (batches > 0).all()
    rates = torch.where(seen, hits / batches.clamp(min=1), torch.full_like(hits, _FIRST))
    for norm, rate in zip(norms, rates, strict=True):
        context.metrics[f"multi_norm/{norm}_accuracy"] = rate
    if len(norms) == 1:
        return [torch.ones_like(zero, dtype=torch.bool)]
    # Equal weights where every norm is withstood.
    weights = torch.where((rates < 1).any(), 1 - rates, torch.ones_like(rates))
    draw = torch.rand((), generator=context.generator, device=images.device, dtype=torch.float64)
    ends = weights.cumsum(0) / weights.sum()
    ends[-1] = 1.0
    place = (draw >= ends).sum()
    return [place == index for index in range(len(norms))]


def _remember(norm: Norm, drawn: Tensor, hits: Tensor, context: StepContext) -> None:
    """Adds a batch's accuracy under the norm that was drawn."""
    count = drawn.to(torch.float64)
    for name, value in (("hits", count * hits), ("batches", count)):
        key = f"{norm}/{name}"
        before = context.memory.get(key)
        context.memory[key] = value if before is None else before + value


def _chosen(candidates: list[Tensor], drawn: list[Tensor]) -> Tensor:
    """Returns the candidate whose flag is set."""
    found = candidates[0]
    for one, mine in zip(candidates[1:], drawn[1:], strict=True):
        found = torch.where(mine, one, found)
    return found


def _moved(delta: Tensor, gradient: Tensor, images: Tensor, plan: Plan) -> Tensor:
    """Returns perturbations after a step of `pgd` in a norm."""
    threat, _, step = plan
    return threat.project(
        delta.add(threat.steepest(gradient, images), alpha=step), images, exact=False
    )

"""Reasons to distrust a robust accuracy: signs of masked gradients, and networks that these attacks
cannot measure.

The checklist of Athalye, Carlini and Wagner (2018, arXiv:1802.00420) and Carlini et al. (2019,
arXiv:1902.06705), and the checks of AutoAttack. Flags are printed and stored with the number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raybust.certification.guards import batch_effect
from raybust.evaluate.attack_protocol import AttackProtocol
from raybust.evaluate.table import FURTHER, AttackRow
from raybust.numerics.attacks import has_gradient
from raybust.numerics.logits import logit_change

MARGIN = 0.002
"""Share of the examples by which a weaker attack may beat a stronger one (from AutoAttack)."""

_SINGLE_STEP, _BLACK_BOX = {"fgsm"}, {"square", "autoattack"}
FLAT = 0.01
"""Share of flat gradients above which robust accuracy is only an upper bound (our choice)."""
_SURVIVORS = 0.01
_SAME, _BATCH, _SIMPLEX = 1e-5, 1e-3, 1e-5


@dataclass(frozen=True)
class Flag:
    """One reason to distrust a result.

    Attributes:
        name: `random`, `softmax`, `batch`, `no_gradient`, `flat_gradients`, `black_box`,
            `minimum_norm`, `moving`, `steps`, `single_step`, `black_box_only`, `large_eps`,
            `reference`, `oblivious`, `transfer`.
        text: the observation and what it may mean, one line.
    """

    name: str
    text: str


def _random(eot: int) -> str:
    """Returns what figures of a random network mean."""
    if eot > 1:
        return f"every figure is of the average of {eot} passes, which is another classifier"
    return (
        "figures are of one draw, and attacks follow its noise; evaluate.eot=20 measures the"
        " average of 20 passes instead, which is another classifier"
    )


@torch.no_grad()
def flags_of_network(network: nn.Module, images: Tensor, eot: int = 1) -> list[Flag]:
    """Returns flags about the network itself.

    Args:
        network: images (B, C, H, W) in [0, 1] to logits (B, K), in eval mode.
        images: B >= 1 distinct images.
        eot: passes that the classifier averages.
    """
    found = []
    with torch.random.fork_rng():
        logits, again = network(images), network(images)
        change, allowed = logit_change(logits, again, _SAME)
        random = not change <= allowed
        if random:
            found.append(Flag("random", f"two passes on the same images differ; {_random(eot)}"))
        change, allowed = batch_effect(network, images, logits, _BATCH)
        differentiable = has_gradient(network, images)
    if not differentiable:
        found.append(
            Flag("no_gradient", "the outputs have no gradient with respect to the images: "
                 "gradient attacks are skipped, only square runs")
        )  # fmt: skip
    if not random and not change <= allowed:
        found.append(
            Flag(
                "batch",
                f"an image's logits change by {change:.3g} with its batch or its place there",
            )
        )
    sums = (logits.sum(1) - 1).abs().max()
    if logits.min() >= -_SIMPLEX and logits.max() <= 1 + _SIMPLEX and sums < _SIMPLEX:
        found.append(
            Flag("softmax", "outputs are probabilities, not logits: gradients vanish; remove the"
                 " softmax")
        )  # fmt: skip
    return found


def flat_share(rows: Sequence[AttackRow], protocol: AttackProtocol) -> float:
    """Returns the share of flat gradients among the images that the network gets right; 0 if it
    gets none right."""
    first = [row for row in rows if row.eps == protocol.eps[0]]
    right = [row.flat for row in first if row.predict == row.label]
    return sum(right) / max(len(right), 1)


def flags_of_rows(rows: Sequence[AttackRow], protocol: AttackProtocol) -> list[Flag]:
    """Returns flags about the results.

    Args:
        rows: all rows of a table.
        protocol: its protocol.
    """
    if protocol.view == "oblivious":
        return [
            Flag("oblivious", "the attacks did not see the front module, but an attacker can: this"
                 " is the published protocol, not a robust accuracy")
        ]  # fmt: skip
    found = []
    share = flat_share(rows, protocol)
    if share > FLAT:
        found.append(
            Flag("flat_gradients", f"the gradient is 0 or NaN at {share:.1%} of the images that "
                 "the network gets right: gradient attacks start blind")
        )  # fmt: skip
    if set(protocol.attacks) <= _SINGLE_STEP:
        found.append(
            Flag("single_step", "only a single step was tried: attacks of several steps lower the"
                 " number; add apgd-ce or apgd-t")
        )  # fmt: skip
    if set(protocol.attacks) == {"square"}:
        found.append(
            Flag("black_box_only", "only square was tried, which uses no gradient: attacks with"
                 " gradients lower the number; add apgd-ce or apgd-t")
        )  # fmt: skip
    for eps in protocol.eps:
        found += _at_radius([row for row in rows if row.eps == eps], eps, protocol)
    if protocol.reach:
        last = [row for row in rows if row.eps == protocol.reach]
        survivors = sum(row.robust for row in last) / len(last)
        if survivors > _SURVIVORS:
            found.append(
                Flag("large_eps", f"{survivors:.1%} withstand pgd at {protocol.norm} "
                     f"{protocol.reach:g}, where every image is in the ball: gradients are masked")
            )  # fmt: skip
    return found


def flags_of_transfer(
    adaptive: Sequence[AttackRow], oblivious: Sequence[AttackRow], protocol: AttackProtocol
) -> list[Flag]:
    """Returns flags about attacks through a front, compared with attacks that do not see it.

    Args:
        adaptive: rows of the former.
        oblivious: rows of the latter, on the same examples.
        protocol: protocol of the former.
    """
    found = []
    for eps in protocol.eps:
        here = [row.robust for row in adaptive if row.eps == eps]
        there = [row.robust for row in oblivious if row.eps == eps]
        if sum(here) - sum(there) > max(1.0, MARGIN * len(here)):
            found.append(
                Flag("transfer", f"at eps {eps:g} attacks on the network alone broke"
                     f" {sum(here) - sum(there)} of {len(here)} more examples than attacks through"
                     " the front: the front hides gradients")
            )  # fmt: skip
    return found


def _points(count: int, rows: Sequence[AttackRow]) -> str:
    return f"{100 * count / len(rows):.2f} points"


def _at_radius(rows: list[AttackRow], eps: float, protocol: AttackProtocol) -> list[Flag]:
    found = []
    allowed = max(1.0, MARGIN * len(rows))
    square, nearest, further = (
        sum(row.broken_by == name and dict(row.attacks).get(name, -1) >= 0 for row in rows)
        for name in ("square", "fab-t", FURTHER)
    )
    tried = set(protocol.attacks)
    if square > allowed and tried - _BLACK_BOX:
        found.append(
            Flag("black_box", f"at eps {eps:g} square, which uses no gradient, lowered robust "
                 f"accuracy by {_points(square, rows)}: it broke {square} of {len(rows)} examples "
                 "that gradient attacks had not")
        )  # fmt: skip
    if nearest > allowed and any(name.startswith("apgd") for name in tried):
        found.append(
            Flag("minimum_norm", f"at eps {eps:g} fab-t, which searches for the nearest boundary, "
                 f"lowered robust accuracy by {_points(nearest, rows)} after apgd")
        )  # fmt: skip
    rounds = [step for row in rows for name, step in row.attacks if name == FURTHER]
    if rounds:
        open_end = max(rounds) >= protocol.rounds
        end = f"the last of {protocol.rounds} still did" if open_end else "the last one broke none"
        found.append(
            Flag("moving", f"at eps {eps:g} further rounds of attacks lowered robust accuracy by "
                 f"{_points(further, rows)}; {end}; robust accuracy is an upper bound")
        )  # fmt: skip
    one = sum(row.broke("fgsm") is True for row in rows)
    many = sum(row.broke("pgd") is True for row in rows)
    if {"fgsm", "pgd"} <= set(protocol.attacks) and one - many > allowed:
        found.append(
            Flag("steps", f"at eps {eps:g} one step broke {one} examples, {protocol.pgd_steps} "
                 f"steps {many}: more steps do not help")
        )  # fmt: skip
    beyond = sum(row.broken_by == "autoattack" for row in rows)
    if beyond > allowed:
        found.append(
            Flag("reference", f"at eps {eps:g} pyautoattack broke {beyond} of {len(rows)} examples "
                 "that raybust's attacks had not")
        )  # fmt: skip
    return found

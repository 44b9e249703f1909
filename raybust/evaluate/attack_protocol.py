"""The protocol of an evaluation under attack: everything that determines the rows of its table,
stored as the table's header.

Evaluations with the same header attacked the same network on the same images in the same way.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

import raybust
from raybust import devices, identity
from raybust.config.assess import Evaluate
from raybust.data import Part
from raybust.errors import RequestError
from raybust.evaluate.autoattack import standard_version
from raybust.models import Fronted
from raybust.numerics.balls import Norm, Threat

FORMAT = 2
"""Version of the table's format and of the keys of its draws."""

View = Literal["alone", "oblivious", "adaptive"]
"""For a network behind a front module: `alone` attacks and scores the network without it;
`oblivious` attacks the network without it and scores the whole; `adaptive` attacks and scores the
whole, the only robust accuracy of the three (Athalye et al., 2018, arXiv:1802.00420)."""

HEADLINE: View = "adaptive"
"""The view whose number is the robust accuracy."""

_L1_RUNS = 5
_SHARD, _GPU_SHARD = 100, 500
_REACH = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


@dataclass(frozen=True, kw_only=True)
class AttackProtocol:
    """One protocol; its fields are the header of a table.

    Attributes:
        format: version of the format.
        norm: norm of the ball.
        eps: radii, ascending.
        reach: radius of the sanity check, the diagonal of the box; 0 for none.
        attacks: names, in order.
        every: whether every attack runs on every correctly classified example.
        pgd_steps: steps of pgd.
        steps: steps per run of APGD.
        restarts: runs of pgd, apgd-ce and apgd-dlr.
        targets: classes tried by apgd-t, and by fab-t up to 5.
        queries: queries of square.
        rounds: maximum further rounds if fab-t or square break what apgd did not.
        eot: forward passes averaged.
        seed: seed of the attacks.
        shard: examples attacked together; the batch affects rounding.
        dataset: name of the dataset.
        split: part of the dataset.
        data: digest of the attacked images.
        labels: digest of their labels.
        examples: number of examples, from the first.
        weights: digest of the weights, see `identity.weights_digest`.
        outputs: the network's outputs and gradients on fixed inputs, see `identity.outputs_of`;
            behind a front module, also those of the network alone.
        device: device type.
        view: what attack and score see of the network; `adaptive` without a front module.
        front: the front module with its settings, "" for none.
        autoattack: version of pyautoattack if its suite runs, else "".
        raybust: version.
        torch: version.
    """

    format: int = FORMAT
    norm: Norm
    eps: tuple[float, ...]
    reach: float
    attacks: tuple[str, ...]
    every: bool
    pgd_steps: int
    steps: int
    restarts: int
    targets: int
    queries: int
    rounds: int
    eot: int
    seed: int
    shard: int
    dataset: str
    split: str
    data: str = ""
    labels: str = ""
    examples: int
    weights: str = ""
    outputs: tuple[float, ...] = ()
    device: str
    view: View = HEADLINE
    front: str = ""
    autoattack: str = ""
    raybust: str = raybust.__version__
    torch: str = torch.__version__

    @property
    def threats(self) -> tuple[Threat, ...]:
        """The balls of the rows, ascending; that of `reach` last."""
        radii = (*self.eps, self.reach) if self.reach else self.eps
        return tuple(Threat(self.norm, eps) for eps in radii)

    def shards(self) -> list[range]:
        """Returns the positions of each shard in the split, independent of the workers."""
        return [
            range(start, min(start + self.shard, self.examples))
            for start in range(0, self.examples, self.shard)
        ]

    def about(self, network: nn.Module, part: Part) -> AttackProtocol:
        """Returns this protocol bound to a network and to the first examples of a part."""
        networks = [network, network.network] if isinstance(network, Fronted) else [network]
        made_by = identity.record(networks, part, range(self.examples), gradients=True)
        return dataclasses.replace(self, **made_by)

    def to_json(self) -> str:
        """Returns the protocol as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    def differences(self, text: str) -> list[str]:
        """Returns how a header differs from this one, see `identity.differences`.

        Raises:
            ValueError: the header is not a JSON object.
        """
        return identity.differences(identity.fields_of(text), dataclasses.asdict(self))


def make_attack_protocol(
    config: Evaluate,
    *,
    shape: tuple[int, int, int],
    total: int,
    device: str,
    dataset: str,
) -> AttackProtocol:
    """Returns the protocol for section `evaluate` of the configuration.

    Args:
        config: the section; values of None are filled in here.
        shape: (C, H, W) of an image.
        total: examples in the split.
        device: device type.
        dataset: name of the dataset.

    Returns:
        The protocol, not yet bound to a network and images: see `AttackProtocol.about`.

    Raises:
        RequestError: a radius beyond the box, or pyautoattack is requested but not installed.
    """
    reach = math.prod(shape) ** (1 / _REACH[config.norm])
    if max(config.eps) > reach:
        raise RequestError(
            f"evaluate.eps: got {max(config.eps):g}, expected <= {reach:g}, beyond which every"
            f" image of shape {shape} is in the {config.norm} ball"
        )
    several = config.norm == "l1"
    return AttackProtocol(
        norm=config.norm,
        eps=tuple(sorted(set(config.eps))),
        reach=reach if config.sanity and max(config.eps) < reach else 0.0,
        attacks=config.attacks,
        every=config.every,
        pgd_steps=config.pgd_steps,
        steps=config.steps,
        restarts=config.restarts or (_L1_RUNS if several else 1),
        targets=config.targets or (_L1_RUNS if several else 9),
        queries=config.queries,
        rounds=config.rounds,
        eot=config.eot,
        seed=config.seed,
        shard=config.shard or (_SHARD if device == devices.CPU else _GPU_SHARD),
        dataset=dataset,
        split=config.split,
        examples=min(total, config.examples or total),
        device=device,
        autoattack=standard_version() if "autoattack" in config.attacks else "",
    )


def views_of(network: nn.Module, protocol: AttackProtocol) -> list[AttackProtocol]:
    """Returns the protocols to evaluate a network at, the headline last: the given one and, behind
    a front module, those of the other views.

    Attacks that do not see the front skip the sanity check: survivors there mean nothing.
    """
    if not isinstance(network, Fronted):
        return [protocol]
    whole = dataclasses.replace(protocol, front=repr(network.front))
    blind = dataclasses.replace(whole, view="oblivious", reach=0.0)
    return [dataclasses.replace(whole, view="alone", front=""), blind, whole]


def seen_by(network: nn.Module, view: View) -> tuple[nn.Module, nn.Module]:
    """Returns the network to attack and the network to score in a view."""
    if view == HEADLINE:
        return network, network
    assert isinstance(network, Fronted), f"view {view} needs a front module"
    return network.network, network if view == "oblivious" else network.network

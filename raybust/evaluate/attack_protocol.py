"""The protocol of an evaluation under attack: everything that decides what a row of its table is,
as the table's header.

Two evaluations with the same header attacked the same images of the same network in the same way.
Stage `evaluate` of the arrow.
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
from raybust import identity
from raybust.config.assess import Evaluate
from raybust.data import Part
from raybust.errors import RequestError
from raybust.evaluate.autoattack import standard_version
from raybust.models import Fronted
from raybust.numerics.balls import Norm, Threat

FORMAT = 1
"""Version of the table's format and of the keys of its draws."""

View = Literal["alone", "oblivious", "adaptive"]
"""Of a network with a module in front: `alone`, attack and score are of the network without it;
`oblivious`, the attack is, and the whole is scored; `adaptive`, both are of the whole, the only
robust accuracy of the three (Athalye et al., 2018, arXiv:1802.00420)."""

HEADLINE: View = "adaptive"

_L1_RUNS = 5
_REACH = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


@dataclass(frozen=True, kw_only=True)
class AttackProtocol:
    """One protocol; its fields are the header of a table.

    Attributes:
        format: version of the format.
        norm: norm of the ball.
        eps: radii, ascending.
        reach: the largest radius of `sanity`, from one corner of the box to the other; 0: none.
        attacks: names, in order.
        every: whether every attack meets every example that the network gets right.
        pgd_steps: steps of pgd.
        steps: steps of a run of APGD.
        restarts: runs of pgd, apgd-ce and apgd-dlr.
        targets: classes that apgd-t tries, and fab-t up to 5.
        queries: queries of square.
        rounds: most further rounds where fab-t or square break what apgd had not.
        eot: forward passes averaged.
        seed: seed of the attacks.
        shard: examples attacked together: rounding depends on the batch.
        dataset: name of the dataset.
        split: which part of it.
        data: digest of the content of the images that are attacked.
        labels: digest of their labels.
        examples: how many, from the first.
        weights: digest of the network's weights, see `identity.weights_digest`.
        outputs: what the network computes on fixed inputs, and its gradients there, see
            `identity.outputs_of`; of a network with a module in front also those without it.
        device: type of the device.
        view: what attack and score see of the network; `adaptive` where nothing is in front.
        front: the module in front with its settings, "" for none.
        autoattack: version of pyautoattack where its suite runs, else "".
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
        """The balls that rows are of, ascending; that of `reach` last."""
        radii = (*self.eps, self.reach) if self.reach else self.eps
        return tuple(Threat(self.norm, eps) for eps in radii)

    def shards(self) -> list[range]:
        """Returns the positions of each shard in the split; they do not depend on the workers."""
        return [
            range(start, min(start + self.shard, self.examples))
            for start in range(0, self.examples, self.shard)
        ]

    def about(self, network: nn.Module, part: Part) -> AttackProtocol:
        """Returns this protocol of a network and of the first examples of a part of the data."""
        chosen = range(self.examples)
        images = part.fetch(chosen[: identity.PROBES])[0]
        functions = [network, network.network] if isinstance(network, Fronted) else [network]
        outputs = [identity.outputs_of(one, images, gradients=True) for one in functions]
        return dataclasses.replace(
            self,
            data=part.content(chosen),
            labels=part.labeling(chosen),
            weights=identity.weights_digest(network),
            outputs=tuple(value for one in outputs for value in one),
        )

    def to_json(self) -> str:
        """Returns the protocol as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    def differences(self, text: str) -> list[str]:
        """Returns in what a header differs from this one, see `identity.differences`.

        Raises:
            ValueError: the header is no JSON object.
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
    """Returns the protocol of a configuration's section `evaluate`.

    Args:
        config: the section; None in it stands for what is decided here.
        shape: (C, H, W) of an image.
        total: examples in the split.
        device: type of the device, "cpu" or "cuda".
        dataset: name of the dataset.

    Returns:
        The protocol, which is of no network and no images yet: see `AttackProtocol.about`.

    Raises:
        RequestError: a radius beyond the box, or pyautoattack is asked for and not installed.
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
        shard=config.shard,
        dataset=dataset,
        split=config.split,
        examples=min(total, config.examples or total),
        device=device,
        autoattack=standard_version() if "autoattack" in config.attacks else "",
    )


def views_of(network: nn.Module, protocol: AttackProtocol) -> list[AttackProtocol]:
    """Returns the protocols by which a network is to be judged, the headline last: the one that is
    given, and for a network with a module in front those of the other views too.

    Attacks that do not see what is in front have no largest radius: nothing follows from what
    survives there.
    """
    if not isinstance(network, Fronted):
        return [protocol]
    whole = dataclasses.replace(protocol, front=repr(network.front))
    blind = dataclasses.replace(whole, view="oblivious", reach=0.0)
    return [dataclasses.replace(whole, view="alone", front=""), blind, whole]


def seen_by(network: nn.Module, view: View) -> tuple[nn.Module, nn.Module]:
    """Returns what is attacked and what is scored in a view."""
    if view == HEADLINE:
        return network, network
    assert isinstance(network, Fronted), f"nothing is in front: there is no view {view}"
    return network.network, network if view == "oblivious" else network.network

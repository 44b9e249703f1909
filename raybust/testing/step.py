"""One reproducible training step of a method, with a network that records its calls.

`raybust.testing.method_checks` builds on it.

Legend: 8 images of 1 x 8 x 8, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.methods import Method, Round, StepContext
from raybust.training.objective import CountedNetwork

BATCH = 8
"""Images in a batch."""


class Probe(nn.Module):
    """A small network with batch normalization that records its calls.

    Attributes:
        dtypes: dtypes of the images it received.
        devices: devices of the images it received.
        training_calls: number of calls that contribute to the gradient of the weights.
    """

    def __init__(self, classes: int) -> None:
        """Builds the network.

        Args:
            classes: number K of logits.
        """
        super().__init__()
        self.features = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 64, classes)
        self.register_buffer("constant", torch.ones(3))
        self.dtypes: set[torch.dtype] = set()
        self.devices: set[torch.device] = set()
        self.training_calls = 0
        self.register_forward_pre_hook(_record)  # a hook, so that torch.fx can trace the network

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, 8, 8) to logits (B, K)."""
        hidden: Tensor = self.norm(self.features(images)).relu()
        logits: Tensor = self.head(hidden.flatten(1))
        return logits


def _record(probe: Probe, arguments: tuple[Any, ...]) -> None:
    (images,) = arguments
    if isinstance(images, Tensor):
        assert images.shape[1:] == (1, 8, 8), f"the network got images {tuple(images.shape)}"
        assert images.isfinite().all(), "the network got images that are not finite"
        probe.dtypes.add(images.dtype)
        probe.devices.add(images.device)
        probe.training_calls += torch.is_grad_enabled() and probe.head.weight.requires_grad


def batch(method: Method, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, int]:
    """Returns images (8, 1, 8, 8), labels (8,) with equally many images per class, and the number
    of classes.

    Args:
        method: `balanced_classes` sets the number of classes, 4 if it is 0.
        dtype: dtype of the images.
    """
    classes = max(2, method.balanced_classes or 4)
    images = torch.rand(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    return images.to(dtype), torch.arange(BATCH) % classes, classes


def network_for(
    method: Method, classes: int, dtype: torch.dtype = torch.float32
) -> tuple[CountedNetwork, Probe]:
    """Returns the network that the method receives, including the method's front, and the probe
    inside it.

    Args:
        method: method under test.
        classes: number K of logits.
        dtype: dtype of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        probe = Probe(classes)
        front = method.front()
    whole = probe if front is None else nn.Sequential(front, probe)
    network = CountedNetwork(whole.to(dtype))
    network.train()
    return network, probe


class Step:
    """One reproducible step of a method.

    Attributes:
        method: method under test.
        images: (8, 1, 8, 8).
        targets: labels (8,), or probabilities (8, K).
        network: network that the method receives.
        probe: network inside `network`.
        prepared: result of the method's `setup`.
        stored: of a round of the method, None if it has none.
        generator: source of the step's randomness.
        context: context of a step halfway through a run.
    """

    def __init__(
        self,
        method: Method,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        *,
        soft: float | None = None,
        train: bool = True,
    ) -> None:
        """Prepares the step; `loss` runs it.

        Args:
            method: method under test.
            dtype: dtype of images and weights.
            seed: seed of the generator.
            soft: share of the uniform distribution in the targets; None for integer labels.
            train: whether the network is in train mode.
        """
        self.method = method
        self.images, labels, classes = batch(method, dtype)
        self.network, self.probe = network_for(method, classes, dtype)
        self.prepared = method.setup(self.network.network, self.images, labels)
        self.network.train(train)
        self.targets = labels
        if soft is not None:
            one_hot = F.one_hot(labels, classes).to(dtype)
            self.targets = (1 - soft) * one_hot + soft / classes
        self.generator = torch.Generator().manual_seed(seed)
        self.before = self.generator.get_state()
        self.stored = self.begun().stored if method.round_epochs() else None
        self.network.forward_passes = self.network.backward_passes = 0
        self.probe.training_calls = 0
        self.context = StepContext(self.generator, 0.5, self.prepared, stored=self.stored)

    def begun(self, found: Tensor | None = None) -> Round:
        """Returns a round of the method over the step's images.

        Args:
            found: as in `Method.store`.
        """
        labels = self.targets if self.targets.ndim == 1 else self.targets.argmax(1)
        context = StepContext(torch.Generator().manual_seed(11), 0.5, self.prepared)
        return self.method.store(self.network, self.images, labels, context, found)

    def loss(self) -> Tensor:
        """Returns the method's loss of the step."""
        return self.method.loss(self.network, self.images, self.targets, self.context)

    @property
    def drew(self) -> bool:
        """Whether the method drew from the generator."""
        return not torch.equal(self.before, self.generator.get_state())

"""The objective: the module that combines network and method and that DDP wraps.

DDP sees one forward and one backward pass per step, whatever the method does inside. The network
passed to a method counts images through it, forward and backward, since budgets and comparisons
between methods are measured in passes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust import models
from raybust.config import Config
from raybust.data import Dataset
from raybust.errors import RequestError
from raybust.identity import code_of
from raybust.methods import Method, StepContext
from raybust.training.ranks import Ranks

DEFAULT_SIGMA = 0.25
"""Sigma for certifying networks whose method adds no smoothing noise (our choice: the smallest of
the usual 0.25, 0.5, 1)."""


def assemble(config: Config, dataset: Dataset) -> nn.Module:
    """Returns a configuration's freshly initialized network, including the method's front module.

    Args:
        config: names network and method; initialization draws from torch's global generator.
        dataset: provides shape, classes and normalization.

    Raises:
        RequestError: the network does not exist or does not accept these images.
    """
    channels = dataset.shape[0]
    for key in ("mean", "std"):
        given = getattr(config.model, key)
        if given is not None and len(given) != channels:
            raise RequestError(
                f"model.{key}: got {len(given)} values, expected {channels}, one per channel"
            )
    network = models.build(
        config.model,
        shape=dataset.shape,
        num_classes=len(dataset.classes),
        mean=config.model.mean or dataset.mean,
        std=config.model.std or dataset.std,
    )
    front = config.method.front()
    return network if front is None else models.Fronted(front, network)


def code_of_training(config: Config, dataset: Dataset) -> tuple[float, ...]:
    """Returns the fingerprint of the code of a configuration's network, see `identity.code_of`;
    leaves torch's generator as it is."""
    with torch.random.fork_rng(devices=[]):
        return code_of(assemble(config, dataset), dataset.shape)


def check_batch(network: nn.Module, config: Config, dataset: Dataset) -> None:
    """Rejects batches of one image per rank if the network cannot be trained on them.

    Batch norm needs more than one value per channel.

    Raises:
        RequestError: a forward pass of one image in train mode fails.
    """
    size = min(config.train.batch_size, len(dataset.train)) // config.cluster.workers
    if size != 1:
        return
    probe = copy.deepcopy(network).train()
    try:
        with torch.no_grad():
            probe(torch.zeros(1, *dataset.shape))
    except ValueError as error:
        raise RequestError(
            f"train.batch_size: got 1 image per step and worker, on which {config.model.name}"
            f" cannot be trained ({error}); use 2 or more, or a network without batch norm"
        ) from None


def smoothing_sigma(config: Config) -> float:
    """Returns the sigma for certifying a configuration's network, in units of [0, 1] pixels:
    `certify.sigma` if set, else the method's, else `DEFAULT_SIGMA`."""
    return config.certify.sigma or config.method.noise() or DEFAULT_SIGMA


class CountedNetwork(nn.Module):
    """The network as a method sees it: counts passes, autocasts and returns float32 logits.

    Attributes:
        forward_passes: number of images passed forward so far.
        backward_passes: number of images for which a gradient was propagated back.
    """

    def __init__(self, network: nn.Module, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.network = network
        self.autocast = autocast
        self.forward_passes = 0
        self.backward_passes = 0

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, C, H, W) in [0, 1] to logits (B, K)."""
        logits: Tensor = self.through(lambda network, inputs: (network(inputs),), images)[0]
        return logits

    def through(
        self,
        run: Callable[[nn.Module, Tensor], tuple[Any, ...]],
        images: Tensor,
        passes: int = 1,
    ) -> tuple[Any, ...]:
        """Returns run(network, images), a custom forward pass, counted and autocast like `forward`.

        Args:
            run: applies the network to the images; returns the logits first, then any other
                results, which are passed on.
            images: (B, C, H, W) in [0, 1].
            passes: that `run` takes per image.
        """
        count = passes * len(images)
        self.forward_passes += count
        if self.autocast is None:
            logits, *others = run(self.network, images)
        else:
            with torch.autocast(images.device.type, self.autocast):
                logits, *others = run(self.network, images)
            logits = logits.float()
        if logits.requires_grad:
            logits.register_hook(lambda _: self._count_backward(count))
        return (logits, *others)

    def _count_backward(self, count: int) -> None:
        self.backward_passes += count


class Objective(nn.Module):
    """Module whose forward pass is the method's loss of one step.

    Attributes:
        network: the counting wrapper; `network.network` is the network itself.
        metrics: the method's metrics of the last step.
        embed: features of a frozen network, see `StepContext`; a function, not a submodule.
        stored: of the method's current round, see `Method.store`.
        smoothing: share of the uniform distribution in the targets, and the number of classes.
        memory: what the method keeps from step to step, see `StepContext`.
        teach: predictions of a frozen network, see `StepContext`; a function, not a submodule.
    """

    def __init__(
        self, network: nn.Module, method: Method, autocast: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.network = CountedNetwork(network, autocast)
        self.method = method
        self.prepared: object = None
        self.metrics: dict[str, Tensor | float] = {}
        self.embed: Callable[[Tensor], Tensor] | None = None
        self.stored: object = None
        self.smoothing = 0.0, 0
        self.memory: dict[str, Tensor] = {}
        self.teach: Callable[[Tensor], Tensor] | None = None

    def prepare(self, images: Tensor, targets: Tensor) -> None:
        """Runs the method's `setup` on training images (B, C, H, W) and labels (B,)."""
        self.prepared = self.method.setup(self.network.network, images, targets)

    def refresh(
        self, images: Tensor, targets: Tensor, context: StepContext, found: Tensor | None
    ) -> Tensor:
        """Begins a round of the method and returns what it found; see `Method.store`.

        Args:
            images: (N, C, H, W) of this rank.
            targets: int64 (N,).
            context: generator and progress; the rest is filled in.
            found: result of the same call before the run was interrupted, or None.
        """
        context.prepared, context.embed = self.prepared, self.embed
        context.memory, context.teach = self.memory, self.teach
        result, self.stored = self.method.store(self.network, images, targets, context, found)
        return result

    def agree(self, ranks: Ranks) -> None:
        """Gives every rank the mean of what the method keeps from step to step."""
        means = ranks.means({key: (value, 1.0) for key, value in self.memory.items()})
        self.memory = {
            key: torch.tensor(value, dtype=torch.float64, device=ranks.device)
            for key, value in means.items()
        }

    def forward(
        self, images: Tensor, targets: Tensor, generator: torch.Generator, progress: float
    ) -> Tensor:
        """Returns the scalar loss; see `Method.loss`."""
        share, classes = self.smoothing
        if share:
            targets = smoothed(targets, share, classes, images.dtype)
        context = StepContext(
            generator, progress, self.prepared, {}, self.embed, self.stored,
            smoothing=share, memory=self.memory, teach=self.teach,
        )  # fmt: skip
        loss = self.method.loss(self.network, images, targets, context)
        self.metrics = context.metrics
        return loss


def smoothed(labels: Tensor, share: float, classes: int, dtype: torch.dtype) -> Tensor:
    """Returns smoothed labels (B, K): (1 - share) y + share / K (Szegedy et al., 2016,
    arXiv:1512.00567).

    Args:
        labels: int64 (B,).
        share: of the uniform distribution.
        classes: number K.
        dtype: of the result.
    """
    return (1 - share) * F.one_hot(labels, classes).to(dtype) + share / classes

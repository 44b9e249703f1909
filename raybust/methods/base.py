"""The contract of a robust-training method.

A method is a frozen keyword-only dataclass whose fields are its hyperparameters. It computes the
loss of one step, independently of device, DDP and Ray: it uses the device and dtype of its input
and draws only from the generator it receives.

Order of operations on a batch, which wrappers preserve: geometry, mixing or transport, Lp noise,
clamp to [0, 1], attack or Gaussian smoothing noise. Smoothing noise comes last, never clamped.

Notation: B images of shape C x H x W, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from raybust.config.options import Section


@dataclass
class StepContext:
    """Inputs of a training step besides network, images and targets.

    Attributes:
        generator: source of all randomness in the step, on the images' device; one per DDP rank.
        progress: completed fraction of the training run, in [0, 1).
        prepared: the return value of the method's `setup`.
        metrics: scalars to log; the loop averages them over the epoch. Tensors stay on the device
            and must not require a gradient. A sweep can optimize those whose names begin with the
            method's key, such as `geodesic/distance`.
        embed: maps images (B, C, H, W) to features (B, D) of the frozen network named by
            `embedded_by`, None without one. Not counted as a pass of the trained network.
        stored: what the method's last `store` keeps for the steps, None without rounds.
        smoothing: share of the uniform distribution in the targets, `train.label_smoothing`.
        memory: scalars by name, detached, that the method reads and replaces from step to step,
            empty at first. At the end of an epoch every rank takes the mean over the ranks, which
            checkpoints keep.
        teach: maps images (B, C, H, W) to the logits (B, K) of the frozen network named by
            `taught_by`, None without one. Not counted as a pass of the trained network.
    """

    generator: torch.Generator
    progress: float = 0.0
    prepared: Any = None
    metrics: dict[str, Tensor | float] = field(default_factory=dict)
    embed: Callable[[Tensor], Tensor] | None = None
    stored: Any = None
    smoothing: float = 0.0
    memory: dict[str, Tensor] = field(default_factory=dict)
    teach: Callable[[Tensor], Tensor] | None = None

    def sharp(self, targets: Tensor) -> Tensor:
        """Returns targets without label smoothing, for attacks and bounds, which keep the label.

        Args:
            targets: labels (B,) or probabilities (B, K), also mixed ones: smoothing is linear.
        """
        if not self.smoothing:
            return targets
        return (targets - self.smoothing / targets.shape[1]) / (1 - self.smoothing)


class Round(NamedTuple):
    """Result of `Method.store`.

    Attributes:
        found: what the network decided, one tensor of any shape, without gradient. Checkpoints keep
            it, so it should be small.
        stored: `context.stored` of every step until the next round.
    """

    found: Tensor
    stored: Any


@dataclass(frozen=True, kw_only=True)
class Method(Section):
    """Base class of all methods. A method that wraps another one has a field `base: Method` and by
    default delegates to it."""

    key: ClassVar[str] = ""
    """Name of the method in a configuration: its file name or entry-point name."""

    def __init_subclass__(cls) -> None:
        cls.key = cls.__module__.rpartition(".")[2]

    @property
    def wrapped(self) -> Method | None:
        """The wrapped method, or None."""
        base = getattr(self, "base", None)
        return base if isinstance(base, Method) else None

    @property
    def balanced_classes(self) -> int:
        """Number of classes in each balanced batch; 0 accepts any batch. Defaults to the base's
        value, else 0."""
        return self.wrapped.balanced_classes if self.wrapped else 0

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the scalar loss of one step, whose gradient trains the network.

        Args:
            network: maps images (B, C, H, W) to logits (B, K), in train mode; calls count passes.
            images: (B, C, H, W) in [0, 1].
            targets: int64 (B,), or probabilities (B, K).
            context: generator, progress, prepared state.
        """
        raise NotImplementedError

    def initialize(self, network: nn.Module) -> None:
        """Changes the weights of a fresh network in place, with draws from torch's global
        generator; not called where `train.init` gives weights. Defaults to the base's, else keeps
        the network's own.

        Args:
            network: as built, on the CPU.
        """
        if self.wrapped:
            self.wrapped.initialize(network)

    def setup(self, network: nn.Module, images: Tensor, targets: Tensor) -> Any:
        """Returns state computed once before training, passed to each step as `context.prepared`.
        Defaults to the base's, else None.

        Args:
            network: the network before its first step.
            images: unaugmented training images (B, C, H, W) in [0, 1], the same on every rank.
            targets: int64 (B,).
        """
        return self.wrapped.setup(network, images, targets) if self.wrapped else None

    def setup_images(self) -> int:
        """Returns the maximum number of images passed to `setup`, taken evenly from the training
        part. Defaults to the base's, else 512."""
        return self.wrapped.setup_images() if self.wrapped else 512

    def round_epochs(self) -> int:
        """Returns the number of epochs after which `store` is called again, before the epoch's
        first step; 0 for never. Defaults to the base's, else 0."""
        return self.wrapped.round_epochs() if self.wrapped else 0

    def store(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Tensor,
        context: StepContext,
        found: Tensor | None = None,
    ) -> Round:
        """Returns what the steps of the coming epochs use apart from their own batches. Defaults to
        the base's; called only if `round_epochs` is not 0.

        Args:
            network: as in `loss`; calls count passes. It is restored afterwards.
            images: (N, C, H, W) in [0, 1], all images of this rank's coming epoch, augmented.
            targets: int64 (N,).
            context: as in `loss`; its generator depends on seed, round and rank alone.
            found: what the round found before the run was interrupted within it. The network has
                changed since, so the stored state must follow from `found`, the images, the
                targets and the generator, without a pass through the network.
        """
        if self.wrapped is None:
            raise NotImplementedError
        return self.wrapped.store(network, images, targets, self.inner(context), found)

    def inner(self, context: StepContext) -> StepContext:
        """Returns the context that the base receives. Defaults to the same; a method whose `setup`
        adds to the base's state replaces `prepared`."""
        return context

    def embedded_by(self) -> str | None:
        """Returns the run, checkpoint folder or weights file of the frozen network whose features
        the method uses. Defaults to the base's, else None."""
        return self.wrapped.embedded_by() if self.wrapped else None

    def taught_by(self) -> str | None:
        """Returns the run, checkpoint folder or weights file of the frozen network whose
        predictions the method uses. Defaults to the base's, else None."""
        return self.wrapped.taught_by() if self.wrapped else None

    def front(self) -> nn.Module | None:
        """Returns a module to put in front of the network, included in checkpoint, attack and
        certificate. Defaults to the base's, else None."""
        return self.wrapped.front() if self.wrapped else None

    def noise(self) -> float | None:
        """Returns the sigma for certifying the network, or None if the method adds no smoothing
        noise. Defaults to the base's, else None."""
        return self.wrapped.noise() if self.wrapped else None


@dataclass(frozen=True, kw_only=True)
class Adversarial(Method):
    """A method whose step is an attack and then a loss on what it found. `awp` changes the weights
    between the two."""

    def find(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Any:
        """Returns what the attack found, without gradient; arguments as in `Method.loss`."""
        raise NotImplementedError

    def loss_at(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Tensor,
        context: StepContext,
        found: Any,
    ) -> Tensor:
        """Returns the scalar loss of the step, with no attack of its own.

        Args:
            network: as in `Method.loss`; may have other weights than the one attacked.
            images: as in `Method.loss`.
            targets: as in `Method.loss`.
            context: as in `Method.loss`.
            found: result of `find`.
        """
        raise NotImplementedError

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss on what the attack finds; see `Method.loss`."""
        found = self.find(network, images, targets, context)
        return self.loss_at(network, images, targets, context, found)

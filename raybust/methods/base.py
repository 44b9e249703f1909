"""The contract of a robust-training method.

A method is a frozen keyword-only dataclass whose fields are its hyper-parameters. It computes the
loss of one step and knows no device, no DDP and no Ray: it follows the device and dtype of its
input and draws from the generator that it is given. Stage method, between data and train.

Order of work on a batch, which methods that wrap another one keep: geometry, mixing or transport,
Lp noise, clamp to [0, 1], attack or Gaussian smoothing noise. Smoothing noise is never clamped and
always comes last.

Legend: B images of shape C x H x W, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raybust.config.options import Section


@dataclass
class StepContext:
    """What a method may use in a step, beside network, images and targets.

    Attributes:
        generator: source of all randomness of the step, on the images' device, another one on each
            DDP rank.
        progress: share of the training run that is done, in [0, 1).
        prepared: what the method's `setup` returned.
        metrics: scalars that the method wants logged; the loop averages them over the epoch.
            Tensors stay on the device and must not require a gradient. A sweep goes by those whose
            names begin with the method's key, `geodesic/distance`.
        embed: images (B, C, H, W) to features (B, D) of the frozen network that `embedded_by`
            names, None where it names none. Not a pass of the network under training.
    """

    generator: torch.Generator
    progress: float = 0.0
    prepared: Any = None
    metrics: dict[str, Tensor | float] = field(default_factory=dict)
    embed: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Method(Section):
    """Base of all methods. A method that wraps another one has a field `base: Method`; what it does
    not say of itself is as its base says."""

    key: ClassVar[str] = ""
    """The name of the method in a configuration: the name of its file, or of its entry point."""

    def __init_subclass__(cls) -> None:
        cls.key = cls.__module__.rpartition(".")[2]

    @property
    def wrapped(self) -> Method | None:
        """The method that this one wraps, or None."""
        base = getattr(self, "base", None)
        return base if isinstance(base, Method) else None

    @property
    def balanced_classes(self) -> int:
        """Classes that a batch must hold in equal numbers: the base's, else 0, any batch will
        do."""
        return self.wrapped.balanced_classes if self.wrapped else 0

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the loss of one step, a scalar whose gradient trains the network.

        Args:
            network: images (B, C, H, W) to logits (B, K), in train mode; calling it counts passes.
            images: (B, C, H, W) in [0, 1].
            targets: int64 (B,), or probabilities (B, K).
            context: generator, progress, prepared state.
        """
        raise NotImplementedError

    def setup(self, network: nn.Module, images: Tensor, targets: Tensor) -> Any:
        """Returns what is computed once before training and passed to each step as
        `context.prepared`: that of the method it wraps, else None.

        Args:
            network: the network before its first step.
            images: (B, C, H, W) in [0, 1], training images without augmentation, the same on every
                rank.
            targets: int64 (B,).
        """
        return self.wrapped.setup(network, images, targets) if self.wrapped else None

    def setup_images(self) -> int:
        """Returns how many images `setup` wants, at most, taken evenly over the training part: as
        many as the method it wraps, else 512."""
        return self.wrapped.setup_images() if self.wrapped else 512

    def embedded_by(self) -> str | None:
        """Returns the run, checkpoint folder or weights file of the frozen network whose features
        the method uses: that of the method it wraps, else None."""
        return self.wrapped.embedded_by() if self.wrapped else None

    def front(self) -> nn.Module | None:
        """Returns a module to put in front of the network: part of checkpoint, attack and
        certificate; that of the method it wraps, else None."""
        return self.wrapped.front() if self.wrapped else None

    def initial(self) -> str | None:
        """Returns the run, checkpoint folder or weights file from which the weights start: that of
        the method it wraps, else None, a fresh initialization."""
        return self.wrapped.initial() if self.wrapped else None

    def noise(self) -> float | None:
        """Returns the sigma at which the network is to be certified: that of the method it wraps,
        else None, where the method adds no such noise."""
        return self.wrapped.noise() if self.wrapped else None

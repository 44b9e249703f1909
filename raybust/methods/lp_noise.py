"""Random Lp-norm corruptions as training noise: Siedel, Shao, Vock and Morozov, "Investigating the
Corruption Robustness of Image Classifiers with Random Lp-norm Corruptions" (VISAPP 2024,
arXiv:2305.05400). Wraps any method: augmentation, mixing, Lp noise, clamp, then the base.

Each image draws its own (p, eps), noise and augmentation; the authors' code shares (p, eps) and
noise across eight images. The consistency loss is from Hendrycks et al., "AugMix" (ICLR 2020,
arXiv:1912.02781).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybust.config.options import option
from raybust.methods.base import Method, StepContext
from raybust.methods.standard import Standard
from raybust.numerics.balls import lp_noise, squares
from raybust.numerics.lp_sets import (
    CIFAR_SHAPE,
    LARGE_PATCH,
    SMALL_PATCH,
    LpSet,
    Shape,
    eps_of,
    named,
)
from raybust.numerics.modes import evaluating

_PATCHES = {"none": None, "large": LARGE_PATCH, "small": SMALL_PATCH}
_AUGMENTATIONS = {"trivial": "TrivialAugmentWide", "rand": "RandAugment", "augmix": "AugMix"}


class Prepared(NamedTuple):
    """Result of `setup`: the number of classes and the base's prepared state."""

    classes: int
    base: Any


@dataclass(frozen=True, kw_only=True)
class LpNoise(Method):
    """Loss of `base` on images with random Lp noise: clamp(x + u), u uniform in the p-ball of
    radius eps, (p, eps) drawn for each image from a set. For p = 0 a fraction eps of the entries is
    replaced. With `jsd`, the base sees clean images and only the consistency loss sees noise.
    """

    base: Method = field(default_factory=Standard)
    noises: Literal[
        "C1", "C2", "C3", "C1_patched", "C2_patched", "v1/C1", "v1/C2", "one", "rows"
    ] = option(
        "C2",
        "Paper's set for the image size, `v1/` of its first version; `one`: `p` with `eps` or "
        "`rms`; or the list `rows`.",
    )
    p: float = option(2.0, "Norm of `one`: 0 (impulses) to .inf.", ge=0, le=math.inf)
    eps: float | None = option(
        None, "Radius of `one` in its norm; for p = 0 the fraction of entries replaced.", ge=0
    )
    rms: float = option(
        0.03,
        "Size of `one` without `eps`: root mean square per entry; for p = 0, on a gray image.",
        ge=0,
        le=0.5,
        unit="pixels in [0, 1]",
    )
    rows: tuple[tuple[float, float], ...] = option(
        (), "The (p, eps) pairs of `rows`, for instance [[.inf, 0.02], [2, 1.0], [0, 0.01]]."
    )
    concurrent: int = option(
        1, "Different noises of the set that an image gets, one after the other.", ge=1
    )
    law: Literal["uniform", "laplace"] = option(
        "uniform",
        "Uniform in the ball; or `laplace`, no uniform law: the sampler of the first version of "
        "the paper, whose noises of all finite p > 0 have the same direction.",
    )
    clean: float = option(0.0, "Fraction of images without noise.", ge=0, le=1)
    sphere: bool = option(False, "Draw noise on the sphere of radius eps, not in the ball.")
    scaled: bool | None = option(
        None, "Whether to multiply eps by U(0, 1) per image; defaults to the set's setting."
    )
    patch: Literal["own", "none", "large", "small"] = option(
        "own", "Noise region: the set's own, all, or a square of 50-100 % or 20-70 % of the area."
    )
    impulse: Literal["auto", "binary", "uniform"] = option(
        "auto",
        "Values for p = 0: 0 or 1, or uniform; `auto`: uniform in the sets C1 to C3, as in their "
        "published runs, by the row in those of the first version, else binary.",
    )
    augment: Literal["none", "trivial", "rand", "augmix"] = option(
        "none", "torchvision augmentation applied before the noise, drawn per image."
    )
    mix: Literal["none", "mixup", "cutmix", "both"] = option(
        "none",
        "torchvision mixing of images and targets before the noise; `both`: one at random.",
    )
    mixup_alpha: float = option(0.2, "Parameter of the Beta distribution of mixup ratios.", gt=0)
    cutmix_alpha: float = option(1.0, "Parameter of the Beta distribution of CutMix areas.", gt=0)
    jsd: float = option(
        0.0,
        "Weight of the Jensen-Shannon divergence of clean and two noisy views; AugMix: 12.",
        ge=0,
    )

    def problems(self) -> list[str]:
        """Adds constraints across fields."""
        found = super().problems()
        if self.noises == "rows" and not self.rows:
            found.append("rows: got none, expected at least one [p, eps]")
        if self.noises == "one" and self.p == 0 and (self.eps or 0) > 1:
            found.append(f"eps: got {self.eps}, expected a share in [0, 1], because p is 0")
        given = {"one": 1, "rows": len(self.rows)}.get(self.noises)
        most = len(named(self.noises, CIFAR_SHAPE).rows) if given is None else given
        if self.concurrent > max(most, 1):
            found.append(
                f"concurrent: got {self.concurrent}, expected at most {most}, the number of noises"
                f" in {self.noises}"
            )
        for number, (p, eps) in enumerate(self.rows, 1):
            if not p >= 0:
                found.append(f"rows: got p = {p} in row {number}, expected 0 to .inf")
            elif not 0 <= eps < math.inf or (p == 0 and eps > 1):
                allowed = "a share in [0, 1], because p is 0" if p == 0 else "a number, >= 0"
                found.append(f"rows: got eps = {eps} in row {number}, expected {allowed}")
        if self.jsd and self.mix != "none":
            found.append("jsd: needs views of the same image, got mixed images; set mix=none")
        return found

    def setup(self, network: nn.Module, images: Tensor, targets: Tensor) -> Prepared:
        """Returns the number of classes and the base's prepared state; warns if images lie outside
        [0, 1]."""
        low, high = float(images.min()), float(images.max())
        if low < 0 or high > 1:
            warnings.warn(
                f"lp_noise: images from {low:.2f} to {high:.2f} look normalized; expected images in"
                " [0, 1], to which the noise clips",
                stacklevel=2,
            )
        classes = 0
        if self.mix != "none":
            with evaluating(network), torch.no_grad():
                classes = network(images[:1]).shape[1]
        return Prepared(classes, self.base.setup(network, images, targets))

    def inner(self, context: StepContext) -> StepContext:
        """Returns the context with the base's prepared state."""
        prepared: Prepared = context.prepared or Prepared(0, None)
        return dataclasses.replace(context, prepared=prepared.base)

    def loss(
        self, network: nn.Module, images: Tensor, targets: Tensor, context: StepContext
    ) -> Tensor:
        """Returns the base's loss, plus the consistency loss if `jsd` is set; see `Method.loss`."""
        inner = self.inner(context)
        if self.jsd:
            views = [self.corrupt(self._augmented(images, context), context) for _ in range(2)]
            consistency = jensen_shannon(network(torch.cat([images, *views])), 3)
            context.metrics["train/jsd"] = consistency.detach()
            return self.base.loss(network, images, targets, inner) + self.jsd * consistency
        seen, targets = self._mixed(self._augmented(images, context), targets, context)
        return self.base.loss(network, self.corrupt(seen, context), targets, inner)

    def corrupt(self, images: Tensor, context: StepContext) -> Tensor:
        """Returns the images with independent noise added to each: `concurrent` noises, drawn
        without replacement, clipped after each.

        The rms of the change measures the severity of an image's noise, for instance to set a
        label's confidence.

        Args:
            images: (B, C, H, W) in [0, 1].
            context: provides the generator.
        """
        noises = self.noise_set((images.shape[1], images.shape[2], images.shape[3]))
        scores = torch.rand(
            len(images), len(noises.rows), generator=context.generator, device=images.device
        )
        for drawn in scores.topk(self.concurrent).indices.unbind(1):
            images = self._corrupted(images, noises, drawn, context.generator)
        return images

    def _corrupted(
        self, images: Tensor, noises: LpSet, drawn: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Adds the noises of rows `drawn`, int64 (B,)."""
        count, device = len(images), images.device
        table = torch.tensor(noises.rows, dtype=torch.float64).to(device, non_blocking=True)
        p, eps = table[drawn].unbind(1)
        if noises.scaled:
            eps = eps * torch.rand(count, generator=generator, device=device)
        if self.clean:
            eps = eps * (torch.rand(count, generator=generator, device=device) >= self.clean)
        mask = None if noises.patch is None else squares(images, noises.patch, generator)
        return lp_noise(
            images,
            p,
            eps,
            generator=generator,
            sphere=self.sphere,
            binary=self._binary(noises, drawn),
            mask=mask,
            law=self.law,
        )

    def noise_set(self, shape: Shape) -> LpSet:
        """Returns the (p, eps) set for images of shape (C, H, W) and how to sample it."""
        if self.noises == "rows":
            chosen = LpSet(rows=tuple((p, eps) for p, eps in self.rows), shape=shape)
        elif self.noises == "one":
            eps = eps_of(self.p, self.rms, math.prod(shape)) if self.eps is None else self.eps
            chosen = LpSet(rows=((self.p, eps),), shape=shape)
        else:
            chosen = named(self.noises, shape)
        return dataclasses.replace(
            chosen,
            scaled=chosen.scaled if self.scaled is None else self.scaled,
            patch=chosen.patch if self.patch == "own" else _PATCHES[self.patch],
        )

    def _binary(self, noises: LpSet, drawn: Tensor) -> bool | Tensor:
        if self.impulse != "auto":
            return self.impulse == "binary"
        if noises.binary:
            return torch.tensor(noises.binary).to(drawn.device, non_blocking=True)[drawn]
        return self.noises in ("one", "rows")

    def _augmented(self, images: Tensor, context: StepContext) -> Tensor:
        """Applies an independent draw of torchvision's augmentation to each image (B, C, H, W).

        Runs on the CPU with 256 levels, as torchvision defines its operators.
        """
        if self.augment == "none":
            return images
        from raybust.vision import transforms

        operator = getattr(transforms(), _AUGMENTATIONS[self.augment])()
        levels = images.detach().mul(255).round().to("cpu", torch.uint8)
        with _seeded(context.generator):
            changed = torch.stack([operator(image) for image in levels])
        return changed.to(images.device, images.dtype).div_(255)

    def _mixed(
        self, images: Tensor, targets: Tensor, context: StepContext
    ) -> tuple[Tensor, Tensor]:
        """Mixes images and targets with their neighbors in the batch, with one ratio per batch, as
        in torchvision."""
        if self.mix == "none" or len(images) < 2:
            return images, targets
        from raybust.vision import transforms

        classes = targets.shape[1] if targets.ndim == 2 else context.prepared.classes
        with _seeded(context.generator):
            kind = self.mix
            if kind == "both":
                kind = "mixup" if torch.rand(()) < 0.5 else "cutmix"
            name, alpha = ("MixUp", self.mixup_alpha)
            if kind == "cutmix":
                name, alpha = ("CutMix", self.cutmix_alpha)
            mixing = getattr(transforms(), name)(alpha=alpha, num_classes=classes)
            mixed: tuple[Tensor, Tensor] = mixing(images, targets)
        return mixed


def jensen_shannon(logits: Tensor, views: int) -> Tensor:
    """Returns the Jensen-Shannon divergence of class probabilities between views of an image,
    averaged over images: mean_i KL(p_i || M), M the mean of the p_i.

    Args:
        logits: (views B, K), view by view.
        views: at least 2.
    """
    logs = logits.log_softmax(1).view(views, -1, logits.shape[1])
    mean = logs.exp().mean(0).clamp(1e-7, 1.0).log()  # the authors' clamp
    divergences = [F.kl_div(mean, log, reduction="batchmean", log_target=True) for log in logs]
    return torch.stack(divergences).mean()


@contextlib.contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Seeds the global CPU generator, which torchvision uses, from `generator` in the block."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield

"""One rank's training loop, independent of Ray: epochs of steps, validation, resumable state.

It uses torch.distributed if a process group exists. All randomness derives from (seed, epoch,
rank), so a resumed run continues bit for bit with the same number of workers.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raybust import config as configuration
from raybust import devices
from raybust.config import Config
from raybust.data import Batches, Dataset, mix, spread
from raybust.disk import checkpoint
from raybust.disk.pulse import Pulse
from raybust.errors import WorkError
from raybust.identity import code_of, fixed_images, outputs_of, same_function
from raybust.methods import StepContext
from raybust.training import initial
from raybust.training.average import STEADY, Average
from raybust.training.objective import Objective, assemble, smoothing_sigma
from raybust.training.optimizer import autocast, optimizer, schedule
from raybust.training.ranks import Ranks
from raybust.training.selection import Selection
from raybust.training.validation import measure, not_finite, whole

_CHECK_EVERY = 100


class Trainer:
    """One rank's part of a run: network, optimizer, batches, and the counters for resuming.

    Attributes:
        epoch: number of completed epochs.
        share: spent fraction of the run's budget (epochs, passes or seconds).
        selection: the epoch whose network the run uses so far.
        watch: called after every step.
        network: the network being trained, unwrapped.
        average: network with averaged weights if `train.ema` is on, else `network` itself.
    """

    def __init__(
        self, config: Config, dataset: Dataset, device: torch.device, resume: Path | None = None
    ) -> None:
        """Builds everything and loads the state of `resume` if given.

        Args:
            config: the complete configuration.
            dataset: result of `raybust.data.load`.
            device: this rank's device.
            resume: checkpoint folder, or None.
        """
        self.config, self.dataset, self.device = config, dataset, device
        self.ranks = Ranks.current(device)
        self.generator = torch.Generator(device)
        self.epoch, self.share, self._previous_share = 0, 0.0, 0.0
        self.metrics: dict[str, float] = {}
        self.selection = Selection(config.train.select)
        self.watch: Callable[[Pulse], None] = lambda pulse: None
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._found: list[Tensor] = []
        torch.manual_seed(config.seed)
        self.network = assemble(config, dataset)
        if resume is None:
            initial.initialize(self.network, config, dataset)
        self.network.to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema = config.train.ema
        self.averaging = Average(self.network, ema) if ema else None
        self.average = self.averaging.network if self.averaging else self.network
        if config.train.compile:
            self.network.compile()
        self.objective = Objective(self.network, config.method, autocast(config.train, device))
        self.objective.smoothing = config.train.label_smoothing, len(dataset.classes)
        self.objective.embed = initial.embedding(config, dataset, device)
        self.objective.teach = initial.teacher(config, dataset, device)
        images, labels = dataset.train.fetch(
            spread(len(dataset.train), config.method.setup_images())
        )
        self.objective.prepare(images.to(device), labels.to(device))
        self.batches = Batches(
            dataset.train,
            batch_size=config.train.batch_size,
            device=device,
            seed=config.seed,
            augment=dataset.augment,
            rank=self.ranks.rank,
            world=self.ranks.world,
            loader_workers=config.data.loader_workers,
            classes=config.train.batch_classes or config.method.balanced_classes,
            parts=config.train.accumulate,
            bad=config.data.bad,
        )
        self.optimizer = optimizer(config.train, self.network)
        if resume is not None:
            self._load(resume)
        self.wrapped: nn.Module = self.objective
        if self.ranks.world > 1:
            self.wrapped = DistributedDataParallel(self.objective)

    def begin_round(self) -> None:
        """Begins a round of the method if the coming epoch is the first of one, or the first of a
        resumed run. What a round found is kept in checkpoints; what it stores follows from it, so a
        resumed run with the same number of workers makes no further pass for it."""
        every = self.config.method.round_epochs()
        if not every:
            return
        first = self.epoch - self.epoch % every
        if self.epoch > first and self.objective.stored is not None:
            return
        known = self.epoch > first and len(self._found) == self.ranks.world
        draw = torch.Generator(self.device)
        draw.manual_seed(mix(self.config.seed, "round", first, self.ranks.rank))
        batches = list(self.batches.epoch(first))
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        context = StepContext(draw, self.share)
        before = self._found[self.ranks.rank].to(self.device) if known else None
        found = self.objective.refresh(images, labels, context, before)
        if not known:
            self._found = self.ranks.gather(found)
            for key, value in context.metrics.items():
                self._log(key, value)

    def step(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Trains on one batch of this rank and returns its detached loss.

        Args:
            images: (B, C, H, W) in [0, 1], on the device.
            labels: int64 (B,).
            progress: completed fraction of the run, in [0, 1).
        """
        train, rate = self.config.train, self.rate(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = images.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad(set_to_none=True)
        parts = list(
            zip(images.chunk(train.accumulate), labels.chunk(train.accumulate), strict=True)
        )
        losses = []
        for number, part in enumerate(parts, 1):
            with self._reduced_at(number == len(parts)):
                loss: Tensor = self.wrapped(*part, self.generator, progress) / len(parts)
                loss.backward()
            losses.append(loss.detach())
            for key, value in self.objective.metrics.items():
                self._log(key, value)
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if train.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.network.parameters(), train.clip_norm, norm)
        self._log("train/gradient_norm", norm)
        self.optimizer.step()
        if self.averaging:
            self.averaging.follow(self.network, progress)
        return torch.stack(losses).sum()

    def rate(self, progress: float) -> float:
        """Returns the learning rate at a completed fraction of the run."""
        return self.config.train.rate * schedule(self.config.train, progress)

    def _reduced_at(self, last: bool) -> AbstractContextManager[None]:
        """Context of a backward pass in which DDP averages gradients over the ranks only at a
        step's last part."""
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            return nullcontext()
        return self.wrapped.no_sync()

    def _log(self, key: str, value: Tensor | float) -> None:
        """Adds a value to the epoch's mean of a metric."""
        total, count = self._sums.get(key, (torch.zeros((), device=self.device), 0))
        self._sums[key] = total + value, count + 1

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.share >= 1

    def train_epoch(self) -> str | None:
        """Trains one epoch, stopping early when the budget is spent; returns why training cannot
        continue, or None."""
        self.objective.train()
        self.generator.manual_seed(mix(self.config.seed, self.epoch, self.ranks.rank))
        # Layers like dropout draw from torch's own generator.
        torch.manual_seed(mix(self.config.seed, "network", self.epoch, self.ranks.rank))
        devices.watch_memory(self.device)
        self._previous_share = self.share
        previous, started = self.metrics.get("train/seconds", 0.0), time.perf_counter()
        loss_sum = torch.zeros((), device=self.device)
        self._sums = {}
        self.begin_round()
        for number, (images, labels) in enumerate(self.batches.epoch(self.epoch), 1):
            loss_sum += self.step(images, labels, self.share)
            self.share = self._spent(number, previous + time.perf_counter() - started)
            over = self.done or number == self.batches.steps
            steps = number if over else self.batches.steps
            self.watch(Pulse(self.epoch + 1, number, steps, self.share))
            if over or number % _CHECK_EVERY == 0:
                mean = self.ranks.mean(loss_sum / number)
                if not math.isfinite(mean):
                    return self._diverged(number, f"the loss became {mean}")
            if over:
                break
        if self.averaging:
            self.averaging.end_epoch(self.network)
        self.objective.agree(self.ranks)
        if self.ranks.sum(not_finite(self.average, self.dataset.validation, self.device)) > 0:
            return self._diverged(number, "the network became NaN or infinite")
        seconds = time.perf_counter() - started
        self.share = self._spent(number, previous + seconds)
        self.epoch += 1
        self.metrics = {
            "epoch": float(self.epoch),
            "train/loss": mean,
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/seconds": previous + seconds,
            "validation/seconds": self.metrics.get("validation/seconds", 0.0),
            "train/images_per_second": number * self.batches.batch_size / seconds,
            **devices.peak_memory(self.device),
            **self._passes(),
            **self.ranks.means(self._sums | self.batches.facts()),
        }
        return None

    def validate(self) -> dict[str, float]:
        """Returns the epoch's training metrics and those of `raybust.training.validation`."""
        started = time.perf_counter()
        found = measure(
            self.average, self.dataset.validation, self.config, self.ranks,
            epoch=self.epoch, before=self._previous_share, spent=self.share,
        )  # fmt: skip
        self.metrics.update(found)
        self.metrics["validation/seconds"] += time.perf_counter() - started
        complete = whole(self.config, self.epoch, self._previous_share, self.share)
        self.selection.consider(self.epoch, self.metrics, whole=complete)
        return dict(self.metrics)

    def _spent(self, steps: int, seconds: float) -> float:
        """Returns the spent fraction of the budget, identical on every rank.

        Args:
            steps: completed steps of the current epoch.
            seconds: training time so far on this rank.
        """
        unit, amount = self.config.train.budget
        if unit == "epoch":
            return (self.epoch * self.batches.steps + steps) / (amount * self.batches.steps)
        if unit == "train/seconds":
            return self.ranks.mean(torch.tensor(seconds / amount))
        return self._passes()[unit] / amount

    def _passes(self) -> dict[str, float]:
        """Returns the passes of all ranks so far. Ranks may differ, because the number of images
        that a method passes through the network can depend on their labels."""
        network = self.objective.network
        forward, backward = (
            self.ranks.sum(torch.tensor(count, dtype=torch.float64))
            for count in (network.forward_passes, network.backward_passes)
        )
        return {
            "passes/forward": forward,
            "passes/backward": backward,
            "passes/per_image": (forward + backward) / len(self.dataset.train),
        }

    @functools.cached_property
    def code(self) -> tuple[float, ...]:
        """Fingerprint of the network's code, which stays the same in this process."""
        return code_of(self.average, self.dataset.shape)

    def save(self, folder: Path, *, resumable: bool = True) -> None:
        """Writes a checkpoint of the current state into an existing folder.

        Args:
            folder: in which it is written.
            resumable: whether a run can resume from it; else it has weights and manifest alone.
        """
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "optimizer": self.optimizer.state_dict(),
            "passes": [int(self.metrics[f"passes/{way}"]) for way in ("forward", "backward")],
        }
        if self.averaging:
            state["network"] = self.network.state_dict()
            state["averaged"] = self.averaging.steps
        if self._found:
            state["found"] = self._found
        if self.objective.memory:
            state["memory"] = self.objective.memory
        manifest = {
            "config": configuration.to_dict(self.config),
            "classes": list(self.dataset.classes),
            "shape": list(self.dataset.shape),
            "outputs": outputs_of(self.average, fixed_images(self.dataset.shape)),
            "code": self.code,
            "data_digest": self.dataset.digest,
            "epoch": self.epoch,
            "done": self.done,
            "metrics": self.metrics,
            "sigma": smoothing_sigma(self.config),
            "workers": self.ranks.world,
            **self.selection.chosen(),
        }
        weights = self.average.state_dict()
        checkpoint.write(folder, weights, state if resumable else None, manifest)

    def _load(self, folder: Path) -> None:
        state = checkpoint.read_state(folder)
        self.average.load_state_dict(checkpoint.read_weights(folder))
        if self.averaging:
            self.network.load_state_dict(state["network"])
            # Checkpoints of raybust 0.1 lack the steps; its decay was constant.
            self.averaging.steps = state.get("averaged", STEADY)
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self._found = state["epoch"], state.get("found", [])
        memory = state.get("memory", {})
        self.objective.memory = {name: value.to(self.device) for name, value in memory.items()}
        manifest = checkpoint.read_manifest(folder)
        self.metrics = manifest["metrics"]
        self.selection.restore(manifest)
        if not same_function(self.average.eval(), manifest):
            raise WorkError(
                f"the network no longer computes what it did after epoch {self.epoch}: its code"
                " changed while the run was interrupted"
            )
        if self.ranks.rank == 0:  # totals over all ranks; only the sum matters
            counted = self.objective.network
            counted.forward_passes, counted.backward_passes = state["passes"]
        self.share = self._spent(0, self.metrics["train/seconds"])

    def _diverged(self, step: int, what: str) -> str:
        kept = f"the checkpoint of epoch {self.epoch}" if self.epoch else "no checkpoint"
        return (
            f"{what} in epoch {self.epoch + 1}, by step {step}; {kept} was kept; "
            f"lower train.lr (now {self.config.train.rate:g}) or train.clip_norm"
            f" (now {self.config.train.clip_norm or 'null: no clipping'})"
        )

"""The typed schema: one frozen section per pipeline stage, each field with docs and a domain.

Methods are not here: each method's dataclass (`raybust.methods`) is the schema of its
hyperparameters, and `raybust.config.compose` puts it in the field `method`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raybust.config.assess import (
    Certify,
    Corruptions,
    Evaluate,
    FastAttack,
    FastBounds,
    FastCertify,
)
from raybust.config.inputs import Data, Model
from raybust.config.measured import CHEAP, SECTIONS, measured, selecting
from raybust.config.options import Section, option
from raybust.config.tune import Tune
from raybust.errors import unknown

_RATES, _BATCH = {"sgd": 0.05, "adamw": 0.002}, 128
"""Default peak learning rates, and the batch size that they are for."""
_LONGEST_NAME = 200
"""Bytes. Folder names may have 255; lock files and runs moved aside need some of them."""


@dataclass(frozen=True, kw_only=True)
class Train(Section):
    """The training loop."""

    epochs: int = option(30, "Number of training epochs; `passes` or `seconds` replaces it.", ge=1)
    passes: float | None = option(
        None,
        "Budget in forward and backward passes per training image (a standard epoch takes 2): the "
        "same work for every method.",
        gt=0,
    )
    seconds: float | None = option(
        None, "Budget in training seconds; the result then depends on the machine.", gt=0, unit="s"
    )
    batch_size: int = option(128, "Images per step across all workers.", ge=1, unit="images")
    batch_classes: int | None = option(
        None,
        "Classes per batch, each with batch_size / batch_classes images; default: any images, or "
        "what the method requires. A class with too few images repeats them.",
        ge=1,
    )
    optimizer: Literal["sgd", "adamw"] = option("sgd", "SGD with Nesterov momentum, or AdamW.")
    lr: float | None = option(
        None,
        "Peak learning rate; default: 0.05 for sgd and 0.002 for adamw, times the square root of"
        " `batch_size` / 128.",
        gt=0,
    )
    momentum: float = option(0.9, "Momentum of SGD, beta1 of AdamW.", ge=0, lt=1)
    weight_decay: float = option(5e-4, "Weight decay, applied to matrices and kernels only.", ge=0)
    schedule: Literal["cosine", "step", "one_cycle", "constant"] = option(
        "cosine", "Learning-rate schedule."
    )
    warmup: float = option(0.0, "Fraction of steps with linear warmup.", ge=0, lt=1)
    milestones: tuple[float, ...] = option(
        (0.5, 0.75), "Fractions of the run at which `step` decays.", gt=0, lt=1
    )
    gamma: float = option(0.1, "Decay factor of `step`.", gt=0, le=1)
    accumulate: int = option(
        1,
        "Equal parts of a batch that are computed one after another, for batches that do not fit"
        " into memory; batch norm and methods that combine images see one part at a time.",
        ge=1,
    )
    clip_norm: float | None = option(
        2.0,
        "Maximum gradient norm; null: no clipping.",
        gt=0,
    )
    ema: float = option(
        0.0,
        "Largest decay of the weight average, which replaces the weights, for instance 0.995: the"
        " decay of step t is min(ema, (1 + t) / (10 + t)) after 2.5 % of the run. 0: off.",
        ge=0,
        lt=1,
    )
    label_smoothing: float = option(
        0.0,
        "Share s of the uniform distribution in the labels of the loss, (1 - s) y + s / K; attacks"
        " and bounds keep the labels.",
        ge=0,
        lt=1,
    )
    init: str | None = option(
        None,
        "Initial weights: a run, a trial SWEEP/7, a checkpoint folder, a weights file, or "
        "torchvision:NAME or timm:NAME.TAG whose weights are on disk. Where the classes differ, "
        "the last layer stays new.",
    )
    precision: Literal["auto", "float32", "bf16"] = option(
        "auto", "Autocast precision; `auto` is bf16 on a GPU that supports it, float32 elsewhere."
    )
    compile: bool = option(False, "Whether to torch.compile the network.")
    keep: int = option(2, "Number of newest checkpoints to keep.", ge=2)
    select: str = option(
        "last",
        "Epoch whose network the run uses: `last`, or the one with the largest value of a"
        " validation metric, such as `attacked_fast/robust_accuracy`, among the epochs in which"
        " every enabled measurement is made.",
    )

    @property
    def rate(self) -> float:
        """The peak learning rate: `lr`, or the default of optimizer and batch (our choice)."""
        if self.lr is not None:
            return self.lr
        return _RATES[self.optimizer] * math.sqrt(self.batch_size / _BATCH)

    @property
    def budget(self) -> tuple[str, float]:
        """The metric that measures the budget, and its limit."""
        if self.passes is not None:
            return "passes/per_image", self.passes
        if self.seconds is not None:
            return "train/seconds", self.seconds
        return "epoch", float(self.epochs)

    def problems(self) -> list[str]:
        """Adds checks across fields."""
        found = super().problems()
        if self.passes is not None and self.seconds is not None:
            found.append("passes: set together with `seconds`, expected only one of them")
        return found


@dataclass(frozen=True, kw_only=True)
class Cluster(Section):
    """Resources of one training run on the Ray cluster."""

    workers: int = option(1, "DDP workers per run.", ge=1)
    cpus_per_worker: float = option(1.0, "CPUs per worker.", gt=0)
    gpus_per_worker: float | None = option(
        None, "GPUs per worker; default: 1 if the cluster has any.", ge=0
    )
    storage: str | None = option(
        None, "Folder or URI (s3://...) for Ray's checkpoints; default: `out`."
    )
    max_failures: int = option(2, "Maximum number of restarts after a worker dies.", ge=0)


@dataclass(frozen=True, kw_only=True)
class Track(Section):
    """Where MLflow stores the runs."""

    uri: str | None = option(
        None, "Tracking URI; default: $MLFLOW_TRACKING_URI, then OUT/mlflow.db."
    )
    experiment: str = option("raybust", "MLflow experiment.")


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """A complete experiment; `method` is an instance of a method's dataclass."""

    method: Any = None
    name: str | None = option(
        None, "Name of the run or sweep; default: derived from the configuration."
    )
    out: str = option("runs", "Folder for all output; shared by the nodes of a cluster.")
    seed: int = option(
        0, "Seed of weights, batch order, augmentation and training noise.", ge=0, lt=2**63
    )
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    certified_fast: FastCertify = field(default_factory=FastCertify)
    certified_linf_fast: FastBounds = field(default_factory=FastBounds)
    attacked_fast: FastAttack = field(default_factory=FastAttack)
    certify: Certify = field(default_factory=Certify)
    evaluate: Evaluate = field(default_factory=Evaluate)
    corruptions: Corruptions = field(default_factory=Corruptions)
    cluster: Cluster = field(default_factory=Cluster)
    track: Track = field(default_factory=Track)
    tune: Tune = field(default_factory=Tune)

    def problems(self) -> list[str]:
        """Adds checks across sections."""
        found = super().problems()
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            found.append(f"name: got {self.name!r}, expected letters, digits, '.', '_' and '-'")
        elif self.name is not None and len(self.name.encode()) > _LONGEST_NAME:
            found.append(f"name: got {self.name!r}, expected at most {_LONGEST_NAME} bytes")
        if "://" in self.out:
            found.append(
                f"out: got {self.out!r}, expected a folder; a URI belongs in cluster.storage"
            )
        found += self._metric_problems()
        found += self._selection_problems()
        batch, workers = self.train.batch_size, self.cluster.workers
        if batch % workers:
            found.append(
                f"train.batch_size: got {batch}, expected a multiple of cluster.workers = {workers}"
            )
        if self.train.label_smoothing and self.method and self.method.round_epochs():
            found.append(
                f"train.label_smoothing: got {self.train.label_smoothing:g}, expected 0, because"
                f" {self.method.key} stores images with their labels in rounds"
            )
        classes = self.train.batch_classes
        if classes and batch % (classes * workers):
            found.append(
                f"train.batch_size: got {batch}, expected a multiple of train.batch_classes times"
                f" cluster.workers = {classes * workers}"
            )
        for key, part in (("certify", self.certify), ("certified_fast", self.certified_fast)):
            if part.alpha ** (1 / part.n) <= 0.5:
                found.append(
                    f"{key}.n: got {part.n}, which certifies nothing at alpha = {part.alpha};"
                    " take more samples"
                )
        return found

    def _selection_problems(self) -> list[str]:
        """Returns the problem with the metric that selects the epoch, if there is one."""
        metric = self.train.select
        known = selecting(self.certified_fast, self.attacked_fast, self.certified_linf_fast)
        if metric in ("last", *known):
            return []
        section = metric.partition("/")[0]
        if section in CHEAP and not getattr(self, section).every:
            return [
                f"train.select: got {metric!r}, which is never measured; set {section}.every=0.05,"
                " a twentieth of the budget"
            ]
        problems = unknown("metric", metric, ["last", *known]).problems
        return [f"train.select: {text}" for text in problems]

    def _metric_problems(self) -> list[str]:
        """Returns the problems with metrics that a sweep uses but no epoch reports; metrics of
        methods are checked in `raybust.search.goals`."""
        known = measured(self.certified_fast, self.attacked_fast, self.certified_linf_fast)
        found = []
        for field_name, metric in self.tune.asked():
            section, slash, _ = metric.partition("/")
            of_method = slash and section not in SECTIONS
            if not of_method and metric not in known:
                problems = unknown("metric", metric, known).problems
                found += [f"tune.{field_name}: {text}" for text in problems]
                if section in ("attacked_fast", "certified_linf_fast"):
                    found[-1] += f"; {section}.every=0.05 measures it"
        return found


def upgraded(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a stored configuration with the keys of today: `train.init` was `method.init` of
    `beckman` in raybust 0.1."""
    found: list[str] = []

    def moved(method: Any) -> Any:
        if not isinstance(method, Mapping):
            return method
        gone = {"init"} if method.get("name") == "beckman" else set()
        found.extend(method[key] for key in gone & method.keys() if method[key])
        return {key: moved(v) if key == "base" else v for key, v in method.items()
                if key not in gone}  # fmt: skip

    method = moved(plain.get("method"))
    train = plain.get("train", {}) | ({"init": found[0]} if found else {})
    return {**plain, "train": train, "method": method} if "method" in plain else plain

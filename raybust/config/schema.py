"""The typed schema: one frozen section per stage of the arrow, every field documented and with its
domain.

The method is not here: each method's own dataclass is the schema of its hyper-parameters
(`raybust.methods`), and `raybust.config.compose` puts it in the field `method`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from raybust.config.assess import Certify, Corruptions, Evaluate, FastAttack, FastCertify
from raybust.config.measured import SECTIONS, measured
from raybust.config.options import Section, option
from raybust.config.tune import Tune
from raybust.errors import unknown

_LONGEST_NAME = 200
"""Bytes; a folder's name may have 255, of which a lock file and what is kept aside take some."""


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """Which images, how they are split, how they are augmented."""

    name: str = option("digits", "Dataset, see `raybust datasets`.")
    path: str | None = option(None, "File of `npz`, folder of `image_folder`.")
    root: str = option("data", "Folder in which torchvision's datasets are kept.")
    download: bool = option(False, "Whether a dataset that is not in `root` may be downloaded.")
    validation: float = option(
        0.1, "Share of the training set held out; search sees only this part.", gt=0, lt=1
    )
    split_seed: int = option(
        0, "Seed of that cut, apart from `seed` so that training seeds share it.", ge=0
    )
    limit: int | None = option(
        None, "Use only the first so many training images (after the cut).", ge=1
    )
    augment: Literal["default", "none", "flip", "crop", "crop_flip"] = option(
        "default", "Geometric augmentation of training batches; `default` is the dataset's own."
    )
    image_size: int = option(
        224, "Side to which images of `image_folder` are resized and cropped.", ge=1, unit="pixels"
    )
    background: tuple[float, ...] = option(
        (0.5,),
        "What is behind transparent pixels of `image_folder`: a gray, or red, green and blue.",
        ge=0,
        le=1,
    )
    orientation: bool = option(
        True, "Whether images of `image_folder` are turned as their EXIF data say."
    )
    loader_workers: int = option(
        4, "Decoding processes per training worker (streamed datasets only).", ge=0
    )

    def problems(self) -> list[str]:
        """Rules beyond one field's domain."""
        found = super().problems()
        if len(self.background) not in (1, 3):
            found.append(f"background: got {list(self.background)}, expected one value or three")
        return found


@dataclass(frozen=True, kw_only=True)
class Model(Section):
    """Which network; its input size, channels and classes follow the data."""

    name: str = option(
        "small_cnn",
        "Network, see `raybust models`; `torchvision:NAME`, `timm:NAME`, `module:callable`.",
    )
    width: int = option(32, "Channels of the first block of `small_cnn`.", ge=1, le=1024)
    mean: tuple[float, ...] | None = option(
        None, "Mean of the normalizing first layer, a channel; the dataset's own where not given."
    )
    std: tuple[float, ...] | None = option(
        None, "Standard deviation of that layer; the dataset's own where not given.", gt=0
    )


@dataclass(frozen=True, kw_only=True)
class Train(Section):
    """The training loop."""

    epochs: int = option(
        30, "Times that the training set is seen; `passes` or `seconds` take its place.", ge=1
    )
    passes: float | None = option(
        None,
        "Budget of forward and backward passes a training image (an epoch of standard training is "
        "2): the same work for every method.",
        gt=0,
    )
    seconds: float | None = option(
        None, "Budget of training seconds; the result depends on the machine.", gt=0, unit="s"
    )
    batch_size: int = option(128, "Images per step over all workers together.", ge=1, unit="images")
    batch_classes: int | None = option(
        None,
        "Classes in a step's batch, with batch_size / batch_classes images each; where not given, "
        "any images, or what the method asks for. A class of too few repeats images.",
        ge=1,
    )
    optimizer: Literal["sgd", "adamw"] = option("sgd", "SGD with Nesterov momentum, or AdamW.")
    lr: float = option(0.05, "Peak learning rate.", gt=0)
    momentum: float = option(0.9, "Momentum of SGD, first moment of AdamW.", ge=0, lt=1)
    weight_decay: float = option(5e-4, "Weight decay, on matrices and kernels only.", ge=0)
    schedule: Literal["cosine", "step", "one_cycle", "constant"] = option(
        "cosine", "Learning rate over the run."
    )
    warmup: float = option(0.0, "Share of all steps with a linearly rising rate.", ge=0, lt=1)
    milestones: tuple[float, ...] = option(
        (0.5, 0.75), "Shares of the run at which `step` decays.", gt=0, lt=1
    )
    gamma: float = option(0.1, "Factor of each decay of `step`.", gt=0, le=1)
    clip_norm: float | None = option(
        None, "Bound on the norm of the gradient; none where not given.", gt=0
    )
    ema: float = option(
        0.0,
        "Decay per step of averaged weights; 0 is off. The average is what is kept.",
        ge=0,
        lt=1,
    )
    precision: Literal["auto", "float32", "bf16"] = option(
        "auto", "Autocast of the network; `auto` is bf16 on a GPU that has it, float32 elsewhere."
    )
    compile: bool = option(False, "Whether torch.compile compiles the network.")
    keep: int = option(2, "Checkpoints kept on disk, the newest ones.", ge=2)

    @property
    def budget(self) -> tuple[str, float]:
        """The metric in which a run's budget counts, and how much of it the run has."""
        if self.passes is not None:
            return "passes/per_image", self.passes
        if self.seconds is not None:
            return "train/seconds", self.seconds
        return "epoch", float(self.epochs)

    def problems(self) -> list[str]:
        """Rules across fields, beside the fields' own."""
        found = super().problems()
        if self.passes is not None and self.seconds is not None:
            found.append("passes: got it and `seconds`, expected one of them")
        return found


@dataclass(frozen=True, kw_only=True)
class Cluster(Section):
    """What one training run takes of the Ray cluster."""

    workers: int = option(1, "DDP workers of a run.", ge=1)
    cpus_per_worker: float = option(1.0, "CPUs of each worker.", gt=0)
    gpus_per_worker: float | None = option(
        None, "GPUs of each; 1 where the cluster has any, if not given.", ge=0
    )
    storage: str | None = option(
        None, "Folder or URI (s3://...) in which Ray keeps checkpoints; `out` where not given."
    )
    max_failures: int = option(2, "Times that a run is taken up again after a worker died.", ge=0)


@dataclass(frozen=True, kw_only=True)
class Track(Section):
    """Where MLflow keeps the runs."""

    uri: str | None = option(
        None, "Tracking URI; $MLFLOW_TRACKING_URI, then OUT/mlflow.db where not given."
    )
    experiment: str = option("raybust", "Experiment of MLflow.")


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """One experiment, whole. `method` is an instance of a method's dataclass."""

    method: Any = None
    name: str | None = option(
        None, "Name of the run or sweep; made from the configuration where not given."
    )
    out: str = option("runs", "Folder under which everything lands; a shared one on a cluster.")
    seed: int = option(
        0, "Seed of weights, batch order, augmentation and training noise.", ge=0, lt=2**63
    )
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    certified_fast: FastCertify = field(default_factory=FastCertify)
    attacked_fast: FastAttack = field(default_factory=FastAttack)
    certify: Certify = field(default_factory=Certify)
    evaluate: Evaluate = field(default_factory=Evaluate)
    corruptions: Corruptions = field(default_factory=Corruptions)
    cluster: Cluster = field(default_factory=Cluster)
    track: Track = field(default_factory=Track)
    tune: Tune = field(default_factory=Tune)

    def problems(self) -> list[str]:
        """Rules across sections, beside the fields' own."""
        found = super().problems()
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            found.append(f"name: got {self.name!r}, expected letters, digits, '.', '_' and '-'")
        elif self.name is not None and len(self.name.encode()) > _LONGEST_NAME:
            found.append(f"name: got {self.name!r}, expected at most {_LONGEST_NAME} letters")
        if "://" in self.out:
            found.append(
                f"out: got {self.out!r}, expected a folder; a URI belongs in cluster.storage"
            )
        found += self._metric_problems()
        batch, workers = self.train.batch_size, self.cluster.workers
        if batch % workers:
            found.append(
                f"train.batch_size: got {batch}, expected a multiple of cluster.workers = {workers}"
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
                    " take more draws"
                )
        return found

    def _metric_problems(self) -> list[str]:
        """A sweep optimizes what every epoch reports; who knows the methods that are searched holds
        metrics of other sections against them."""
        known = measured(self.certified_fast, self.attacked_fast)
        found = []
        for field_name, metric in self.tune.asked():
            section, slash, _ = metric.partition("/")
            theirs = slash and section not in SECTIONS
            if not theirs and metric not in known:
                problems = unknown("metric", metric, known).problems
                found += [f"tune.{field_name}: {text}" for text in problems]
                if section == "attacked_fast":
                    found[-1] += "; attacked_fast.every=0.05 measures it"
        return found

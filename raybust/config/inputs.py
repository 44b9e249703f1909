"""The sections `data` and `model`: which images, and which network.

The sources of `raybust.data` read the first, the networks of `raybust.models` the second. What is
said of the images also decides what the network looks like: its channels, size and classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raybust.config.options import Section, option


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """Which images to use, and how to split and augment them."""

    name: str = option("digits", "Dataset; see `raybust datasets`.")
    path: str | None = option(
        None,
        "File for `npz`, folder for `image_folder`; file, folder, pattern or URI for `parquet` and"
        " `webdataset`.",
    )
    train: str | None = option(
        None,
        "Pattern of the training files of `parquet` and `webdataset`, below `path` if that is set;"
        " default: by the names of the files.",
    )
    root: str = option("data", "Folder for torchvision's datasets.")
    download: bool = option(False, "Whether to download a dataset missing from `root`.")
    validation: float | str = option(
        0.1,
        "Fraction of the training set held out; search sees only this part. For `parquet` and"
        " `webdataset` also a pattern of files.",
        gt=0,
        lt=1,
    )
    test: float | str | None = option(
        None,
        "Pattern of the test files of `parquet` and `webdataset`, or the fraction of the training"
        " files that is cut for testing if there are none.",
        gt=0,
        lt=1,
    )
    bad: float = option(
        0.001,
        "Fraction of the training images that may be unreadable (streamed datasets only): they are"
        " counted in `train/unreadable`, and another image of the batch stands in.",
        ge=0,
        lt=1,
    )
    columns: tuple[str, ...] = option(
        ("image", "label"), "Columns of the images and of the labels of `parquet`."
    )
    split_seed: int = option(
        0, "Seed of that split, separate from `seed` so that training seeds share it.", ge=0
    )
    limit: int | None = option(
        None, "Number of training images to use: the first ones after the split.", ge=1
    )
    augment: Literal["default", "none", "flip", "crop", "crop_flip"] = option(
        "default",
        "Geometric augmentation of training batches; `default` is the dataset's own, for"
        " image files crop_flip from an `image_size` of 64 on, none below.",
    )
    image_size: int = option(
        224, "Size to which image files are resized and cropped.", ge=1, unit="pixels"
    )
    background: tuple[float, ...] = option(
        (0.5,),
        "Color behind transparent pixels of image files: one gray, or red, green and blue.",
        ge=0,
        le=1,
    )
    orientation: bool = option(True, "Whether to apply the EXIF orientation of image files.")
    loader_workers: int = option(
        4,
        "Decoding processes per training worker, at most one per CPU (streamed datasets only).",
        ge=0,
    )

    def problems(self) -> list[str]:
        """Adds checks beyond the field domains."""
        found = super().problems()
        if len(self.background) not in (1, 3):
            found.append(f"background: got {list(self.background)}, expected one value or three")
        if len(self.columns) != 2 or len(set(self.columns)) != 2:
            found.append(f"columns: got {list(self.columns)}, expected [IMAGE, LABEL]")
        return found


@dataclass(frozen=True, kw_only=True)
class Model(Section):
    """Which network to use; its input size, channels and classes follow from the data."""

    name: str = option(
        "small_cnn",
        "Network; see `raybust models`, or `torchvision:NAME`, `timm:NAME`, `module:callable`.",
    )
    width: int = option(32, "Channels of the first block of `small_cnn`.", ge=1, le=1024)
    activation: Literal["relu", "silu", "softplus"] = option(
        "relu", "Activation of the built-in networks; silu and softplus are smooth."
    )
    mean: tuple[float, ...] | None = option(
        None, "Per-channel mean used by the normalization layer; default: the dataset's."
    )
    std: tuple[float, ...] | None = option(
        None, "Per-channel standard deviation used by that layer; default: the dataset's.", gt=0
    )

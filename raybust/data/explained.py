"""How the files of each dataset have to lie, which settings it reads, and a command to start from:
what `raybust datasets NAME` says.

Of datasets from other packages, what they need is all that is known.
"""

from __future__ import annotations

from dataclasses import fields

from raybust.config.inputs import Data
from raybust.data.packaged import NAMES as PACKAGED

_CUT = ("validation", "split_seed", "limit")
_IMAGES = ("image_size", "augment", "background", "orientation", "loader_workers")
_SHARDS = ("path", "train", "validation", "test", "split_seed", "limit", *_IMAGES)
_DOWNLOADED = ("root", "download", *_CUT, "augment")

_LAYOUTS = {
    "digits": "in the package scikit-learn",
    "npz": "one file with x_train, y_train, x_test, y_test, and optionally x_val, y_val, "
    "class_names; images uint8, bool, or floats in [0, 1], (N, H, W), (N, H, W, C) or (N, C, H, W)",
    "image_folder": "FOLDER/train/CLASS/*.jpg with val/CLASS/*.jpg (or valid, validation), "
    "test/CLASS/*.jpg, or both; or Tiny ImageNet or Places365 as published",
    "parquet": "files with a column image (bytes, a struct with the field bytes, or arrays) and a "
    "column label (class index or name); train, val, validation, or test in the names of the "
    "files or folders, or patterns",
    "webdataset": "uncompressed tar files of KEY.jpg (png, webp, ...) and KEY.cls or KEY.json; "
    "train, val, validation, or test in the names of the files or folders, or patterns",
    **dict.fromkeys(PACKAGED, "torchvision's files below data.root"),
}
_OPTIONS = {
    "digits": (*_CUT, "augment"),
    "npz": ("path", *_CUT, "augment"),
    "image_folder": ("path", *_CUT, *_IMAGES),
    "parquet": (*_SHARDS, "columns"),
    "webdataset": _SHARDS,
    **dict.fromkeys(PACKAGED, _DOWNLOADED),
}
_EXAMPLES = {
    "digits": "raybust train data.name=digits",
    "npz": "raybust train data.name=npz data.path=pictures.npz",
    "image_folder": "raybust train data.name=image_folder data.path=pictures data.image_size=224",
    "parquet": "raybust train data.name=parquet data.path=flowers data.image_size=224",
    "webdataset": "raybust train data.name=webdataset "
    "data.path='s3://BUCKET/imagenet/{train,val}-*.tar'",
    **{name: f"raybust train data.name={name} data.download=true" for name in PACKAGED},
}


def explain(name: str) -> dict[str, str]:
    """Returns layout, settings and an example of a dataset; nothing for one of another package.

    Args:
        name: of an existing dataset.
    """
    if name not in _LAYOUTS:
        return {}
    order = [field.name for field in fields(Data)]
    options = sorted(_OPTIONS[name], key=order.index)
    return {
        "layout": _LAYOUTS[name],
        "settings": " ".join(f"data.{option}" for option in options),
        "example": _EXAMPLES[name],
    }

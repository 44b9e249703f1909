"""All datasets by name, and `load`: read, check, cut.

No option changes the test set. The validation set is a stratified share of the official
training set, chosen by `data.split_seed` alone, so that runs with other training seeds share it.

Installed packages register datasets in the entry-point group `raybust.datasets`: each entry-point
name is a dataset name and each value a `Source`, or a callable that is its `read`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raybust import plugins
from raybust.config.inputs import Data
from raybust.data import arrays, folder, kept, layout, packaged, shards, streamed
from raybust.data.labels import without_images
from raybust.data.splits import Dataset, Part, Split, channel_moments, first, hold_out
from raybust.errors import RequestError, unknown


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is known of a dataset before it is read.

    Attributes:
        read: returns its official parts.
        about: what it is, and its citation.
        needs: what the user has to give, "" where nothing.
        path: whether `data.path` is a file, a folder, or any location of files with these parts in
            patterns; "" where it is not asked for.
        augment: augmentation of training batches where `data.augment` is "default".
        augment_from: smallest `data.image_size` with that default, none below it.
        shape: (C, H, W), None if it depends on the files.
        classes: K, None if it depends on the files.
        examples: sizes of the official training and test set, None if it depends on the files.
        moments: published mean and standard deviation per channel, in units of [0, 1]; None where
            they are computed from the training part.
    """

    read: Callable[[Data], arrays.Parts]
    about: str
    needs: str = ""
    path: Literal["", "file", "folder", "files"] = ""
    augment: str = "none"
    augment_from: int = 0
    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    examples: tuple[int, int] | None = None
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def names() -> list[str]:
    """Returns the names that `data.name` takes, sorted."""
    return sorted(_SOURCES.keys() | plugins.points(_GROUP).keys())


def describe(name: str) -> dict[str, Any]:
    """Returns what is known of a dataset, without reading it: name, shape (C, H, W), classes,
    examples (of training and test set), about, needs, augment; None if it depends on the files.

    Raises:
        RequestError: no such dataset.
    """
    source = _source(name)
    fields = ("shape", "classes", "examples", "about", "needs", "augment")
    return {"name": name, **{field: getattr(source, field) for field in fields}}


def check(config: Data, *, local: bool = True) -> None:
    """Checks name and path of the section `data`, and the layout of a folder of images; reads no
    data.

    Args:
        config: the section.
        local: whether the data are read on this machine, so that the path has to be here.

    Raises:
        RequestError: no such dataset, none at its path, or a folder without known layout.
    """
    source = _source(config.name)
    if source.path == "files":
        if config.path is None and config.train is None:
            raise RequestError(f"data.path: got null, expected files; pass {source.needs}")
        shards.check(config, local=local)
        return
    if config.name in _SOURCES:
        shards.check_unused(config)
    if not source.path:
        if config.path is not None and config.name in _SOURCES:
            raise RequestError(
                f"data.path: got {config.path!r}, but dataset {config.name} does not read it; set"
                " data.name=npz for a file of arrays, data.name=image_folder for a folder of images"
            )
        return
    if config.path is None:
        raise RequestError(f"data.path: got null, expected a {source.path}; pass {source.needs}")
    path = folder.path_of(config)
    if local and not (path.is_dir() if source.path == "folder" else path.is_file()):
        raise RequestError(f"data.path: there is no {source.path} '{path}'")
    if local and source.read is folder.image_folder:
        layout.check_layout(path)


def load(config: Data, out: Path | None = None) -> Dataset:
    """Returns the dataset that the section `data` asks for.

    Args:
        config: the section.
        out: folder of the runs, if listings of files are to be kept there.

    Raises:
        RequestError: no such dataset, not there, not what it should be, or a cut that leaves
            nothing.
    """
    check(config)
    with kept.beside(out):
        return load_source(_source(config.name), config)


def load_source(source: Source, config: Data) -> Dataset:
    """Returns the dataset of a source, cut as the section `data` asks for.

    Args:
        source: what `config.name` names, whatever that is.
        config: the section.

    Raises:
        RequestError: as `load`.
    """
    parts = source.read(config)
    if parts.train.labels.bincount().count_nonzero() < 2:
        raise RequestError(
            f"data.name={config.name}: all training images are of one class, expected two or more"
        )
    train, validation = _cut(parts.train, parts.validation, config)
    if isinstance(train, Split) and source.moments is None:
        mean, std = channel_moments(train.images, train.scale)
    else:
        mean, std = source.moments or ((), ())
    return Dataset(
        name=config.name,
        classes=parts.classes,
        shape=train.shape,
        mean=mean,
        std=std,
        augment=_augment(source, config),
        train=train,
        validation=validation,
        test=parts.test,
        notes=(
            *_parts_line(parts, train, validation, config), *parts.notes,
            *without_images(parts.train.labels, parts.test.labels, parts.classes, "test"),
        ),
    )  # fmt: skip


def _augment(source: Source, config: Data) -> str:
    if config.augment != "default":
        return config.augment
    return source.augment if config.image_size >= source.augment_from else "none"


def _parts_line(parts: arrays.Parts, train: Part, validation: Part, config: Data) -> list[str]:
    """Returns the sizes of the parts and where they come from, as one line."""
    if parts.validation is None:
        origin = f"cut from the training set by data.split_seed={config.split_seed}"
    else:
        origin = "the data set's own"
    limited = "" if config.limit is None else f" (data.limit={config.limit})"
    return [
        f"{config.name}{': ' * bool(parts.layout)}{parts.layout}; {len(train)} training images"
        f"{limited}, {len(validation)} for validation ({origin}), {len(parts.test)} for testing"
    ]


def _cut(train: Part, validation: Part | None, config: Data) -> tuple[Part, Part]:
    if validation is None:
        if not isinstance(config.validation, float):
            raise RequestError(
                "data.validation: its files are the test set as no other has labels; pass"
                " data.test=PATTERN too"
            )
        stays, held = hold_out(train.labels, config.validation, "validation", config.split_seed)
        if len(held) == 0:
            raise RequestError(
                f"data.validation: got {config.validation:g} of {len(train)} training images, "
                "which holds out none; pass a larger share, or more images of each class"
            )
        train, validation = train.select(stays), train.select(held)
    if config.limit is not None and config.limit < len(train):
        train = train.select(first(train.labels, config.limit, "limit", config.split_seed))
    return train, validation


def source_of(thing: Any, what: str, about: str) -> Source:
    """Returns the source that a package offers; it refuses parts that are none.

    Args:
        thing: a `Source`, or a callable that is its `read`.
        what: start of an error's text.
        about: of a callable.

    Raises:
        RequestError: it is neither; later, `read` raises or returns no parts of a dataset.
    """
    if not (isinstance(thing, Source) or callable(thing)):
        raise RequestError(
            f"{what} is a {type(thing).__name__}, expected a raybust.data.Source, or a callable"
            " from the section `data` to raybust.data.Parts"
        )
    source = thing if isinstance(thing, Source) else Source(read=thing, about=about)

    def read(config: Data) -> arrays.Parts:
        with plugins.one_line(f"{what} fails"):
            parts = source.read(config)
        wrong = arrays.wrong_parts(parts)
        if wrong is None and isinstance(parts.train, streamed.Streamed) and not source.moments:
            wrong = "a streamed training part, for which `Source` has to give `moments`"
        if wrong is not None:
            raise RequestError(f"{what} gives {wrong}")
        return parts

    return replace(source, read=read)


def _source(name: str) -> Source:
    point = plugins.find(_GROUP, name, _SOURCES)
    if point is not None:
        thing = plugins.load(point)
        source = source_of(thing, plugins.described(point), plugins.summary(point, thing))
        if isinstance(thing, Source):
            source = replace(source, about=f"{source.about} ({plugins.origin(point)})")
        return source
    if name not in _SOURCES:
        raise unknown("dataset", name, names())
    return _SOURCES[name]


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GROUP = "raybust.datasets"
_FETCH = "its files in data.root, or data.download=true"
_SOURCES = {
    "digits": Source(
        read=arrays.digits,
        about="8x8 handwritten digits of scikit-learn; E. Alpaydin and C. Kaynak, 'Optical "
        "Recognition of Handwritten Digits', UCI, 1998. The test set is a fixed stratified fifth.",
        shape=(1, 8, 8),
        classes=10,
        examples=(1438, 359),
    ),
    "npz": Source(
        read=arrays.npz,
        about="Your own arrays: x_train, y_train, x_test, y_test and, if you like, class_names.",
        needs="data.path=FILE.npz",
        path="file",
    ),
    "image_folder": Source(
        read=folder.image_folder,
        about="Image files, decoded on demand: class folders like ImageNet, Tiny ImageNet, "
        "Places365.",
        needs="data.path=FOLDER",
        path="folder",
        augment="crop_flip",
        augment_from=64,
        moments=_IMAGENET,
    ),
    "parquet": Source(
        read=shards.parquet,
        about="Parquet files with a column of images and one of labels, as hubs export image sets; "
        "a path, a pattern, or a URI.",
        needs="data.path=FOLDER, or data.train=PATTERN and data.test=PATTERN",
        path="files",
        augment="crop_flip",
        augment_from=64,
        moments=_IMAGENET,
    ),
    "webdataset": Source(
        read=shards.webdataset,
        about="Tar shards of KEY.jpg (png, webp) with KEY.cls or KEY.json, the form of WebDataset; "
        "a path, a pattern, or a URI.",
        needs="data.path=FOLDER, or data.train=PATTERN and data.test=PATTERN",
        path="files",
        augment="crop_flip",
        augment_from=64,
        moments=_IMAGENET,
    ),
    "mnist": Source(
        read=packaged.packaged,
        about="Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, 'Gradient-Based Learning Applied to "
        "Document Recognition', Proc. IEEE, 1998.",
        needs=_FETCH,
        shape=(1, 28, 28),
        classes=10,
        examples=(60_000, 10_000),
        moments=((0.1307,), (0.3081,)),
    ),
    "fashion_mnist": Source(
        read=packaged.packaged,
        about="H. Xiao, K. Rasul and R. Vollgraf, 'Fashion-MNIST', 2017, arXiv:1708.07747.",
        needs=_FETCH,
        augment="flip",
        shape=(1, 28, 28),
        classes=10,
        examples=(60_000, 10_000),
        moments=((0.2860,), (0.3530,)),
    ),
    "cifar10": Source(
        read=packaged.packaged,
        about="A. Krizhevsky, 'Learning Multiple Layers of Features from Tiny Images', 2009.",
        needs=_FETCH,
        augment="crop_flip",
        shape=(3, 32, 32),
        classes=10,
        examples=(50_000, 10_000),
        moments=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ),
    "cifar100": Source(
        read=packaged.packaged,
        about="A. Krizhevsky, 'Learning Multiple Layers of Features from Tiny Images', 2009.",
        needs=_FETCH,
        augment="crop_flip",
        shape=(3, 32, 32),
        classes=100,
        examples=(50_000, 10_000),
        moments=((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ),
    "svhn": Source(
        read=packaged.packaged,
        about="Y. Netzer et al., 'Reading Digits in Natural Images with Unsupervised Feature "
        "Learning', 2011.",
        needs=_FETCH,
        augment="crop",
        shape=(3, 32, 32),
        classes=10,
        examples=(73_257, 26_032),
        moments=((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    ),
}

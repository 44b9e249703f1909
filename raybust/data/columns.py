"""Parquet files in the form in which hubs export image sets: a column of images, as bytes, as
struct {bytes, path} or as arrays, and a column of labels, as integers or names.

Only footers and labels are read here; images are read by row groups when they are needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from raybust.data.groups import ParquetFiles, open_parquet
from raybust.data.packed import Labeled
from raybust.data.places import File
from raybust.errors import RequestError

PARQUET = (".parquet", ".pq")
_NAMES = b"huggingface"
"""Key of a file's metadata in which the `datasets` library keeps the names of the classes."""


def read_files(files: Sequence[File], columns: Sequence[str]) -> Labeled:
    """Returns the examples of parquet files, in the order of the files and their rows.

    Args:
        files: of one part.
        columns: names of the column of the images and of that of the labels.

    Raises:
        RequestError: a file is no parquet file, lacks a column, or has another form of it.
    """
    image, label = columns
    labels: list[Any] = []
    rows, owners, sizes = list[int](), list[tuple[int, int]](), list[int]()
    paths, names = set[str](), set[tuple[str, ...] | None]()
    for at, file in enumerate(files):
        with open_parquet(file) as source:
            paths.add(_image_path(source.schema_arrow, image, label, file))
            names.add(_class_names(source.schema_arrow, label))
            if len(paths) > 1 or len(names) > 1:
                what = "images in another form" if len(paths) > 1 else "other class names"
                raise RequestError(f"{file.path}: has {what} than '{files[0].path}'")
            footer = source.metadata
            at_column = _leaf(footer, next(iter(paths)))
            for group in range(footer.num_row_groups):
                part = footer.row_group(group)
                if part.num_rows:
                    rows.append(part.num_rows)
                    owners.append((at, group))
                    sizes.append(part.column(at_column).total_uncompressed_size)
            labels += _labels(source, label, file)
    if not rows:
        raise RequestError(f"{files[0].path}: has no rows")
    counts = torch.tensor(rows)
    shelf = ParquetFiles(
        tuple(files), paths.pop(), counts.cumsum(0) - counts, torch.tensor(owners),
        torch.tensor(sizes),
    )  # fmt: skip
    return Labeled(shelf, labels, names.pop())


def _image_path(schema: Any, image: str, label: str, file: File) -> str:
    """Returns the path of the column that holds the images: the column, or its field `bytes`."""
    import pyarrow.types as types

    missing = [name for name in (image, label) if name not in schema.names]
    if missing:
        raise RequestError(
            f"{file.path}: lacks the column {' and '.join(missing)}; it has"
            f" {', '.join(schema.names)}; pass data.columns=[IMAGE,LABEL]"
        )
    kind = _storage(schema.field(image).type)
    if types.is_struct(kind):
        if kind.get_field_index("bytes") < 0 or not _is_bytes(kind.field("bytes").type):
            raise RequestError(
                f"{file.path}: the column {image} is {kind}, expected a struct with the field bytes"
            )
        return f"{image}.bytes"
    if _is_bytes(kind):
        return image
    leaf = kind
    while types.is_list(leaf) or types.is_large_list(leaf) or types.is_fixed_size_list(leaf):
        leaf = leaf.value_type
    if leaf is kind or not (types.is_integer(leaf) or types.is_floating(leaf)):
        raise RequestError(
            f"{file.path}: the column {image} is {kind}, expected bytes, a struct with the field"
            " bytes, or arrays"
        )
    return image


def _storage(kind: Any) -> Any:
    """Returns the type in which an extension type, such as an array of fixed shape, is stored."""
    return getattr(kind, "storage_type", kind)


def _is_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    )


def _leaf(footer: Any, path: str) -> int:
    """Returns the number of the first leaf column of a path."""
    names = [footer.schema.column(at).path for at in range(footer.num_columns)]
    return next(at for at, name in enumerate(names) if name == path or name.startswith(f"{path}."))


def _labels(source: Any, label: str, file: File) -> list[Any]:
    """Returns the labels of a file, as integers or texts; None where there is none."""
    import pyarrow as pa
    import pyarrow.types as types

    try:
        column = source.read(columns=[label], use_threads=False).column(0)
    except (pa.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{file.path}: its labels cannot be read ({reason})") from None
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (types.is_integer(column.type) or types.is_string(column.type)
            or types.is_large_string(column.type)):  # fmt: skip
        raise RequestError(
            f"{file.path}: the column {label} is {column.type}, expected integers or names"
        )
    found: list[Any] = column.to_pylist()
    return found


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Returns the names of the classes, where the file's metadata has them."""
    try:
        features = json.loads((schema.metadata or {})[_NAMES])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None

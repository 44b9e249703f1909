"""Which files a path, a pattern or a URI names.

Credentials come from the environment alone: a location that holds some is refused, so none is
written to a run, a log or MLflow.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raybust.data.listing import hidden, shown
from raybust.data.stores import BUCKETS, File, attempted, remote, store_of
from raybust.errors import RequestError

_SPECIAL = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST = 1_000_000


def check_location(text: str, key: str) -> None:
    """Refuses a URI that could hold a credential, without repeating it.

    Args:
        text: path, pattern or URI.
        key: of the configuration, for the error.

    Raises:
        RequestError: it has a user, a password or a query.
    """
    if not remote(text):
        return
    parts = urlsplit(text)
    if "@" in parts.netloc or parts.query:
        clean = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise RequestError(
            f"{key}: the URI of '{clean}' has a user, password or query, which would be stored with"
            " every run; give credentials in the environment, for instance AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY"
        )


def joined(folder: str | None, pattern: str) -> str:
    """Returns a pattern below a folder; absolute ones and URIs stay as they are."""
    if folder is None or remote(pattern) or os.path.isabs(os.path.expanduser(pattern)):
        return pattern
    return f"{folder.rstrip('/')}/{pattern}"


def find(text: str, endings: Sequence[str], key: str) -> list[File]:
    """Returns the files of a location, sorted by path.

    Args:
        text: a file, a folder with files at any depth, or a pattern with *, [a-z], {000..015} or
            {a,b}, and ? where it is no URI.
        endings: of the files that count in a folder, lower case.
        key: of the configuration, for errors.

    Raises:
        RequestError: there is none, or the store cannot be read.
    """
    check_location(text, key)
    paths = list(_expanded(text, key))
    found = [file for path in paths for file in _find_one(path, endings, key)]
    unique = {file.path: file for file in found}
    return [unique[path] for path in sorted(unique)]


def _expanded(text: str, key: str) -> Iterator[str]:
    """Yields the patterns that braces stand for; a local path that exists means itself."""
    braces = _BRACES.search(text)
    if braces is None or (not remote(text) and os.path.exists(os.path.expanduser(text))):
        yield text
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if span:
        low, high = int(span[1]), int(span[2])
        if not low <= high < low + _MOST:
            raise RequestError(f"{key}: got {braces[0]}, expected {{FIRST..LAST}} in rising order")
        options = [str(number).zfill(len(span[1])) for number in range(low, high + 1)]
    else:
        options = braces[1].split(",")
    for option in options:
        yield from _expanded(text[: braces.start()] + option + text[braces.end() :], key)


def _find_one(text: str, endings: Sequence[str], key: str) -> list[File]:
    if remote(text):
        return _find_remote(text, endings, key)
    try:
        path = Path(text.removeprefix("file://")).expanduser().absolute()
    except RuntimeError:
        raise RequestError(f"{key}: got {text!r}, but there is no such user") from None
    if path.is_file():
        return [_local(str(path))]
    if path.is_dir():
        found = []
        for place, folders, files in os.walk(path, followlinks=True):
            folders[:] = sorted(name for name in folders if not hidden(name))
            found += [
                os.path.join(place, name)
                for name in files
                if name.lower().endswith(tuple(endings)) and not hidden(name)
            ]
        if not found:
            raise RequestError(f"{key}: '{shown(path)}' has no files {' or '.join(endings)}")
        return [_local(file) for file in found]
    if _SPECIAL.search(str(path)):
        matches = [name for name in glob.glob(str(path), recursive=True) if os.path.isfile(name)]
        if matches:
            return [_local(name) for name in matches]
        raise RequestError(f"{key}: no file matches '{shown(path)}'")
    raise RequestError(f"{key}: there is no file or folder '{shown(path)}'")


def _local(path: str) -> File:
    stat = os.stat(path)
    return File(path, stat.st_size, stat.st_mtime_ns)


def _find_remote(text: str, endings: Sequence[str], key: str) -> list[File]:
    from pyarrow import fs

    scheme = urlsplit(text).scheme
    special = _SPECIAL.search(text)
    if special and scheme in ("http", "https"):
        raise RequestError(
            f"{key}: got '{text}', but {scheme} servers list no files; name them, for instance as"
            " train-{000..015}.tar"
        )
    base = text[: special.start()].rpartition("/")[0] if special else text
    store, path = store_of(base)

    def ask() -> list[Any]:
        info = store.get_file_info(path)
        if special or info.type == fs.FileType.Directory:
            inside = store.get_file_info(fs.FileSelector(path, recursive=True))
            return [one for one in inside if one.type == fs.FileType.File]
        return [info] if info.type == fs.FileType.File else []

    rest = base[: len(base) - len(path)] if base.endswith(path) else f"{scheme}://"
    found = [(f"{rest}{one.path}", one) for one in attempted(ask, f"{key}: '{text}'")]
    if special:
        found = [(uri, one) for uri, one in found if fnmatch.fnmatchcase(uri, text)]
    elif len(found) != 1 or found[0][0] != text:
        found = [(uri, one) for uri, one in found if uri.lower().endswith(tuple(endings))]
    if not found:
        bucket = urlsplit(text).netloc
        if scheme in BUCKETS and store.get_file_info(bucket).type == fs.FileType.NotFound:
            raise RequestError(f"{key}: '{text}': there is no bucket '{bucket}'")
        raise RequestError(f"{key}: there are no files {' or '.join(endings)} at '{text}'")
    return [File(uri, int(one.size or 0), int(one.mtime_ns or 0)) for uri, one in found]

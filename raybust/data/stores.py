"""Files on this machine or in a store, read at any place.

`s3://` and `gs://` are opened by pyarrow, other schemes (`http://`, `https://`, ...) by fsspec.
Requests that fail are repeated a few times.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from raybust.data.listing import shown
from raybust.errors import RequestError

T = TypeVar("T")

_ATTEMPTS, _PAUSE_S = 3, 0.5
"""Attempts of a request to a store, and the pause after the first, doubled after each (our
choice)."""
_TIMEOUT_S = 20.0
_OPEN = 128
"""Files that a process holds open (our choice; systems allow 1,024)."""
BUCKETS = ("s3", "gs")
_CHECKED_S = 30.0
"""Seconds after which a file of a store is asked for its size and time again (our choice)."""


@dataclass(frozen=True)
class File:
    """A file as it was found.

    Attributes:
        path: absolute path, or URI.
        size: in bytes.
        changed: time of its last change in ns; 0 where the store does not tell.
    """

    path: str
    size: int
    changed: int


def remote(text: str) -> bool:
    """Returns whether a location is in a store."""
    return "://" in text and not text.startswith("file://")


def store_of(uri: str) -> tuple[Any, str]:
    """Returns the file system of a URI, and the path of the URI in it.

    Raises:
        RequestError: no installed package knows the scheme.
    """
    parts = urlsplit(uri)
    path = f"{parts.netloc}{parts.path}".rstrip("/")
    if parts.scheme in BUCKETS:
        return _store(parts.scheme, os.getpid()), path
    store = _store(parts.scheme, os.getpid())
    return store, store.handler.fs._strip_protocol(uri)


@functools.lru_cache(maxsize=8)
def _store(scheme: str, process: int) -> Any:
    """Returns the file system of a scheme; each process has its own, as connections do not survive
    a fork."""
    from pyarrow import fs

    if scheme == "s3":
        retry = fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return fs.S3FileSystem(
            endpoint_override=endpoint,
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            retry_strategy=retry,
            connect_timeout=_TIMEOUT_S,
            request_timeout=_TIMEOUT_S,
        )
    if scheme == "gs":
        return fs.GcsFileSystem()
    import fsspec

    try:
        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))
    except (ValueError, ImportError) as error:
        raise RequestError(f"data.path: {scheme}://: {' '.join(str(error).split())}") from None


def attempted(call: Callable[[], T], what: str) -> T:
    """Returns the result of a request to a store, repeated a few times where it fails.

    Args:
        call: the request.
        what: start of an error's text.

    Raises:
        RequestError: it failed for good.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return call()
        except (OSError, TimeoutError) as error:
            reason, final = _reason(error)
            if final or attempt + 1 == _ATTEMPTS:
                times = "" if final else f" {_ATTEMPTS} times"
                raise RequestError(f"{what}: cannot be read{times}: {reason}") from None
        time.sleep(_PAUSE_S * 2**attempt)
    raise AssertionError


def _reason(error: BaseException) -> tuple[str, bool]:
    """Returns why a store did not answer, and whether another attempt is of no use."""
    text = " ".join(str(error).split())
    low = text.lower()
    if "no_such_bucket" in low or "nosuchbucket" in low or "bucket does not exist" in low:
        return "there is no such bucket", True
    if isinstance(error, PermissionError) or "access_denied" in low or "forbidden" in low:
        return "no right to read it; give credentials in the environment", True
    if isinstance(error, FileNotFoundError) or "resource_not_found" in low:
        return "it is not there", True
    return text[:200] or type(error).__name__, False


class Opened:
    """A file that is open for reading at any place, by several threads.

    A change of the file since it was found is an error, as its parts would not belong together. A
    file on this machine is checked whenever it is read, one in a store at intervals.
    """

    def __init__(self, file: File) -> None:
        """Opens a file.

        Raises:
            RequestError: it is not there, cannot be read, or has changed.
        """
        self.file, self._descriptor, self._stream = file, -1, None
        if remote(file.path):
            store, path = store_of(file.path)
            self._stream = attempted(lambda: store.open_input_file(path), file.path)
        else:
            try:
                self._descriptor = os.open(file.path, os.O_RDONLY)
            except OSError as error:
                raise _unreadable(file, error) from None
        self.check()

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Returns bytes of the file.

        Raises:
            RequestError: the file has changed, is shorter, or cannot be read.
        """
        stream = self._stream
        if stream is not None:
            if time.monotonic() - self._checked > _CHECKED_S:
                self.check()
            content = attempted(lambda: bytes(stream.read_at(length, offset)), self.file.path)
        else:
            self.check()
            try:
                content = os.pread(self._descriptor, length, offset)
            except OSError as error:
                raise _unreadable(self.file, error) from None
        if len(content) != length:
            raise RequestError(f"{shown(self.file.path)}: ends before byte {offset + length}")
        return content

    def check(self) -> None:
        """Checks that the file is as it was found.

        Raises:
            RequestError: it has changed, or a store does not answer.
        """
        self._checked = time.monotonic()
        if self._stream is None:
            try:
                stat = os.stat(self.file.path)
            except OSError as error:
                raise _unreadable(self.file, error) from None
            now = stat.st_size, stat.st_mtime_ns
        else:
            store, path = store_of(self.file.path)
            info = attempted(lambda: store.get_file_info(path), self.file.path)
            now = int(info.size or 0), int(info.mtime_ns or 0)
        if now != (self.file.size, self.file.changed):
            raise RequestError(
                f"{shown(self.file.path)}: has changed since it was listed; start again when"
                " nothing writes to it"
            )


def _unreadable(file: File, error: OSError) -> RequestError:
    return RequestError(f"{shown(file.path)}: cannot be read: {error.strerror or error}")


def opened(file: File) -> Opened:
    """Returns a file of this process, open for reading; some stay open."""
    return _opened(os.getpid(), file)


@functools.lru_cache(maxsize=_OPEN)
def _opened(process: int, file: File) -> Opened:
    return Opened(file)

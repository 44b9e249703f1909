"""A finished log goes on with more examples of its protocol: 1,000 after 100 cost 900."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from raybust import identity
from raybust.disk.rowlog import OtherProtocolError, RowLog

L = TypeVar("L", bound=RowLog[Any, Any])


def extended(
    log: Callable[[Path, Any], L],
    path: Path,
    protocol: Any,
    bind: Callable[[Any], Any],
    kept: Callable[[Any], Collection[int]],
) -> L:
    """Opens or creates the log of a protocol. A log of fewer examples, otherwise of the same
    protocol, function, images and labels, goes on.

    Args:
        log: opens or creates it, see `RowLog`.
        path: its file.
        protocol: bound to the network and the data.
        bind: returns a protocol bound to them.
        kept: returns the indices of the examples whose rows a log of more examples shares with that
            of the given protocol.

    Raises:
        OtherProtocolError: the file differs in anything else. It is left unchanged.
        RequestError: see `RowLog`.
    """
    try:
        return log(path, protocol)
    except OtherProtocolError:
        with path.open(encoding="utf-8") as file:
            before = identity.fields_of(file.readline().removeprefix("# ")).get("examples")
        if before is None or (protocol.examples is not None and before >= protocol.examples):
            raise
    fewer = bind(dataclasses.replace(protocol, examples=before))
    return log(path, fewer).carry(protocol, kept(fewer))

"""Composes search spaces: `include` and `each` in the `search` block of a file.

    include: [_training]                      adds the domains of _training.yaml, next to this file
    method.name: {each: [gaussian, pgd]}      a choice that adds the `method.*` domains of each
                                              method's file, conditional on choosing it

Domains added by `each` are named `KEY@METHOD`, because methods share parameter names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybust.config.compose import read_yaml
from raybust.errors import RequestError

SEARCH, _INCLUDE, _EACH = "search", "include", "each"


def expand(block: Any, path: Path, parents: tuple[Path, ...] = ()) -> Any:
    """Returns a `search` block with its includes expanded and nothing else checked.

    Args:
        block: the block as read.
        path: its file.
        parents: the files that include this one, outermost first.

    Raises:
        RequestError: an included file cannot be read, has no such block, or includes itself.
    """
    if not isinstance(block, Mapping):
        return block
    found: dict[str, Any] = {}
    chain = (*parents, path)
    for key, entry in block.items():
        if key == _INCLUDE:
            for name in _names(entry, f"{path}: search: include"):
                found |= _read_block(name, chain)
        elif isinstance(entry, Mapping) and _EACH in entry:
            names = _names(entry[_EACH], f"{path}: search: {key}: each")
            found[key] = {"choice": names} | {k: v for k, v in entry.items() if k != _EACH}
            for name in names:
                found |= _conditional(str(key), name, _read_block(name, chain))
        else:
            found[key] = entry
    return found


def _conditional(key: str, name: str, block: dict[str, Any]) -> dict[str, Any]:
    """Returns the domains of one method's parameters, conditional on key = name."""
    section = key.rpartition(".")[0] + "."
    found = {}
    for line, entry in block.items():
        if line == key or not line.startswith(section):
            continue
        label = f"{line}.{name}" if "@" in line else f"{line}@{name}"
        whole = entry if isinstance(entry, Mapping) else {"choice": entry}
        found[label] = {**whole, "when": {key: name, **whole.get("when", {})}}
    return found


def _read_block(name: str, chain: tuple[Path, ...]) -> dict[str, Any]:
    """Returns the expanded block of a file next to the last one in a chain of includes."""
    path = chain[-1]
    other = path.with_name(f"{name}.yaml")
    if other in chain:
        names = ", ".join(file.stem for file in (*chain[chain.index(other) :], other))
        raise RequestError(f"{path}: search: these files include each other: {names}; remove one")
    if not other.exists():
        found = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise RequestError(f"{path}: search: no {other.name} next to it; available: {found}")
    block = read_yaml(str(other)).get(SEARCH)
    if not isinstance(block, Mapping):
        raise RequestError(f"{path}: search: {other.name} has no `search` block to include")
    expanded: dict[str, Any] = expand(block, other, chain)
    return expanded


def _names(entry: Any, where: str) -> list[str]:
    if not isinstance(entry, list) or not entry or not all(isinstance(n, str) for n in entry):
        raise RequestError(f"{where}: got {entry!r}, expected a list of file names without .yaml")
    for name in entry:
        if Path(name).name != name:
            raise RequestError(f"{where}: got {name!r}, expected the name of a file next to it")
    return entry

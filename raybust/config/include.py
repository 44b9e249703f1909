"""Search spaces that are made of others: `include` and `each` in the block `search` of a file.

    include: [_training]                      domains of _training.yaml, beside this file
    method.name: {each: [gaussian, pgd]}      a choice, and of each method's own file every domain
                                              of `method.*`, under the condition that it is chosen

A domain that came through `each` stands as `KEY@METHOD`, because methods share names of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybust.config.compose import read_yaml
from raybust.errors import RequestError

SEARCH, _INCLUDE, _EACH = "search", "include", "each"


def expand(block: Any, path: Path, above: tuple[Path, ...] = ()) -> Any:
    """Returns a block `search` with what it includes in place; what else is wrong in it stays.

    Args:
        block: as the file has it.
        path: of the file.
        above: the files that include this one, the outermost first.

    Raises:
        RequestError: a file that is included cannot be read, has no such block, or includes itself.
    """
    if not isinstance(block, Mapping):
        return block
    found: dict[str, Any] = {}
    chain = (*above, path)
    for key, entry in block.items():
        if key == _INCLUDE:
            for name in _names(entry, f"{path}: search: include"):
                found |= _block(name, chain)
        elif isinstance(entry, Mapping) and _EACH in entry:
            names = _names(entry[_EACH], f"{path}: search: {key}: each")
            found[key] = {"choice": names} | {k: v for k, v in entry.items() if k != _EACH}
            for name in names:
                found |= _under(str(key), name, _block(name, chain))
        else:
            found[key] = entry
    return found


def _under(key: str, name: str, block: dict[str, Any]) -> dict[str, Any]:
    """Returns the domains of one method's parameters under the condition key = name."""
    section = key.rpartition(".")[0] + "."
    found = {}
    for line, entry in block.items():
        if line == key or not line.startswith(section):
            continue
        label = f"{line}.{name}" if "@" in line else f"{line}@{name}"
        whole = entry if isinstance(entry, Mapping) else {"choice": entry}
        found[label] = {**whole, "when": {key: name, **whole.get("when", {})}}
    return found


def _block(name: str, chain: tuple[Path, ...]) -> dict[str, Any]:
    """Returns the block of a file beside the last one of a chain of files that include the next."""
    path = chain[-1]
    other = path.with_name(f"{name}.yaml")
    if other in chain:
        names = ", ".join(file.stem for file in (*chain[chain.index(other) :], other))
        raise RequestError(f"{path}: search: these files include each other: {names}; remove one")
    if not other.exists():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise RequestError(f"{path}: search: there is no {other.name} beside it; there is: {there}")
    block = read_yaml(str(other)).get(SEARCH)
    if not isinstance(block, Mapping):
        raise RequestError(f"{path}: search: {other.name} has no block `search` to include")
    found: dict[str, Any] = expand(block, other, chain)
    return found


def _names(entry: Any, where: str) -> list[str]:
    if not isinstance(entry, list) or not entry or not all(isinstance(n, str) for n in entry):
        raise RequestError(f"{where}: got {entry!r}, expected a list of files' names without .yaml")
    for name in entry:
        if Path(name).name != name:
            raise RequestError(f"{where}: got {name!r}, expected the name of a file beside it")
    return entry

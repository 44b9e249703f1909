"""The settings of a command as its help lists them; no method, network or dataset is imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import get_type_hints

from raybust.config import Config, default_of, domain


def section_types() -> dict[str, type]:
    """Returns the dataclass of each section of the configuration."""
    found = get_type_hints(Config).items()
    return {name: kind for name, kind in found if hasattr(kind, "__dataclass_fields__")}


def names() -> list[str]:
    """Returns the keys of the configuration, of methods only `method.name`."""
    found = [f"{name}.{field}" for name, kind in section_types().items()
             for field in get_type_hints(kind)]  # fmt: skip
    return sorted(["method.name", "name", "out", "seed", *found])


def meant_by(option: str, sections: Sequence[str]) -> list[str]:
    """Returns the keys that an option spells: train.epochs for --epochs.

    Args:
        option: with its dashes.
        sections: the command's own; others than those of measurements are searched too.
    """
    last = option.lstrip("-").replace("-", "_")
    searched = {"", "cluster", "data", "model", "track", "train", "tune", *sections}
    split = (key.rpartition(".") for key in names())
    return ["".join(parts) for parts in split if parts[0] in searched and parts[2] == last]


def settings(sections: Sequence[str]) -> list[tuple[str, str]]:
    """Returns key=default and meaning, for each field of some sections.

    Args:
        sections: names of the configuration's sections.
    """
    rows, types = [], section_types()
    for section in sections:
        for field in dataclasses.fields(types[section]):
            limits = ", ".join(
                part for part in (domain(field.metadata), field.metadata.get("unit", "")) if part
            )
            told = field.metadata.get("doc", "")
            rows.append(
                (
                    f"{section}.{field.name}={default_of(field)}",
                    f"{told} ({limits})" if limits else told,
                )
            )
    return rows

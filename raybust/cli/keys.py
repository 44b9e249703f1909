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

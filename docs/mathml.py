"""Formulas of the documentation: fences ```` ```math ```` become MathML, which browsers draw alone.

zensical calls `fence` for each; no script and no font is loaded.
"""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def fence(source: str, language: str, name: str, options: Any, md: Any, **_: Any) -> str:
    """Returns the HTML of a formula; see `custom_fences` of pymdownx.superfences.

    Args:
        source: LaTeX.
        language: of the fence.
        name: class of the element.
        options: of the fence.
        md: the Markdown instance.

    Raises:
        ValueError: a LaTeX command is unknown.
    """
    formula = convert(source.strip(), display="block")
    if "\\" in formula:
        raise ValueError(f"a command that latex2mathml does not know: {source}")
    return f'<div class="{name}">{formula}</div>'

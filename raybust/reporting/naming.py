"""Names in tables: distinct for distinct files, and escaped for Markdown and LaTeX.

Where a name does not suffice, folders are put before it, or the name of the result's file behind
it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

_ENDINGS = (".tsv", ".txt", ".csv", ".log")
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip
_MARKDOWN = {"\\": "\\\\", "|": "\\|", "`": "\\`", "*": "\\*", "<": "&lt;"}

AT_LEAST, AT_MOST = "≥ ", "≤ "
"""Before a number that is only a bound."""


def name_of(path: Path) -> str:
    """Returns the file name without a log extension; `sigma_0.25` keeps its dot."""
    name = path.name
    ending = next((one for one in _ENDINGS if name.lower().endswith(one)), "")
    return name[: len(name) - len(ending)] or name


def distinct(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Returns the names, prefixing duplicates with as many parent folders as distinguish them.

    Args:
        names: names of the files, in order.
        paths: the files.
    """
    found = list(names)
    for name, count in Counter(names).items():
        if count < 2:
            continue
        same = [at for at, other in enumerate(names) if other == name]
        parents = [paths[at].absolute().parent.parts for at in same]
        deepest = max(map(len, parents))
        depth = next(
            (n for n in range(1, deepest) if len({parts[-n:] for parts in parents}) == count),
            deepest,
        )
        alike = len(set(parents)) < count
        for at, parts in zip(same, parents, strict=True):
            found[at] = str(paths[at]) if alike else "/".join([*parts[-depth:], name])
    return found


def told_apart(
    named: Sequence[tuple[str, Path]], shown: Sequence[Hashable]
) -> list[tuple[str, Path]]:
    """Returns labeled results; where rows would look alike, the label has the file's name.

    Args:
        named: label and file of each.
        shown: what else its row shows.
    """
    alike = Counter(zip((label for label, _ in named), shown, strict=True))
    return [
        (f"{label} ({path.stem})" if alike[label, row] > 1 else label, path)
        for (label, path), row in zip(named, shown, strict=True)
    ]


def markdown(text: str) -> str:
    """Escapes a text for a cell of a Markdown table."""
    return "".join(_MARKDOWN.get(sign, sign) for sign in " ".join(text.split()))


def latex(text: str) -> str:
    """Escapes a text for LaTeX."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))

"""Names in tables: different for different files, and safe in Markdown and LaTeX.

Stage `report` of the arrow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_ENDINGS = (".tsv", ".txt", ".csv", ".log")
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip
_MARKDOWN = {"\\": "\\\\", "|": "\\|", "`": "\\`", "*": "\\*", "<": "&lt;"}


def name_of(path: Path) -> str:
    """Returns a log's name: its file's without an ending of logs; `sigma_0.25` keeps its dot."""
    name = path.name
    ending = next((one for one in _ENDINGS if name.lower().endswith(one)), "")
    return name[: len(name) - len(ending)] or name


def distinct(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Returns the names, those that occur more than once with as many of their parent folders as
    tell them apart.

    Args:
        names: of the files, in their order.
        paths: the files.
    """
    found = list(names)
    for name, count in Counter(names).items():
        if count < 2:
            continue
        places = [at for at, other in enumerate(names) if other == name]
        parents = [paths[at].absolute().parent.parts for at in places]
        deepest = max(map(len, parents))
        depth = next(
            (n for n in range(1, deepest) if len({parts[-n:] for parts in parents}) == count),
            deepest,
        )
        alike = len(set(parents)) < count
        for at, parts in zip(places, parents, strict=True):
            found[at] = str(paths[at]) if alike else "/".join([*parts[-depth:], name])
    return found


def markdown(text: str) -> str:
    """Returns a text as a cell of a Markdown table has it."""
    return "".join(_MARKDOWN.get(sign, sign) for sign in " ".join(text.split()))


def latex(text: str) -> str:
    """Returns a text as LaTeX has it."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))

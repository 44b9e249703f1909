"""A figure and a table of certification logs, given by path.

Below the table stand the corrections made on reading, and a warning for each log whose images or
labels are not those of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybust.reporting.logs import Log, read_log
from raybust.reporting.plots import plot_curves
from raybust.reporting.tables import latex_table, markdown_table

_BY_PATH = ("npz", "image_folder", "parquet", "webdataset", "given")
"""Names of data sets that do not tell which images they are."""


def read_logs(paths: Sequence[str | Path], labels: Sequence[str] | None = None) -> list[Log]:
    """Reads several logs.

    Args:
        paths: certification logs, ours or other people's.
        labels: a name for each; file names by default.
    """
    names: Sequence[str | None] = labels or [None] * len(paths)
    return [read_log(path, name) for path, name in zip(paths, names, strict=True)]


def other_images(logs: Sequence[Log]) -> dict[str, str]:
    """Returns, by the name of the log, what is of other images or labels than the first log that
    names its own, though both would have the same ones by their headers or data sets."""
    own = [(log.name, vars(log.protocol)) for log in logs if log.protocol and log.protocol.data]
    return different_images(own)


def different_images(results: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Returns, by name, what is of another data set than the first result, or of other images or
    labels than the first one that chose its examples alike.

    Args:
        results: name and protocol of each, with `dataset`, `split`, `examples`, and where they
            have them `skip`, `data` and `labels`.
    """
    found: dict[str, str] = {}
    firsts: dict[tuple[Any, ...], tuple[str, tuple[Any, ...]]] = {}
    for name, asked in results:
        dataset, digests = asked["dataset"], (asked.get("data"), asked.get("labels"))
        chosen = dataset, asked["split"], asked["examples"], asked.get("skip")
        first, same = firsts.setdefault(chosen, (name, digests))
        if dataset != results[0][1]["dataset"]:
            what, first = f"the data set {dataset}, not {results[0][1]['dataset']}", results[0][0]
        elif digests != same:
            what = "other images or labels"
        elif dataset in _BY_PATH and len({key for key in firsts if key[0] == dataset}) > 1:
            what, first = "other examples, perhaps of other files", results[0][0]
        else:
            continue
        if first == name:
            first = "another result of it"
        found[name] = f"is of {what}, compared with {first}"
    return found


def draw_curve(
    paths: Sequence[str | Path], picture: str | Path, labels: Sequence[str] | None = None
) -> Path:
    """Draws certified accuracy over the radius of some logs as .png or .pdf; returns the path."""
    return plot_curves(read_logs(paths, labels), picture)


def table(
    paths: Sequence[str | Path],
    radii: Sequence[float],
    labels: Sequence[str] | None = None,
    latex: bool = False,
) -> str:
    """Returns a table of some logs in Markdown or LaTeX, followed by warnings from reading them.

    Args:
        paths: one row each.
        radii: one column each.
        labels: a name for each.
        latex: LaTeX instead of Markdown.
    """
    return table_of(read_logs(paths, labels), radii, latex)


def table_of(logs: Sequence[Log], radii: Sequence[float], latex: bool = False) -> str:
    """Returns the `table` of logs that were read."""
    lines = [f"{log.name}: {warning}" for log in logs for warning in log.warnings]
    lines += [f"{name}: {other}" for name, other in other_images(logs).items()]
    if latex:
        return latex_table(logs, radii) + "".join(f"% {line}\n" for line in lines)
    return markdown_table(logs, radii) + "".join(f"\n> {line}\n" for line in lines)

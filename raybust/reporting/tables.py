"""Tables of several certification logs: Markdown for pages, LaTeX for papers.

Each row states what its ACR depends on: n, alpha, the noise and the examples. Each table includes
the abstentions.
"""

from __future__ import annotations

from collections.abc import Sequence

from raybust.numerics.balls.threat import show_eps
from raybust.reporting.figures import abstention, acr, certified_accuracy
from raybust.reporting.logs import Log
from raybust.reporting.naming import AT_LEAST, AT_MOST, latex, markdown


def markdown_table(logs: Sequence[Log], radii: Sequence[float]) -> str:
    """Returns a Markdown table: certified accuracy in percent at each radius, abstentions, ACR.

    Args:
        logs: one row each, except logs without rows.
        radii: one column each.
    """
    head = ["log", *_heads(logs, radii), "abstain", "ACR [95 %]", "of"]
    lines = [head, ["---", *["---:"] * (len(radii) + 2), "---"]]
    for log in filter(len, logs):
        found = acr(log)
        early = AT_LEAST * bool(found.targets)
        spread = f"{early}{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"
        lines.append([markdown(log.name), *_cells(log, radii), spread, found.terms])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex_table(logs: Sequence[Log], radii: Sequence[float]) -> str:
    r"""Returns a LaTeX table (`booktabs`) of the same numbers; the best of a column is bold if none
    of them is only a bound.

    Args:
        logs: one row each, except logs without rows.
        radii: one column each.
    """
    logs = [log for log in logs if len(log)]
    found = [acr(log) for log in logs]
    cells = [
        [*_cells(log, radii), f"{AT_LEAST * bool(value.targets)}{value.value:.4f}"]
        for log, value in zip(logs, found, strict=True)
    ]
    for column in (*range(len(radii)), len(radii) + 1):
        if any(row[column].startswith(AT_LEAST) for row in cells):
            continue
        best = max((float(row[column]) for row in cells), default=0.0)
        for row in cells:
            if len(cells) > 1 and float(row[column]) == best:
                row[column] = rf"\textbf{{{row[column]}}}"
    head = ["", *_heads(logs, radii), "abstain", "ACR"]
    rows = [
        " & ".join([latex(f"{log.name} ({value.terms})"), *map(_in_latex, row)])
        for log, value, row in zip(logs, found, cells, strict=True)
    ]
    return (
        rf"\begin{{tabular}}{{l{'r' * (len(radii) + 2)}}}"
        "\n\\toprule\n"
        + " \\\\\n\\midrule\n".join([" & ".join(head), " \\\\\n".join(rows)])
        + " \\\\\n\\bottomrule\n\\end{tabular}\n"
    )


def _heads(logs: Sequence[Log], radii: Sequence[float]) -> list[str]:
    """Returns the radii in words, in Linf as 255ths."""
    show = show_eps if {log.norm for log in logs} == {"linf"} else "{:g}".format
    return [show(radius) for radius in radii]


def _cells(log: Log, radii: Sequence[float]) -> list[str]:
    """Returns certified accuracy at each radius, and abstentions. Where sampling stopped once the
    targets of the log were decided, the rest are bounds."""
    targets = log.protocol.targets if log.protocol else ()
    cells = [
        f"{AT_LEAST * bool(targets and radius not in targets)}{100 * share:.1f}"
        for radius, share in zip(radii, certified_accuracy(log, radii), strict=True)
    ]
    fewer = AT_MOST * bool(targets and log.kind == "smoothing")
    return [*cells, f"{fewer}{100 * abstention(log):.1f}"]


def _in_latex(cell: str) -> str:
    return cell.replace(AT_LEAST, r"$\geq$").replace(AT_MOST, r"$\leq$")

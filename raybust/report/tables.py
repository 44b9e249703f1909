"""Tables of several certification logs: Markdown for a page, LaTeX for a paper.

Each row says with its ACR what the ACR depends on, and each table gives the abstentions. Stage
`report` of the arrow.
"""

from __future__ import annotations

from collections.abc import Sequence

from raybust.report.figures import Acr, abstention, acr, assured_accuracy, certified_accuracy
from raybust.report.logs import Log
from raybust.report.naming import latex, markdown


def markdown_table(logs: Sequence[Log], radii: Sequence[float], assured: bool = False) -> str:
    """Returns a Markdown table: certified accuracy in per cent at each radius, abstentions, ACR.

    Args:
        logs: one row each; those without rows of their own have none.
        radii: one column each.
        assured: whether accuracies are the high-probability version.
    """
    head = ["log", *(f"{radius:g}" for radius in radii), "abstain", "ACR [95 %]", "of"]
    lines = [head, ["---", *["---:"] * (len(radii) + 2), "---"]]
    for log in filter(len, logs):
        found = acr(log)
        spread = f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"
        lines.append([markdown(log.name), *_cells(log, radii, found, assured), spread, found.terms])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex_table(logs: Sequence[Log], radii: Sequence[float], assured: bool = False) -> str:
    r"""Returns a LaTeX table (`booktabs`) of the same figures; the best of each column is bold.

    Args:
        logs: one row each; those without rows of their own have none.
        radii: one column each.
        assured: whether accuracies are the high-probability version.
    """
    logs = [log for log in logs if len(log)]
    found = [acr(log) for log in logs]
    cells = [
        [*_cells(log, radii, value, assured), f"{value.value:.4f}"]
        for log, value in zip(logs, found, strict=True)
    ]
    for column in (*range(len(radii)), len(radii) + 1):
        best = max((float(row[column]) for row in cells), default=0.0)
        for row in cells:
            if len(cells) > 1 and float(row[column]) == best:
                row[column] = rf"\textbf{{{row[column]}}}"
    head = ["", *(f"{radius:g}" for radius in radii), "abstain", "ACR"]
    rows = [
        " & ".join([latex(f"{log.name} ({value.terms})"), *row])
        for log, value, row in zip(logs, found, cells, strict=True)
    ]
    return (
        rf"\begin{{tabular}}{{l{'r' * (len(radii) + 2)}}}"
        "\n\\toprule\n"
        + " \\\\\n\\midrule\n".join([" & ".join(head), " \\\\\n".join(rows)])
        + " \\\\\n\\bottomrule\n\\end{tabular}\n"
    )


def _cells(log: Log, radii: Sequence[float], found: Acr, assured: bool) -> list[str]:
    accuracies = certified_accuracy(log, radii)
    if assured and found.budget:
        accuracies = assured_accuracy(log, radii, found.budget.alpha)
    return [f"{100 * value:.1f}" for value in (*accuracies, abstention(log))]

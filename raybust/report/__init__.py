"""What came out: logs read, figures, tables and pictures.

Works on certification logs that other people made as well as on ours. The last stage of the arrow.
"""

from raybust.report.certificates import draw_curve, read_logs, table
from raybust.report.figures import (
    Acr,
    Budget,
    abstention,
    acr,
    assured_accuracy,
    budget,
    certified_accuracy,
    on_ladder,
    votes,
)
from raybust.report.logs import Log, read_log
from raybust.report.plots import interactive_curves, plot_curves, plot_votes, steps
from raybust.report.tables import latex_table, markdown_table

__all__ = [
    "Acr",
    "Budget",
    "Log",
    "abstention",
    "acr",
    "assured_accuracy",
    "budget",
    "certified_accuracy",
    "draw_curve",
    "interactive_curves",
    "latex_table",
    "markdown_table",
    "on_ladder",
    "plot_curves",
    "plot_votes",
    "read_log",
    "read_logs",
    "steps",
    "table",
    "votes",
]

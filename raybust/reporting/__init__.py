"""Reports: reads certification logs, ours and other people's, and makes tables and figures."""

from raybust.reporting.certificates import draw_curve, read_logs, table
from raybust.reporting.figures import (
    Acr,
    Budget,
    abstention,
    acr,
    budget,
    certified_accuracy,
    on_ladder,
    votes,
)
from raybust.reporting.logs import Log, read_log
from raybust.reporting.plots import interactive_curves, plot_curves, plot_votes, steps
from raybust.reporting.tables import latex_table, markdown_table

__all__ = [
    "Acr",
    "Budget",
    "Log",
    "abstention",
    "acr",
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

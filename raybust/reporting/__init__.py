"""Reports: reads certification logs, ours and other people's, and makes tables and figures.

Importing it loads nothing heavy: a name is imported on its first use, because matplotlib and
scipy.stats take more than a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_HOMES = ("logs", "figures", "tables", "plots", "certificates")
"""Modules that have them, the light ones first."""


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used."""
    if name in __all__:
        for home in _HOMES:
            found = getattr(import_module(f"{__name__}.{home}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

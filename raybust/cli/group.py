"""The command `raybust`, to which the modules of commands add theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


class Command(click.Command):
    """A command whose help lists its settings.

    Args:
        sections: of the configuration that are the command's own.
        more: what else is set, in one line.
        arguments: of click's command.
    """

    def __init__(self, *, sections: Sequence[str], more: str = "", **arguments: Any) -> None:
        super().__init__(**arguments)
        self.sections, self._more = sections, more

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the settings with their defaults."""
        from raybust.cli.keys import settings

        with formatter.section("Settings (key=value)"):
            formatter.write_dl(settings(self.sections))
        if self._more:
            formatter.write_paragraph()
            formatter.write_text(self._more)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(package_name="raybust")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train, search, certify and attack robust image classifiers.

    Settings are key=value, for instance: raybust train method.name=gaussian method.sigma=0.5
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())

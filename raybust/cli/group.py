"""The command `raybust`, to which the modules of commands add theirs."""

from __future__ import annotations

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(package_name="raybust")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train, search, certify and attack robust image classifiers.

    Settings are key=value, for instance: raybust train method.name=gaussian method.sigma=0.5
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())

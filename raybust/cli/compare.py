"""The commands that decide between networks: compare."""

from __future__ import annotations

from typing import Any

import click

from raybust.cli import completion
from raybust.cli.group import cli
from raybust.cli.options import options
from raybust.cli.output import echo
from raybust.disk.files import to_json
from raybust.request import read_leaves


@cli.command()
@click.argument(
    "networks",
    nargs=-1,
    required=True,
    metavar="A[,A2,...] B[,B2,...] ... [key=value ...]",
    shell_complete=completion.runs,
)
@options("name", "out", "as_json")
@click.option(
    "--margin",
    type=click.FloatRange(0, 100, min_open=True),
    default=1.0,
    show_default=True,
    help="Points of accuracy within which networks are equivalent.",
)
@click.option(
    "--acr-margin",
    type=click.FloatRange(0, min_open=True),
    default=0.01,
    show_default=True,
    help="The same for the average certified radius.",
)
def compare(
    networks: tuple[str, ...], margin: float, acr_margin: float, as_json: bool, **given: Any
) -> None:
    """Decide whether A is better than B, on the same images.

    Each is a run, a trial, SWEEP/best or a certification log, ours or others'; several seeds of one
    configuration are separated by commas. Columns are what all of them have measured under the same
    protocol: certified accuracy at certify.radii, ACR, clean and robust accuracy.
    """
    from raybust.stages import compared

    leaves, _ = read_leaves(tuple(text for text in networks if "=" in text), given)
    named = [text for text in networks if "=" not in text]
    found = compared.compare(named, leaves, compared.Margins(margin, acr_margin), echo)
    click.echo(to_json(found.plain()) if as_json else found.text())

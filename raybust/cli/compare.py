"""The commands that decide between networks: compare and gate.

`compare` reads results that exist. `gate` measures, and has exit codes of its own: 0 passed, 1
failed, 3 undecided.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from raybust.cli import completion
from raybust.cli.group import cli
from raybust.cli.options import options
from raybust.cli.output import echo
from raybust.disk.files import to_json
from raybust.errors import RequestError
from raybust.request import apart, read_leaves


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

    settings, named = apart(networks)
    leaves, _ = read_leaves(settings, given)
    found = compared.compare_results(named, leaves, compared.Margins(margin, acr_margin), echo)
    click.echo(to_json(found.plain()) if as_json else found.text())


@cli.command()
@click.argument("rules", metavar="GATE.yaml", type=click.Path(path_type=Path))
@click.argument("run", metavar="RUN", shell_complete=completion.runs)
@click.argument("settings", nargs=-1, metavar="[key=value ...]", shell_complete=completion.settings)
@options("out", "address", "workers", "resume", "verbose", "as_json")
@click.option("--junit", type=click.Path(path_type=Path), help="Also write JUnit's XML.")
def gate(
    *,
    rules: Path,
    run: str,
    settings: tuple[str, ...],
    address: str | None,
    resume: bool,
    verbose: bool,
    as_json: bool,
    junit: Path | None,
    **given: Any,
) -> None:
    """Decide a team's rules about a network: exit code 0 passed, 1 failed, 3 undecided.

    Certifies and attacks RUN, and the reference of the rules, on the same images; undecided rules
    order more of them, up to a cap.
    """
    from raybust.stages import gated
    from raybust.stages.measurement import Options

    if junit is not None and not junit.absolute().parent.is_dir():
        raise RequestError(f"--junit: the folder {junit.parent} does not exist")
    how = Options(echo, address, given["workers"], resume, verbose=verbose)
    found = gated.gate(rules, run, settings, given, how)
    if junit is not None:
        found.write_junit(junit)
    click.echo(to_json(found.plain()) if as_json else found.text())
    raise SystemExit(found.code)

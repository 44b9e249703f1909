"""The commands that show what there is: runs in the MLflow UI, methods, datasets, networks, the
machine.

They start no work.
"""

from __future__ import annotations

from pathlib import Path

import click

from raybust.cli.group import cli
from raybust.cli.options import options
from raybust.cli.output import echo, print_diagnosis, print_rows, print_theory
from raybust.cli.submission import submitted
from raybust.errors import RequestError, WorkError
from raybust.request import compose, open_trained, read_leaves


@cli.command()
@options("out", "dry_run")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Local port."
)
def ui(out: str | None, dry_run: bool, port: int) -> None:
    """Open the MLflow UI."""
    import os
    import subprocess

    from raybust import track
    from raybust.disk import runs

    config = compose(read_leaves((), {"out": out})[0])
    folder = runs.out_folder(config)
    uri = track.resolve_uri(config.track, folder)
    command, environment = track.ui_command(uri, folder, port)
    if dry_run:
        click.echo(" ".join(command))
        return
    echo(f"MLflow UI of {track.safe_uri(uri)} on http://127.0.0.1:{port} (Ctrl-C to stop)")
    raise SystemExit(subprocess.run(command, env={**os.environ, **environment}).returncode)  # noqa: S603


@cli.command()
@click.argument("name", required=False)
@options("as_json")
@click.option("--diagnose", metavar="RUN", help="Compare propagated with sampled variances of RUN.")
@click.option(
    "--theory", metavar="OUT", help="Sweep geodesic's location and sample size; write to OUT."
)
def methods(name: str | None, as_json: bool, diagnose: str | None, theory: str | None) -> None:
    """List the training methods, or one method's fields."""
    from raybust.cli import facts

    if theory is not None:
        if name != "geodesic" or diagnose is not None:
            raise RequestError("--theory: use it as `raybust methods geodesic --theory OUT`")
        print_theory(Path(theory), as_json)
        return
    if diagnose is not None:
        if name != "covariance":
            raise RequestError("--diagnose: use it as `raybust methods covariance --diagnose RUN`")
        print_diagnosis(open_trained(diagnose, (), {}), as_json)
        return
    if name is not None and not as_json:
        text = click.wrap_text(facts.about(name), width=100, preserve_paragraphs=True)
        click.echo(f"{text}\n")
    print_rows(facts.methods(name), as_json)


@cli.command()
@click.argument("name", required=False)
@options("as_json")
def datasets(name: str | None, as_json: bool) -> None:
    """List the datasets, or one dataset's facts."""
    from raybust.cli import facts

    print_rows(facts.datasets(name), as_json)


@cli.command()
@click.argument("name", required=False)
@options("as_json")
def models(name: str | None, as_json: bool) -> None:
    """List the networks, or one network's facts."""
    from raybust.cli import facts

    print_rows(facts.models(name), as_json)


@cli.command()
@options("out", "address", "as_json")
def doctor(out: str | None, address: str | None, as_json: bool) -> None:
    """Check what is installed, what the cluster has, and what is missing."""
    leaves, _ = read_leaves((), {"out": out})
    if submitted(address, leaves):
        return
    from raybust.cluster import doctor as examination

    config = compose(leaves)
    rows = examination.examine(config, address)
    print_rows([vars(row) for row in rows], as_json)
    if any(row.state == "missing" for row in rows):
        raise WorkError("something is missing; see the column `advice`")

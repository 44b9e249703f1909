"""The commands that show what there is: runs in the MLflow UI, methods, datasets, networks, the
machine.

They start no work; `data check` reads a whole dataset.
"""

from __future__ import annotations

from pathlib import Path

import click

from raybust.cli import completion
from raybust.cli.group import Command, cli
from raybust.cli.options import options
from raybust.cli.output import echo, print_diagnosis, print_rows, print_theory
from raybust.cli.submission import submitted
from raybust.disk.files import to_json
from raybust.errors import RequestError, WorkError
from raybust.request import apart, compose, find, open_trained, read_leaves


@cli.command()
@click.argument("sweep", required=False, metavar="[SWEEP]", shell_complete=completion.runs)
@options("out", "dry_run")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Local port."
)
@click.option(
    "--open/--no-open", "opened", default=True, help="Open a browser (default), or print links."
)
def ui(sweep: str | None, out: str | None, dry_run: bool, port: int, opened: bool) -> None:
    """Show the runs in MLflow, and a sweep in Optuna's dashboard too."""
    from raybust import track
    from raybust.disk import runs

    leaves = read_leaves((), {"out": out})[0]
    config = compose(leaves)
    folder = None if sweep is None else find(sweep, leaves)
    if dry_run:
        place = runs.out_folder(config)
        click.echo(
            " ".join(track.ui_command(track.resolve_uri(config.track, place), place, port)[0])
        )
        return
    from raybust.stages import browsing

    raise SystemExit(browsing.browse(config, folder, port, echo, opened=opened))


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


@cli.command(cls=Command, sections=("data",))
@click.argument("action", type=click.Choice(["check"]), metavar="check")
@click.argument("words", nargs=-1, metavar="[PATH] [key=value ...]")
@options("out", "as_json")
def data(action: str, words: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Read a whole dataset once and say what is in it.

    PATH is a folder, a file, a URI, or a dataset's name. Unreadable images, classes and sizes,
    images in two parts, and a picture of a batch. The exit code is 1 if an image is unreadable.
    """
    settings, named = apart(words)
    if len(named) > 1:
        raise RequestError(f"data check: got {' '.join(named)}, expected one PATH")
    from raybust.stages import examined

    place = examined.settings_of(named[0]) if named else []
    leaves, _ = read_leaves(settings, {"out": out})
    found = examined.check(compose([*place, *leaves]), echo)
    click.echo(to_json(found.record()) if as_json else found.text())
    if broken := found.found.broken:
        raise WorkError(f"{len(broken)} images cannot be read")


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

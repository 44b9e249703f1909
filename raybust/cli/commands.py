"""The commands of `raybust`, one function each.

Everything that is not an option is key=value on the schema. A command validates its request,
delegates to the stage that does the work, and prints the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from raybust.cli.options import options, result_name
from raybust.cli.output import (
    browse_command,
    echo,
    print_config,
    print_diagnosis,
    print_disk,
    print_notes,
    print_rows,
    print_table,
    print_theory,
    print_trained,
)
from raybust.cli.request import compose, open_trained, read_leaves, runs_locally, submitted
from raybust.disk.files import to_json
from raybust.errors import RequestError, WorkError


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(package_name="raybust")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train, search, certify and attack robust image classifiers.

    Settings are key=value, for instance: raybust train method.name=gaussian method.sigma=0.5
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.argument("settings", nargs=-1, metavar="[CONFIG.yaml] [key=value ...]")
@options("name", "out", "address", "detach", "workers", "resume", "dry_run", "verbose", "as_json")
def train(
    *,
    settings: tuple[str, ...],
    address: str | None,
    detach: bool,
    resume: bool,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Train one network; run again to resume."""
    leaves, block = read_leaves(settings, given)
    if block is not None:
        raise RequestError(f"{settings[0]}: is a search space; use `raybust tune {settings[0]}`")
    config = compose(leaves)
    from raybust.stages import checks

    checks.check_training(config, local=runs_locally(address))
    if dry_run:
        print_config(config, as_json)
        return
    if submitted(address, leaves, detach):
        return
    from raybust.stages import training

    folder = training.train(config, address=address, resume=resume, verbose=verbose, echo=echo)
    print_trained(folder, config, address, as_json)


@cli.command()
@click.argument("space", metavar="SPACE")
@click.argument("settings", nargs=-1, metavar="[key=value ...]")
@options("name", "out", "address", "detach", "workers", "resume", "dry_run", "verbose", "as_json")
def tune(
    *,
    space: str,
    settings: tuple[str, ...],
    address: str | None,
    detach: bool,
    resume: bool,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Search hyperparameters; run again with the same name to resume."""
    leaves, block = read_leaves((space, *settings), given)
    if block is None:
        raise RequestError(
            f"{space}: has no `search` block; add one, or use `raybust train {space}`"
        )
    from raybust.stages import checks

    local = runs_locally(address)
    config, domains = checks.check_sweep(leaves, block, address=address, local=local)
    if dry_run:
        print_config(config, as_json)
        if not as_json:
            print_table(("key", "domain", "default", "when"), list(domains.rows()))
            always = sum(not domain.when for domain in domains.domains)
            click.echo(f"{len(domains.domains)} dimensions, {always} of them in every trial")
            print_disk(config, domains)
        return
    if submitted(address, leaves, detach):
        return
    from raybust.reporting import leaderboard
    from raybust.stages import tuning

    result = tuning.tune(
        config, leaves, block, address=address, resume=resume, verbose=verbose, echo=echo
    )
    if as_json:
        click.echo(to_json(result.plain()))
    else:
        click.echo(f"{leaderboard.text(result)}\nbrowse it           {browse_command(config)}")


@cli.command()
@click.argument("run", metavar="RUN")
@click.argument("settings", nargs=-1, metavar="[key=value ...]")
@options("out", "address", "detach", "workers", "resume", "dry_run", "verbose", "as_json")
@result_name
@click.option("--only", type=int, help="Recompute and compare the row of one example.")
@click.option("--cohen", is_flag=True, help="Also write the six columns of Cohen et al.")
def certify(
    *,
    run: str,
    settings: tuple[str, ...],
    address: str | None,
    detach: bool,
    resume: bool,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    result: str | None,
    only: int | None,
    cohen: bool,
    **given: Any,
) -> None:
    """Certify a run, a checkpoint or a weights file by randomized smoothing."""
    leaves, _ = read_leaves(settings, given)
    if not dry_run and submitted(address, leaves, detach):  # the job looks up RUN
        return
    from raybust.stages import certified, checks
    from raybust.stages.measurement import Options

    trained = open_trained(run, settings, given)
    device = checks.device_before(trained.config, address)
    checks.check_certify(trained.config, trained.dataset.shape, device)
    if dry_run:
        print_config(trained.config, as_json)
        return
    if only is not None:
        click.echo(certified.recompute(trained, only, result))
        return
    print_notes(trained)
    found = certified.certify(
        trained, Options(echo, address, given["workers"], resume, result, verbose)
    )
    if cohen:
        echo(f"six columns in {found.export_cohen()}")
    click.echo(to_json(found.plain()) if as_json else found.text())


@cli.command()
@click.argument("run", metavar="RUN")
@click.argument("settings", nargs=-1, metavar="[key=value ...]")
@options("out", "address", "detach", "workers", "resume", "dry_run", "verbose", "as_json")
@result_name
def evaluate(
    *,
    run: str,
    settings: tuple[str, ...],
    address: str | None,
    detach: bool,
    resume: bool,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    result: str | None,
    **given: Any,
) -> None:
    """Attack a run, a checkpoint or a weights file, or measure it under corruption.

    Corruption replaces the attacks if `corruptions.sets`, `.rows`, `.folder` or `.generated` is
    set.
    """
    leaves, _ = read_leaves(settings, given)
    if not dry_run and submitted(address, leaves, detach):
        return
    from raybust.stages import attacked, checks, corrupted
    from raybust.stages.measurement import Options

    trained = open_trained(run, settings, given)
    device = checks.device_before(trained.config, address)
    checks.check_evaluate(trained.config, trained.dataset, device)
    if dry_run:
        print_config(trained.config, as_json)
        return
    print_notes(trained)
    stage = corrupted if trained.config.corruptions.asked else attacked
    found = stage.evaluate(
        trained, Options(echo, address, given["workers"], resume, result, verbose)
    )
    click.echo(to_json(found.plain()) if as_json else found.text())


@cli.command()
@click.argument("logs", nargs=-1, required=True, metavar="LOG.tsv|RUN ... [key=value ...]")
@options("name", "out", "as_json")
def report(logs: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Compare certification logs, ours or others', or write the page of a sweep.

    Logs and runs give a table and a plot; runs that `evaluate` attacked also give a table of robust
    accuracy by protocol, and those measured with corruptions.sets=[C1] a matrix of accuracy by
    training and test Lp norm. A sweep, finished or not, gives report.html in its folder.
    """
    from raybust.cli.reports import collect

    leaves, _ = read_leaves(tuple(text for text in logs if "=" in text), given)
    named = [text for text in logs if "=" not in text]
    if not named:
        raise RequestError(f"report: got only {' '.join(logs)}, expected a log, a run or a sweep")
    found = collect(named, leaves)
    if as_json:
        parts = [part.plain() for part in found]
        merged: dict[str, Any] = {}
        for key, value in (item for part in parts for item in part.items()):
            merged[key] = [*merged[key], *value] if isinstance(merged.get(key), list) else value
        click.echo(to_json(merged))
    else:
        click.echo("\n\n".join(part.text() for part in found))


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

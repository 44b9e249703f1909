"""The commands that work, one function each.

Everything that is not an option is key=value on the schema. A command validates its request,
delegates to the stage that does the work, and prints the result.
"""

from __future__ import annotations

from typing import Any

import click

from raybust.cli import completion
from raybust.cli.group import Command, cli
from raybust.cli.options import options, result_name
from raybust.cli.output import (
    browse_command,
    echo,
    print_disk,
    print_notes,
    print_table,
    print_trained,
)
from raybust.cli.resolved import print_config
from raybust.cli.submission import load_ahead, runs_locally, submitted
from raybust.disk.files import to_json
from raybust.errors import RequestError
from raybust.request import apart, compose, open_measured, read_leaves

_WHERE = ("cluster", "track")
_TRAINING = ("data", "model", "method", "train", "certified_fast", "certified_linf_fast",
             "attacked_fast", *_WHERE)  # fmt: skip
_CERTIFYING = ("certify", *_WHERE)
_ATTACKING = ("evaluate", "corruptions", *_WHERE)
_SWEEP = (*_TRAINING, "certify", "evaluate", "tune")


@cli.command(
    cls=Command,
    sections=("data", "model", "train"),
    more="Also method.*, see `raybust methods NAME`, and certified_fast.*,"
    " certified_linf_fast.*, attacked_fast.*,"
    " cluster.*, track.*: see docs/configuration.md.",
)
@click.argument(
    "settings",
    nargs=-1,
    metavar="[CONFIG.yaml] [key=value ...]",
    shell_complete=completion.settings,
)
@options("name", "out", "address", "detach", "workers", "resume", "dry_run", "verbose", "as_json")
@click.option(
    "--find-lr", is_flag=True, help="Suggest a learning rate by a range test of 200 steps."
)
def train(
    *,
    settings: tuple[str, ...],
    address: str | None,
    detach: bool,
    resume: bool,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    find_lr: bool,
    **given: Any,
) -> None:
    """Train one network; run again to resume."""
    leaves, block = read_leaves(settings, given)
    if block is not None:
        raise RequestError(f"{settings[0]}: is a search space; use `raybust tune {settings[0]}`")
    load_ahead(address, dry_run)
    config = compose(leaves)
    from raybust.stages import checks

    checks.check_training(config, local=runs_locally(address))
    if dry_run:
        print_config(config, leaves, _TRAINING, whole=verbose, as_json=as_json)
        return
    if find_lr:
        if address is not None:
            raise RequestError("--find-lr: got --address too; it runs in this process; drop one")
        from raybust.stages import rates

        found = rates.find_rate(config, echo)
        click.echo(to_json(found.plain()) if as_json else found.text())
        return
    if submitted(address, leaves, detach):
        return
    from raybust.stages import training

    folder = training.train(config, address=address, resume=resume, verbose=verbose, echo=echo)
    print_trained(folder, config, address, as_json)


@cli.command(
    cls=Command,
    sections=("tune",),
    more="Also everything that `train`, `certify` and `evaluate` have.",
)
@click.argument("space", metavar="SPACE", shell_complete=completion.search_spaces)
@click.argument("settings", nargs=-1, metavar="[key=value ...]", shell_complete=completion.settings)
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
    load_ahead(address, dry_run)
    from raybust.stages import checks

    local = runs_locally(address)
    config, domains = checks.check_sweep(leaves, block, address=address, local=local)
    if dry_run:
        print_config(config, leaves, _SWEEP, whole=verbose, as_json=as_json)
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


@cli.command(cls=Command, sections=("certify",))
@click.argument("run", metavar="RUN", shell_complete=completion.runs)
@click.argument("settings", nargs=-1, metavar="[key=value ...]", shell_complete=completion.settings)
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
    """Certify a run, a checkpoint, a weights file or an ensemble A,B,C: by randomized smoothing, or
    with certify.bound=ibp, crown or best by sound bounds of the network in Linf.
    """
    leaves, _ = read_leaves(settings, given)
    if not dry_run and submitted(address, leaves, detach):  # the job looks up RUN
        return
    load_ahead(address, dry_run or only is not None)
    from raybust.stages import certified, checks
    from raybust.stages.measurement import Options

    checks.check_kind(leaves)
    trained = open_measured(run, settings, given)
    device = checks.device_before(trained.config, address)
    checks.check_certify(trained.config, trained.dataset.shape, device)
    if cohen or trained.config.certify.bound != "smoothing":
        made = certified.protocol_of(trained, device)
        if cohen:
            certified.check_bare(made)
    if dry_run:
        print_config(trained.config, leaves, _CERTIFYING, whole=verbose, as_json=as_json, base=run)
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


@cli.command(cls=Command, sections=("evaluate", "corruptions"))
@click.argument("run", metavar="RUN", shell_complete=completion.runs)
@click.argument("settings", nargs=-1, metavar="[key=value ...]", shell_complete=completion.settings)
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
    load_ahead(address, dry_run)
    from raybust.stages import attacked, checks, corrupted
    from raybust.stages.measurement import Options

    trained = open_measured(run, settings, given)
    device = checks.device_before(trained.config, address)
    checks.check_evaluate(trained.config, trained.dataset, device)
    if dry_run:
        print_config(trained.config, leaves, _ATTACKING, whole=verbose, as_json=as_json, base=run)
        return
    print_notes(trained)
    stage = corrupted if trained.config.corruptions.asked else attacked
    found = stage.evaluate(
        trained, Options(echo, address, given["workers"], resume, result, verbose)
    )
    click.echo(to_json(found.plain()) if as_json else found.text())


@cli.command()
@click.argument(
    "logs",
    nargs=-1,
    required=True,
    metavar="LOG.tsv|RUN ... [key=value ...]",
    shell_complete=completion.runs,
)
@options("name", "out", "as_json")
def report(logs: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Compare certification logs, ours or others', or write the page of a sweep.

    Logs and runs give a table and a plot; runs that `evaluate` attacked also give a table of robust
    accuracy by protocol, and those measured with corruptions.sets=[C1] a matrix of accuracy by
    training and test Lp norm. A sweep, finished or not, gives report.html in its folder.
    """
    from raybust.stages import reports

    settings, named = apart(logs)
    leaves, _ = read_leaves(settings, given)
    if not named:
        raise RequestError(f"report: got only {' '.join(logs)}, expected a log, a run or a sweep")
    found = reports.report(named, leaves, echo)
    click.echo(to_json(found.plain()) if as_json else found.text())

"""The command line: parses, delegates, prints. Everything slow is imported inside a command.

Few options, all else is key=value on the schema. Exit codes: 0 done, 1 the work failed, 2 the
request was wrong, 130 interrupted (the same command resumes).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from raybust.errors import RequestError, WorkError

if TYPE_CHECKING:
    from raybust.config import Leaf

_OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "name": (("--name",), {"help": "Name of the run or sweep."}),
    "out": (("--out",), {"help": "Folder under which everything lands (default: runs)."}),
    "address": (("--address",), {"help": "Ray address, or a jobs URL (http://127.0.0.1:8265)."}),
    "workers": (("--workers",), {"type": int, "help": "DDP workers of a run."}),
    "resume": (
        ("--resume/--no-resume",),
        {"default": True, "help": "Go on with what is there (default), or begin anew."},
    ),
    "dry_run": (("--dry-run",), {"is_flag": True, "help": "Check and print, do nothing."}),
    "verbose": (("--verbose",), {"is_flag": True, "help": "Show what Ray says."}),
    "as_json": (("--json", "as_json"), {"is_flag": True, "help": "Print the result as JSON."}),
}


def _options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names):
            flags, settings = _OPTIONS[name]
            function = click.option(*flags, **settings)(function)
        return function

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="raybust")
def cli() -> None:
    """Train, search, certify and attack robust image classifiers.

    Settings are key=value, for instance: raybust train method.name=gaussian method.sigma=0.5
    """


@cli.command()
@click.argument("settings", nargs=-1, metavar="[CONFIG.yaml] [key=value ...]")
@_options("name", "out", "address", "workers", "resume", "dry_run", "verbose", "as_json")
def train(
    settings: tuple[str, ...],
    address: str | None,
    resume: bool,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Train one network; run again to resume."""
    leaves, block = _leaves(settings, given)
    if block is not None:
        raise RequestError(f"{settings[0]}: is a search space; use `raybust tune {settings[0]}`")
    config = _compose(leaves)
    if dry_run:
        _print_config(config, as_json)
        return
    if _submitted(address):
        return
    from raybust.cluster import launch

    folder = launch.train(config, address=address, resume=resume, verbose=verbose, say=_say)
    _finish_training(folder, as_json)


@cli.command()
@click.argument("space", metavar="SPACE.yaml")
@click.argument("settings", nargs=-1, metavar="[key=value ...]")
@_options("name", "out", "address", "workers", "resume", "dry_run", "verbose", "as_json")
def tune(
    space: str,
    settings: tuple[str, ...],
    address: str | None,
    resume: bool,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Search hyper-parameters; run again with the same name to resume."""
    leaves, block = _leaves((space, *settings), given)
    if block is None:
        raise RequestError(
            f"{space}: has no block `search`; add one, or use `raybust train {space}`"
        )
    from raybust.cluster import launch

    config, domains = launch.check_sweep(leaves, block)
    if dry_run:
        _print_config(config, as_json)
        if not as_json:
            _print_table(("key", "domain", "default", "when"), list(domains.rows()))
        return
    if _submitted(address):
        return
    from raybust.cluster import sweep

    result = sweep.run(
        config, leaves, block, address=address, resume=resume, verbose=verbose, say=_say
    )
    if as_json:
        click.echo(json.dumps(result.plain(), indent=1))
    else:
        click.echo(result.text())


@cli.command()
@click.argument("run", metavar="RUN")
@click.argument("settings", nargs=-1, metavar="[key=value ...]")
@_options("out", "address", "workers", "resume", "dry_run", "verbose", "as_json")
@click.option("--only", type=int, help="Recompute the row of one example and compare it.")
def certify(
    run: str,
    settings: tuple[str, ...],
    address: str | None,
    resume: bool,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    only: int | None,
    **given: Any,
) -> None:
    """Certify a run, a checkpoint or a weights file by randomized smoothing."""
    from raybust.cluster import shards

    trained = _trained(run, settings, given)
    if dry_run:
        _print_config(trained.config, as_json)
        return
    if _submitted(address):
        return
    if only is not None:
        click.echo(shards.recompute(trained, only, say=_say))
        return
    result = shards.certify(trained, address=address, resume=resume, verbose=verbose, say=_say)
    click.echo(json.dumps(result.plain(), indent=1) if as_json else result.text())


@cli.command()
@click.argument("run", metavar="RUN")
@click.argument("settings", nargs=-1, metavar="[key=value ...]")
@_options("out", "dry_run", "as_json")
def evaluate(
    run: str, settings: tuple[str, ...], dry_run: bool, as_json: bool, **given: Any
) -> None:
    """Measure the accuracy of a run, a checkpoint or a weights file."""
    trained = _trained(run, settings, given)
    if dry_run:
        _print_config(trained.config, as_json)
        return
    from raybust.evaluate import clean_accuracy

    result = clean_accuracy(trained.network, trained.dataset, trained.config.evaluate)
    if as_json:
        click.echo(json.dumps(vars(result)))
    else:
        click.echo(result)


@cli.command()
@_options("out", "dry_run")
@click.option("--port", default=5000, show_default=True, help="Port on 127.0.0.1.")
def ui(out: str | None, dry_run: bool, port: int) -> None:
    """Open the MLflow UI on this store."""
    import os
    import subprocess

    from raybust import runs, track

    config = _compose(_leaves((), {"out": out})[0])
    folder = runs.out_folder(config)
    uri = track.resolve_uri(config.track, folder)
    command, environment = track.ui_command(uri, folder, port)
    if dry_run:
        click.echo(" ".join(command))
        return
    _say(f"MLflow UI of {track.safe_uri(uri)} on http://127.0.0.1:{port} (Ctrl-C ends it)")
    raise SystemExit(subprocess.run(command, env={**os.environ, **environment}).returncode)  # noqa: S603


@cli.command()
@click.argument("name", required=False)
@_options("as_json")
def methods(name: str | None, as_json: bool) -> None:
    """List the training methods, or one method's fields."""
    from raybust import catalog

    _print_rows(catalog.methods(name), as_json)


@cli.command()
@click.argument("name", required=False)
@_options("as_json")
def datasets(name: str | None, as_json: bool) -> None:
    """List the datasets, or one dataset's facts."""
    from raybust import catalog

    _print_rows(catalog.datasets(name), as_json)


@cli.command()
@click.argument("name", required=False)
@_options("as_json")
def models(name: str | None, as_json: bool) -> None:
    """List the networks, or one network's facts."""
    from raybust import catalog

    _print_rows(catalog.models(name), as_json)


@cli.command()
@_options("out", "address", "as_json")
def doctor(out: str | None, address: str | None, as_json: bool) -> None:
    """Say what is installed, what the cluster has, and what is missing."""
    from raybust.cluster import doctor as examination

    config = _compose(_leaves((), {"out": out})[0])
    rows = examination.examine(config, address)
    _print_rows([vars(row) for row in rows], as_json)
    if any(row.state == "missing" for row in rows):
        raise WorkError("something is missing; the column `advice` says what to do")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    code = 0
    try:
        cli.main(args=arguments, prog_name="raybust", standalone_mode=False)
    except RequestError as error:
        code = _complain(error, 2)
    except click.ClickException as error:
        code = _complain(error.format_message(), 2)
    except (WorkError, OSError) as error:
        code = _complain(error, 1)
    except (KeyboardInterrupt, click.Abort):
        code = _complain("interrupted; the same command resumes", 130)
    sys.exit(code)


def _complain(text: object, code: int) -> int:
    click.echo(f"raybust: {' '.join(str(text).split())}", err=True)
    return code


def _say(text: str) -> None:
    click.echo(text, err=True)


def _leaves(
    settings: Sequence[str], given: dict[str, Any]
) -> tuple[list[Leaf], dict[str, Any] | None]:
    """Returns what the user set, in order of precedence, and the file's block `search`."""
    from raybust import config as configuration

    leaves: list[Leaf] = []
    block = None
    arguments = list(settings)
    if arguments and "=" not in arguments[0]:
        path = arguments.pop(0)
        tree = configuration.read_yaml(_packaged(path))
        block = tree.pop("search", None)
        leaves += configuration.leaves_of(tree, path)
    leaves += configuration.leaves_of_arguments(arguments)
    keys = {"name": "name", "out": "out", "workers": "cluster.workers"}
    for option, key in keys.items():
        if given.get(option) is not None:
            leaves.append(configuration.Leaf(key, given[option], f"--{option}"))
    return leaves, block


def _packaged(path: str) -> str:
    """Returns the path of a file, or of the search space of that name that raybust brings along."""
    from pathlib import Path

    package = Path(__file__).parent
    for home in (package, package.parent):  # an installed wheel, a checkout
        if not Path(path).exists() and path.startswith("search_spaces/") and (home / path).exists():
            return str(home / path)
    return path


def _compose(leaves: Sequence[Leaf]) -> Any:
    from raybust import config as configuration
    from raybust import methods as registry

    return configuration.compose(leaves, registry.get)


def _trained(run: str, settings: tuple[str, ...], given: dict[str, Any]) -> Any:
    """Returns the trained network that RUN names, with the overrides of this call."""
    from raybust import runs

    leaves, _ = _leaves(settings, given)
    return runs.load(_find(run, leaves), leaves)


def _find(run: str, leaves: Sequence[Leaf]) -> Any:
    """Returns the path that RUN names: a run's name, its MLflow id, or a path."""
    import re
    from pathlib import Path

    from raybust import runs, track

    places = [leaf for leaf in leaves if leaf.key in ("out", "track.uri")]
    config = _compose(places)
    out = runs.out_folder(config)
    if re.fullmatch(r"[0-9a-f]{32}", run):
        found = track.find_run(track.resolve_uri(config.track, out), run)
        return Path(found.tags["raybust.folder"])
    return runs.find(run, out)


def _submitted(address: str | None) -> bool:
    """Runs this same command on the cluster of a jobs URL; returns whether there was one."""
    if address is None or not address.startswith(("http://", "https://")):
        return False
    from raybust.cluster import jobs

    jobs.submit(address, sys.argv[1:], _say)
    return True


def _finish_training(folder: Any, as_json: bool) -> None:
    from raybust import checkpoint

    newest = checkpoint.newest(folder)
    if newest is None:
        raise WorkError(f"{folder.name}: no checkpoint was written")
    metrics = checkpoint.read_manifest(newest)["metrics"]
    if as_json:
        click.echo(json.dumps({"run": folder.name, "folder": str(folder), "metrics": metrics}))
        return
    click.echo(f"trained {folder.name}: validation accuracy {metrics['validation/accuracy']:.4f}")
    click.echo(f"checkpoint  {newest}")
    click.echo(f"certify it  raybust certify {folder.name}")
    click.echo("browse it   raybust ui")


def _print_config(config: Any, as_json: bool) -> None:
    import yaml

    from raybust import config as configuration

    plain = configuration.to_dict(config)
    text = json.dumps(plain, indent=1) if as_json else yaml.safe_dump(plain, sort_keys=False)
    click.echo(text.rstrip())


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    heads = tuple(rows[0])
    _print_table(heads, [tuple(_cell(row[head]) for head in heads) for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, ["-" * width for width in widths], *rows):
        click.echo("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())

"""Output: results on standard output, progress and warnings on standard error.

This keeps progress visible in `raybust ... --json | jq`. Tables are aligned text, which can be
pasted into an issue.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from raybust.disk.files import to_json
from raybust.errors import RequestError, WorkError


def echo(text: str) -> None:
    """Prints a line of progress or a warning on standard error."""
    click.echo(printable(text), err=True)


def print_notes(trained: Any) -> None:
    """Prints the notes on a network and its data."""
    first, *others = trained.dataset.notes
    for line in (*trained.notes, f"data  {first}", *(f"data  {note}" for note in others)):
        echo(line)


def printable(text: str) -> str:
    """Escapes what is not UTF-8, such as parts of file names."""
    return text.encode("utf-8", "backslashreplace").decode()


def print_trained(folder: Any, config: Any, address: str | None, as_json: bool) -> None:
    """Prints the result of a training run and the next commands."""
    from raybust.disk import checkpoint

    used, newest = checkpoint.used(folder), checkpoint.newest(folder)
    if used is None or newest is None:
        raise WorkError(f"{folder.name}: no checkpoint was written")
    metrics = checkpoint.standing_of(newest)
    if as_json:
        click.echo(to_json({"run": folder.name, "folder": str(folder), "metrics": metrics}))
        return
    click.echo(f"trained {folder.name}: validation accuracy {metrics['validation/accuracy']:.4f}")
    click.echo(f"checkpoint  {used}")
    if used != newest:
        click.echo(f"last epoch  {newest}")
    click.echo(f"certify it  {certify_command(folder.name, config, address)}")
    click.echo(f"browse it   {browse_command(config)}")


def certify_command(name: str, config: Any, address: str | None) -> str:
    """Returns the command that certifies a run, with this command's folder and address."""
    from raybust import models
    from raybust.cluster.jobs import ADDRESS

    words = ["raybust", "certify", name, *_out_option(config)]
    if models.must_be_named(config.model.name):
        words.append(f"model.name={config.model.name}")
    if address is not None:  # in a job, `address` is the cluster's internal one
        words += ["--address", os.environ.get(ADDRESS, address)]
    return shlex.join(words)


def browse_command(config: Any) -> str:
    """Returns where to browse the runs: a server's address, or the command that starts one."""
    from raybust import track
    from raybust.cluster.jobs import ADDRESS
    from raybust.disk import runs

    uri, job = track.resolve_uri(config.track, runs.out_folder(config)), ADDRESS in os.environ
    if not track.is_database(uri):
        return f"{track.safe_uri(uri)}{', on the cluster' * job}"
    store = f"MLFLOW_TRACKING_URI={shlex.quote(uri)} " if config.track.uri else ""
    return f"{store}{shlex.join(['raybust', 'ui', *_out_option(config)])}{', on the head' * job}"


def _out_option(config: Any) -> list[str]:
    """Returns the option --out unless the folder is the default."""
    return [] if config.out == type(config).out else ["--out", config.out]


def print_disk(config: Any, space: Any) -> None:
    """Prints how much disk a sweep needs, if that is known without the data and without the code of
    other packages."""
    from raybust import data
    from raybust.cluster.retention import bytes_of_sweep
    from raybust.stages.space_on_disk import describe, in_words, largest_network, networks

    facts = data.describe(config.data.name)
    if facts["shape"] is None or any(":" in name for name in networks(config, space)):
        return
    size = largest_network(config, space, tuple(facts["shape"]), facts["classes"])
    at_once = config.tune.concurrent or 1
    needed = in_words(bytes_of_sweep(config, size, at_once))
    click.echo(f"about {needed} of disk for {describe(config, at_once)}")


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Prints rows with equal keys as a table or as JSON."""
    if as_json:
        click.echo(to_json(rows))
        return
    heads = tuple(rows[0])
    print_table(heads, [tuple(_cell(row[head]) for head in heads) for row in rows])


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints strings in aligned columns."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, ["-" * width for width in widths], *rows):
        click.echo("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


def print_diagnosis(trained: Any, as_json: bool) -> None:
    """Compares propagated with sampled variances per layer; writes and prints the result."""
    from raybust.studies.figures import plot_variances, variance_table
    from raybust.studies.moments import diagnose
    from raybust.training.objective import smoothing_sigma

    sigma = smoothing_sigma(trained.config)
    found = diagnose(trained.network, trained.dataset.test, sigma)
    folder = trained.folder / "moments"
    folder.mkdir(parents=True, exist_ok=True)
    table, picture = folder / "variances.md", folder / "variances.png"
    text = "\n".join(f"{mode}\n\n{variance_table(layers)}" for mode, layers in found.items())
    table.write_text(text)
    plot_variances(found, picture, f"{trained.name}, sigma = {sigma:g}")
    if as_json:
        ratios = {mode: {x.name: x.ratio for x in layers} for mode, layers in found.items()}
        click.echo(to_json({"ratios": ratios, "files": [str(table), str(picture)]}))
    else:
        click.echo(f"{text}\n{table}\n{picture}")


def print_theory(out: Path, as_json: bool) -> None:
    """Sweeps location and sample size of geodesic augmentation; writes and prints the result."""
    from raybust.studies.figures import plot_theory, theory_table
    from raybust.studies.geodesic import theory

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--theory: {out} cannot be written: {error.strerror}") from None
    echo("sweeping location and sample size on two Gaussians and on digits; about a minute")
    panels = theory()
    table, picture = out / "theory.md", out / "theory.png"
    table.write_text(theory_table(panels))
    plot_theory(panels, picture)
    if as_json:
        plain = [dataclasses.asdict(panel) for panel in panels]
        click.echo(to_json({"panels": plain, "files": [str(table), str(picture)]}))
    else:
        click.echo(f"{table.read_text()}\n{table}\n{picture}")

"""The commands that use a trained network: predict, serve, export.

They need neither its training data nor its training code; `export` reads the data for the card
and for checking what it wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from raybust.cli import completion
from raybust.cli.group import Command, cli
from raybust.cli.options import options, result_name
from raybust.cli.output import echo, print_notes
from raybust.cli.submission import submitted
from raybust.disk.files import to_json
from raybust.errors import RequestError
from raybust.request import apart, open_trained, read_leaves


@cli.command(cls=Command, sections=("certify",))
@click.argument("run", metavar="RUN", shell_complete=completion.runs)
@click.argument("images", nargs=-1, required=True, metavar="IMAGES... [key=value ...]")
@options("out", "address", "detach", "workers", "resume", "verbose")
@result_name
@click.option("--radius", type=float, help="Is the class safe to this radius? Cheapest.")
@click.option("--plain", is_flag=True, help="The network without noise, and no certificate.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "jsonl"]),
    default="table",
    show_default=True,
    help="Form of the output.",
)
@click.option(
    "--replay",
    type=click.Path(path_type=Path),
    metavar="ANSWER.json",
    help="Recompute a server's answer about IMAGES.",
)
def predict(
    *,
    run: str,
    images: tuple[str, ...],
    address: str | None,
    detach: bool,
    resume: bool,
    verbose: bool,
    result: str | None,
    radius: float | None,
    plain: bool,
    form: str,
    replay: Path | None,
    **given: Any,
) -> None:
    """Classify images, each with a certified radius.

    IMAGES are files, folders, or one npz with an array of images. Without --radius, each image gets
    its full radius from all certify.n draws.
    """
    settings, named = apart(images)
    if not named:
        raise RequestError(f"predict: got only {' '.join(images)}, expected images")
    if plain and radius is not None:
        raise RequestError("--radius: needs noise; leave out --plain")
    leaves, _ = read_leaves(settings, given)
    if submitted(address, leaves, detach):
        return
    from raybust.stages import checks, predicted
    from raybust.stages.measurement import Options

    settings = predicted.with_radius(settings, radius)
    trained = open_trained(run, settings, given, with_data=False)
    checks.check_certify(
        trained.config, trained.dataset.shape, checks.device_before(trained.config, address)
    )
    for note in trained.notes:
        echo(note)
    part, names = predicted.read_images(trained, named, echo)
    if replay is not None:
        from raybust.stages import replayed

        click.echo(replayed.check_answers(trained, part, replay))
        return
    how = Options(echo, address, given["workers"], resume, result, verbose)
    if plain:
        found = predicted.predict_plain(trained, part, names, how)
    else:
        seed = predicted.seed_of(leaves)
        found = predicted.predict(trained, part, names, how, seed=seed)
    written = {"table": found.text, "csv": found.csv, "jsonl": found.lines}[form]()
    click.echo(written.rstrip("\n"))


@cli.command()
@click.argument("run", metavar="RUN", shell_complete=completion.runs)
@click.argument("settings", nargs=-1, metavar="[key=value ...]", shell_complete=completion.settings)
@options("out", "as_json")
@click.option("--to", "folder", metavar="FOLDER", help="Folder to write (default: export/RUN).")
@click.option(
    "--format",
    "form",
    type=click.Choice(["safetensors", "torch", "onnx"]),
    default="safetensors",
    show_default=True,
    help="Form of the network.",
)
@click.option("--license", "license_name", metavar="TEXT", help="License of the weights.")
@click.option(
    "--verifier",
    is_flag=True,
    help="ONNX, and VNN-LIB files of the images that bounds leave open at certify.radius.",
)
def export(
    run: str,
    settings: tuple[str, ...],
    *,
    as_json: bool,
    folder: str | None,
    form: str,
    license_name: str | None,
    verifier: bool,
    **given: Any,
) -> None:
    """Write a network for use elsewhere, with a model card."""
    if verifier and form == "torch":
        raise RequestError("--format torch: verifiers read ONNX; leave it out")
    from raybust.stages import checks, exported
    from raybust.stages.measurement import Options
    from raybust.stages.verifier import export_for_verifier

    checks.check_kind(read_leaves(settings, given)[0])
    trained = open_trained(run, settings, given)
    print_notes(trained)
    target = Path(folder or f"export/{trained.name.replace('/', '-')}")
    if verifier:
        found = export_for_verifier(trained, target, license_name, Options(echo))
    else:
        found = exported.export(trained, form, target, license_name)
    click.echo(to_json(found.plain()) if as_json else found.text())


@cli.command(cls=Command, sections=("certify",))
@click.argument("run", metavar="RUN", shell_complete=completion.runs)
@click.argument("settings", nargs=-1, metavar="[key=value ...]", shell_complete=completion.settings)
@options("out", "address", "verbose")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port of HTTP."
)
@click.option(
    "--replicas",
    default="1",
    metavar="N or N-M",
    show_default=True,
    help="Copies at work; a range follows the load.",
)
@click.option(
    "--queue", type=click.IntRange(1), default=256, show_default=True, help="Images at a replica."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the token of all requests (default: a new one, printed).",
)
@click.option("--no-token", is_flag=True, help="Answer whoever reaches the port.")
def serve(
    run: str,
    settings: tuple[str, ...],
    *,
    address: str | None,
    verbose: bool,
    host: str,
    port: int,
    replicas: str,
    queue: int,
    token_file: Path | None,
    no_token: bool,
    **given: Any,
) -> None:
    """Answer over HTTP, each answer with a certified radius."""
    from raybust.stages import checks, serving

    token = serving.token_of(token_file, no_token=no_token)
    where = serving.Listening(host, port, serving.replicas_of(replicas), token, token_file, queue)
    trained = open_trained(run, settings, given, with_data=False)
    device = checks.device_before(trained.config, address)
    checks.check_certify(trained.config, trained.dataset.shape, device)
    for note in trained.notes:
        echo(note)
    serving.serve(trained, where, address=address, verbose=verbose, echo=echo)
